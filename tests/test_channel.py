"""The channel over a stream that a test plays the guest of: what comes out when things go right, and when not."""

from __future__ import annotations

import socket
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from sandbox import SandboxClosed, SandboxExhausted, SandboxLost, SandboxSpec, SandboxStartError, open_sandbox
from sandbox.channel import Channel, open_channel
from sandbox.engine import Death
from sandbox.sockets import RawStream
from sandbox.testing import FakeEngine, Faults
from sandbox.testing.calls import encode_exit
from sandbox.wire import (
    CREDIT,
    HELLO,
    MAGIC,
    MAX_FRAME,
    TO_GUEST,
    VERSION,
    WINDOW,
    CallFlag,
    Decoder,
    Exit,
    Feature,
    Frame,
    Kind,
    Request,
    Status,
    Type,
    encode,
)

pytestmark = pytest.mark.anyio

GREETING = encode(Type.HELLO, 0, HELLO.pack(MAGIC, VERSION, Feature.SH, 1, WINDOW, MAX_FRAME) + b"lo\0")
TRUE = Request(Kind.RUN, args=(b"/bin/sh", b"-c", b"true"))
WATCHED = Request(Kind.RUN, args=(b"a",), flags=CallFlag.WATCH)
ENDED = encode_exit(Exit(Status.EXITED))
SPEC = SandboxSpec(image="any", grace=0)


class PlayedGuest:
    """The other end of a channel's stream, in the test's own hand."""

    def __init__(self, raw: socket.socket) -> None:
        self.stream = RawStream(raw)
        self._decoder = Decoder(TO_GUEST)
        self._frames: list[Frame] = []

    async def send(self, *frames: bytes) -> None:
        await self.stream.send(b"".join(frames))

    async def receive(self, kind: Type) -> Frame:
        """The next frame of a kind; others are dropped."""
        with anyio.fail_after(5):
            while True:
                while self._frames:
                    frame = self._frames.pop(0)
                    if frame.type == kind:
                        return frame
                self._frames.extend(self._decoder.feed(await self.stream.receive()))


@asynccontextmanager
async def played(lease: float = 60, cause: Any = "") -> AsyncIterator[tuple[Channel, PlayedGuest]]:
    near, far = socket.socketpair()
    guest = PlayedGuest(far)
    stream = RawStream(near)

    async def explain() -> Any:
        if isinstance(cause, Exception):
            raise cause
        return Death(cause)

    try:
        async with open_channel(stream, lease=lease, explain=explain) as channel:
            await guest.send(GREETING)
            assert (await channel.hello()).interfaces == ("lo",)
            yield channel, guest
    finally:
        await guest.stream.aclose()
        await stream.aclose()


async def test_a_request_goes_out_in_one_piece():
    async with played() as (channel, guest):
        exchange = channel.begin(TRUE)
        data = await guest.stream.receive()
        assert [frame.type for frame in Decoder(TO_GUEST).feed(data)] == [Type.OPEN, Type.INPUT]
        await guest.send(encode(Type.EXIT, exchange.call.id, ENDED))
        assert (await exchange.outcome()).status is Status.EXITED


async def test_outcomes_may_come_in_any_order():
    async with played() as (channel, guest):
        exchanges = [channel.begin(TRUE) for _ in range(3)]
        for exchange in reversed(exchanges):
            await guest.send(
                encode(Type.EXIT, exchange.call.id, encode_exit(Exit(Status.EXITED, exit_code=exchange.call.id)))
            )
        assert [(await exchange.outcome()).exit_code for exchange in exchanges] == [1, 2, 3]


async def test_what_does_not_fit_into_the_socket_goes_out_whole():
    async with played() as (channel, guest):
        body = bytes(2 * 1024 * 1024 - 100).replace(b"\0", b"x")
        requests = [Request(Kind.RUN, args=(body[: 1024 * 1024],)) for _ in range(4)]
        exchanges = [channel.begin(request) for request in requests]
        await anyio.sleep(0.05)
        got = {exchange.call.id: 0 for exchange in exchanges}
        sent = dict(got)
        while min(got.values()) < 1024 * 1024:
            frame = await guest.receive(Type.INPUT)
            got[frame.id] += len(frame.payload)
            sent[frame.id] += len(frame.payload)
            if sent[frame.id] >= WINDOW // 2:
                await guest.send(encode(Type.CREDIT, frame.id, CREDIT.pack(sent[frame.id])))
                sent[frame.id] = 0


