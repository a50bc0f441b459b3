"""The one stream of a sandbox as bytes: nothing is lost, nothing is read that nobody wants, and every end is told."""

from __future__ import annotations

import socket
import time

import anyio
import pytest

from sandbox.sockets import RawStream

pytestmark = pytest.mark.anyio


@pytest.fixture
async def pair():
    near, far = socket.socketpair()
    stream = RawStream(near)
    yield stream, far
    far.close()
    await stream.aclose()


async def soon(stream, most=65536):
    with anyio.fail_after(5):
        return await stream.receive(most)


async def test_what_lies_there_already_is_received(pair):
    stream, far = pair
    far.send(b"there")
    assert await soon(stream) == b"there"


async def test_what_comes_later_is_received(pair):
    stream, far = pair
    for text in (b"one", b"two"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(soon, stream)
            await anyio.wait_all_tasks_blocked()
            far.send(text)


async def test_no_more_is_given_than_was_asked_for_and_nothing_is_lost(pair):
    stream, far = pair
    far.send(b"abcdefgh")
    assert await soon(stream, 8) == b"abcdefgh"
    far.send(b"12345678")
    await anyio.sleep(0.02)
    assert await soon(stream, 3) == b"123"
    assert await soon(stream, 100) == b"45678"


async def test_the_end_is_told_each_time(pair):
    stream, far = pair
    far.send(b"last words")
    far.close()
    assert await soon(stream) == b"last words"
    for _ in range(3):
        with pytest.raises(anyio.EndOfStream):
            await soon(stream)


async def test_a_cancelled_receive_loses_nothing(pair):
    stream, far = pair
    with anyio.move_on_after(0.01):
        await stream.receive()
    far.send(b"kept")
    assert await soon(stream) == b"kept"


async def test_cancelled_in_the_turn_in_which_bytes_come_it_loses_nothing(pair):
    stream, far = pair
    received = []

    async def receive():
        received.append(await stream.receive())

    for _ in range(50):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            far.send(b"x")
            tasks.cancel_scope.cancel()
    far.send(b"end")
    while not b"".join(received).endswith(b"end"):
        received.append(await soon(stream))
    assert b"".join(received) == b"x" * 50 + b"end"


async def test_a_cancelled_scope_is_noticed_although_bytes_lie_there(pair):
    stream, far = pair
    far.send(b"kept")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await stream.receive()
    assert scope.cancelled_caught
    assert await soon(stream) == b"kept"


async def test_closing_wakes_who_waits_and_refuses_who_comes(pair):
    stream, _ = pair

    async def wait():
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await stream.aclose()
    await wait()


async def test_only_one_may_receive(pair):
    stream, far = pair
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await stream.receive()
        far.send(b"x")


async def test_a_reset_is_a_broken_stream_with_its_reason():
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    stream = RawStream(near)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    far.close()
    with pytest.raises(anyio.BrokenResourceError, match="reset"):
        await soon(stream)
    with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
        await soon(stream)
    await stream.aclose()


async def test_bytes_that_nobody_takes_keep_nothing_busy(pair):
    stream, far = pair
    far.send(b"first")
    assert await soon(stream) == b"first"
    far.send(b"untaken")
    await anyio.sleep(0.02)
    before = time.process_time()
    await anyio.sleep(0.3)
    assert time.process_time() - before < 0.2
    assert await soon(stream) == b"untaken"


async def test_a_flood_leaves_the_event_loop_its_turns_and_can_be_cancelled(pair):
    stream, far = pair
    far.setblocking(False)

    async def flood():
        while True:
            try:
                far.send(bytes(1000))
            except BlockingIOError:
                pass
            await stream.receive(100)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flood)
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