async def test_credit_follows_what_was_taken():
    async with played() as (channel, guest):
        exchange = channel.begin(WATCHED)
        await guest.send(*[encode(Type.OUTPUT, exchange.call.id, bytes(MAX_FRAME), 1)] * 4)
        await anyio.sleep(0.05)
        first = await exchange.next_output()
        assert first is not None
        assert len(first[1]) == WINDOW
        with anyio.move_on_after(0.1) as waiting:
            await guest.receive(Type.CREDIT)
        assert waiting.cancelled_caught, "credit was given for what nobody has taken"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.next_output)
            assert CREDIT.unpack((await guest.receive(Type.CREDIT)).payload)[0] == WINDOW
            await guest.send(encode(Type.EXIT, exchange.call.id, ENDED))


async def test_output_in_small_pieces_takes_no_more_room_than_a_window():
    async with played() as (channel, guest):
        exchange = channel.begin(WATCHED)
        one = [encode(Type.OUTPUT, exchange.call.id, b"x", flag) for flag in (1, 2)]
        tracemalloc.start()
        try:
            for _ in range(30):
                await guest.send(*one * 1000)
            await anyio.sleep(0.3)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 3_000_000
        total = {"stdout": 0, "stderr": 0}
        await guest.send(encode(Type.EXIT, exchange.call.id, ENDED))
        while (output := await exchange.next_output()) is not None:
            total[output[0]] += len(output[1])
        assert total == {"stdout": 30_000, "stderr": 30_000}


async def test_an_idle_channel_renews_its_lease():
    async with played(lease=0.8) as (channel, guest):
        for _ in range(3):
            await guest.receive(Type.PING)
            await guest.send(encode(Type.PONG))
        assert not channel.ended


async def test_a_guest_that_answers_no_ping_is_lost():
    async with played(lease=0.4) as (channel, _guest):
        exchange = channel.begin(TRUE)
        with anyio.fail_after(5), pytest.raises(SandboxLost, match="does not answer"):
            await exchange.outcome()


async def test_a_call_long_after_its_timeout_is_lost():
    async with played(lease=0.8) as (channel, guest):
        exchange = channel.begin(TRUE, patience=0.2)

        async def answer() -> None:
            while True:
                await guest.receive(Type.PING)
                await guest.send(encode(Type.PONG))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            with anyio.fail_after(5), pytest.raises(SandboxLost, match="long after its timeout"):
                await exchange.outcome()
            tasks.cancel_scope.cancel()


async def test_a_guest_that_drips_output_does_not_keep_its_caller():
    async with played(lease=0.8) as (channel, guest):
        exchange = channel.begin(WATCHED, patience=0.2)

        async def drip() -> None:
            while True:
                await guest.receive(Type.PING)
                await guest.send(encode(Type.PONG), encode(Type.OUTPUT, exchange.call.id, b"x", 1))

        async def drain() -> None:
            while await exchange.next_output():
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drip)
            with anyio.fail_after(5), pytest.raises(SandboxLost, match="long after its timeout"):
                await drain()
            tasks.cancel_scope.cancel()


async def test_a_call_that_waits_for_its_own_watcher_is_not_late():
    async with played(lease=0.4) as (channel, guest):
        exchange = channel.begin(WATCHED, patience=0.1)
        await guest.send(encode(Type.OUTPUT, exchange.call.id, b"x", 1))
        for _ in range(8):
            await guest.receive(Type.PING)
            await guest.send(encode(Type.PONG))
        assert not channel.ended


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 40, b"HTTP/1.1 500 Internal Server Error\r\n\r\n", encode(Type.EXIT, 77, ENDED), GREETING],
    ids=["noise", "http", "unknown call", "second hello"],
)
async def test_garbage_ends_every_call_and_every_later_one(garbage):
    async with played(cause="it was killed") as (channel, guest):
        exchanges = [channel.begin(TRUE), channel.begin(WATCHED)]
        await guest.send(garbage)
        for exchange in exchanges:
            with pytest.raises(SandboxLost, match=r"broke the protocol .*; it was killed\. Open a new one\.$"):
                await exchange.outcome()
        with pytest.raises(SandboxLost):
            await exchanges[1].next_output()
        with pytest.raises(SandboxLost):
            channel.begin(TRUE)
        with pytest.raises(SandboxLost):
            await channel.reset()


async def test_a_lost_sandbox_names_the_guests_last_words_and_the_engines():
    async with played(cause="its guest exited with status 71") as (channel, guest):
        exchange = channel.begin(TRUE)
        await guest.send(encode(Type.FATAL, 0, b"no memory is left"))
        await guest.stream.send_eof()
        with pytest.raises(SandboxLost) as caught:
            await exchange.outcome()
        assert str(caught.value) == (
            "The sandbox was lost: the guest ended; it said: no memory is left; its guest exited with status 71. "
            "Open a new one."
        )


async def test_an_engine_that_fails_to_say_why_hides_nothing():
    async with played(cause=RuntimeError("no daemon")) as (channel, guest):
        exchange = channel.begin(TRUE)
        await guest.stream.send_eof()
        with pytest.raises(SandboxLost, match=r"the guest ended; the engine could not say why \(no daemon\)"):
            await exchange.outcome()


async def test_a_stuck_stream_holds_no_cancel_up(monkeypatch):
    monkeypatch.setattr("sandbox.exchange.DEATH", 0.3)
    async with played() as (channel, _guest):
        for _ in range(8):  # more than the socket takes: the writer is stuck
            channel.begin(Request(Kind.RUN, args=(b"x" * 1024 * 1024,)))
        exchange = channel.begin(TRUE)
        began = time.monotonic()
        await channel.abandon(exchange, 0)
        assert time.monotonic() - began < 3
        assert channel.ended


async def test_a_closed_channel_says_so_to_its_calls():
    async with played() as (channel, _guest):
        exchange = channel.begin(TRUE)
    with pytest.raises(SandboxClosed):
        await exchange.outcome()
    with pytest.raises(SandboxClosed):
        channel.begin(TRUE)


async def test_a_reset_that_is_not_answered_is_a_loss():
    async with played() as (channel, _guest):
        with pytest.raises(SandboxLost, match="reset"):
            await channel.reset(deadline=0.1)


async def test_a_dead_reader_leaves_the_callers_block_alone():
    async with FakeEngine() as engine, open_sandbox(SPEC, engine=engine) as box:
        engine.container(box.container_id).die("it was killed from outside (SIGKILL)")
        await anyio.sleep(0.1)
        assert box.closed
        for call in (box.run("true"), box.read_file("/etc/passwd"), box.reset()):
            with pytest.raises(SandboxLost, match="SIGKILL"):
                await call
    with pytest.raises(SandboxClosed):
        await box.run("true")


async def test_a_death_in_the_midst_of_a_call_is_told_to_it():
    async with FakeEngine() as engine, open_sandbox(SPEC, engine=engine) as box:
        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                with pytest.raises(SandboxLost, match="killed from outside"):
                    await box.run("sleep 100")

            tasks.start_soon(call)
            await box.run("true")
            engine.container(box.container_id).die()


async def test_garbage_of_a_whole_sandbox_is_a_loss():
    async with FakeEngine() as engine, open_sandbox(SPEC, engine=engine) as box:
        engine.container(box.container_id).send_garbage()
        with pytest.raises(SandboxLost, match="broke the protocol"):
            await box.run("sleep 100")
    assert engine.containers_by_name == {}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pid": 7}, "process id 7"),
        ({"features": Feature(0)}, "no executable /bin/sh"),
        ({"interfaces": ("lo", "eth0")}, "network interfaces eth0"),
        ({"magic": 1}, "did not come up: the guest broke the protocol"),
        ({"version": 2}, "version 2"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_a_hello_is_judged(change, message):
    async with FakeEngine(faults=Faults(hello=change)) as engine:
        with pytest.raises(SandboxStartError, match=message):
            async with open_sandbox(SPEC, engine=engine):
                pass
        assert engine.containers_by_name == {}


async def test_a_guest_that_never_greets_is_a_start_error():
    from sandbox import Sandbox

    async with FakeEngine(faults=Faults(greet=False)) as engine:
        with pytest.raises(SandboxStartError, match=r"not ready within 0\.2 s"):
            async with Sandbox.open(engine, SPEC, start_timeout=0.2):
                pass
        assert engine.containers_by_name == {}


async def test_a_refused_start_leaves_nothing():
    async with FakeEngine(faults=Faults(refuse_start="The engine is full; wait.")) as engine:
        with pytest.raises(SandboxStartError, match="full"):
            async with open_sandbox(SPEC, engine=engine):
                pass
        assert engine.containers_by_name == {}


async def test_a_sandbox_that_idles_longer_than_its_lease_lives():
    async with FakeEngine() as engine, open_sandbox(SandboxSpec(image="any", lease=1), engine=engine) as box:
        await anyio.sleep(2.5)
        assert (await box.run("true")).ok


async def test_commands_that_use_up_the_memory_are_told_as_data():
    async with FakeEngine() as engine, open_sandbox(SPEC, engine=engine) as box:
        async with box.stream("sleep 100") as running:
            engine.container(box.container_id).die("its memory ran out", exhausted=True)
            assert [chunk async for chunk in running] == []
        assert running.result.status == "out_of_memory"
        assert (await box.run("true")).status == "out_of_memory"
        with pytest.raises(SandboxExhausted):
            await box.read_file("/etc/passwd")
