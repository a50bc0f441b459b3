"""One attached stream, driven by :mod:`sandbox.connection`: tasks that read, write and keep the lease.

What goes wrong here ends the channel and wakes every call with the reason; it never ends a task of the caller. A
call needs no task of its own: it leaves bytes for the writer and waits until the reader wakes it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Literal

import anyio
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

from sandbox.connection import (
    Call,
    CallEnded,
    Connection,
    Event,
    GuestDies,
    HelloReceived,
    InputWanted,
    OutputReceived,
    ResetDone,
)
from sandbox.errors import SandboxClosed, SandboxError, SandboxLost
from sandbox.shield import beside, finish
from sandbox.wire import STDOUT, Exit, Hello, ProtocolError, Request

StreamName = Literal["stdout", "stderr"]

LATE = 30.0
"""Seconds that a call's outcome may be later than its own timeout and grace before the sandbox counts as lost."""

DEATH = 10.0
"""Seconds beyond the grace in which the guest must have ended a cancelled call: it may be a fork bomb."""

_TICK = 15.0
_PATIENCE = 10
"""Pings without an answer until the sandbox counts as lost: by then its lease has run out too."""
_EXPLAIN = 5.0
_RECEIVE = 256 * 1024
_PIECES = 512

_log = logging.getLogger(__name__)


class Exchange:
    """One call on its way: what came for it and was not taken yet."""

    def __init__(self, channel: Channel, call: Call, patience: float | None) -> None:
        self.call = call
        self.deadline = None if patience is None else anyio.current_time() + patience
        self.late = False
        self.abandoned = False
        self._channel = channel
        self._patience = patience
        self._output: deque[tuple[int, bytearray]] = deque()
        self._owed = 0
        self._failure: Exception | None = None
        self._wake: anyio.Event | None = None
        self._room: anyio.Event | None = None

    async def outcome(self) -> Exit:
        """Wait for the call's end."""
        while self.call.exit is None:
            self.check()
            await self._sleep()
        return self.call.exit

    async def next_output(self) -> tuple[StreamName, bytes] | None:
        """The next live bytes; None when the call has ended. Asking says that the bytes before were taken."""
        if self._owed:
            self._channel.post(self.call.taken(self._owed))
            self._owed = 0
        if self._patience is not None:
            self.deadline = max(self.deadline or 0, anyio.current_time() + LATE)
        if self._output:
            await checkpoint()  # a quick command and a quick callback must not keep the event loop from everything else
        while not self._output:
            if self.call.exit is not None:
                return None
            self.check()
            await self._sleep()
        stream, data = self._output.popleft()
        self._owed = len(data)
        return "stdout" if stream == STDOUT else "stderr", bytes(data)

    def feed(self, source: Iterable[bytes | memoryview]) -> None:
        """Send all input there is; it is asked for as there is credit for it."""
        self.call.feed_from(source)
        self.call.close_input()
        self._send_input()

    async def pump(self, source: AsyncIterable[bytes]) -> None:
        """Send input as it comes, for a task of its own; the source's failure becomes the call's."""
        try:
            await self._pump(source)
        except Exception as error:  # noqa: BLE001  the caller's own source: any exception is for the caller
            self._failure = error
            self.wake()

    async def _pump(self, source: AsyncIterable[bytes]) -> None:
        iterator = aiter(source)
        try:
            async for data in iterator:
                self.call.feed(bytes(memoryview(data)))
                if not await self._drain():
                    return
            self.call.close_input()
            self._send_input()
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()

    def _send_input(self) -> None:
        self._channel.post(self.call.sendable())

    async def abandon(self, grace: float) -> None:
        """Kill the call's command and see it dead, whatever cancels this; else the sandbox counts as lost."""
        if self.call.exit is not None or self._channel.ended:
            return
        self.abandoned = True
        self._output.clear()
        self._channel.post(self._channel.connection.cancel(self.call))
        self._channel.post(self.call.taken(self._owed))
        try:
            await finish(self._until_dead, deadline=grace + DEATH)
        finally:
            if self.call.exit is None:
                self._channel.lose("the guest did not end a cancelled call in time")

    @property
    def stalled(self) -> bool:
        """Whether the call waits for its own caller."""
        return bool(self._output or self._owed)

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._wake is not None:
            self._wake.set()
        if self._room is not None:
            self._room.set()

    def input_wanted(self) -> None:
        """Credit came."""
        self._send_input()
        if self._room is not None and self.call.wants_input:
            self._room.set()

    def receive(self, stream: int, data: bytes) -> None:
        """Keep live bytes until they are taken; in few pieces, however small they come."""
        if self.abandoned or not data:
            self._channel.post(self.call.taken(len(data)))
            return
        output = self._output
        if output and output[-1][0] == stream:
            output[-1][1].extend(data)
        elif len(output) >= _PIECES:
            output[-2][1].extend(data)
        else:
            output.append((stream, bytearray(data)))
        if self._wake is not None:
            self._wake.set()

    async def _drain(self) -> bool:
        self._send_input()
        while not self.call.wants_input:
            if self.call.exit is not None or self.abandoned:
                return False
            self._channel.check()
            self._room = anyio.Event()
            await self._room.wait()
        return True

    def check(self) -> None:
        """Raise what kept the call from its end, if anything did."""
        if self.call.exit is not None:
            return
        if self._failure is not None:
            raise self._failure
        self._channel.check()

    async def _sleep(self) -> None:
        self._wake = anyio.Event()
        await self._wake.wait()

    async def _until_dead(self) -> None:
        while self.call.exit is None and not self._channel.ended:
            await self._sleep()


class Channel:
    """The stream of one sandbox, shared by its calls."""

    def __init__(self, stream: ByteStream, *, lease: float, explain: Callable[[], Awaitable[str]]) -> None:
        self.connection = Connection()
        self._stream = stream
        self._tick = min(lease / 8, _TICK)
        self._explain = explain
        self._exchanges: dict[Call, Exchange] = {}
        self._outbox: list[bytes] = []
        self._posted: anyio.Event | None = None
        self._send_nowait: Callable[[bytes], int] | None = getattr(stream, "send_nowait", None)
        self._greeted = anyio.Event()
        self._resets: deque[anyio.Event] = deque()
        self._last_words = ""
        self._end: tuple[type[SandboxError], str] | None = None
        self.reason = ""

    @property
    def ended(self) -> bool:
        """Whether no more can be done."""
        return self._end is not None

    def check(self) -> None:
        """Raise what ended the channel, if anything has."""
        if self._end is not None:
            kind, reason = self._end
            raise kind(reason)

    async def hello(self) -> Hello:
        """The guest's first words."""
        await self._greeted.wait()
        self.check()
        assert self.connection.hello is not None
        return self.connection.hello

    def begin(self, request: Request, *, more_input: bool = False, patience: float | None = None) -> Exchange:
        """Send a request. ``patience`` is how many seconds it may take before the guest counts as dumb."""
        self.check()
        call, data = self.connection.open(request, more_input=more_input)
        exchange = Exchange(self, call, patience)
        self._exchanges[call] = exchange
        self.post(data)
        return exchange

    async def reset(self, deadline: float = LATE) -> None:
        """Kill every process in the sandbox."""
        self.check()
        done = anyio.Event()
        self._resets.append(done)
        self.post(self.connection.reset())
        with anyio.move_on_after(deadline):
            await done.wait()
        if not done.is_set():
            self.lose("the guest did not answer a reset in time")
        self.check()

    def post(self, data: bytes) -> None:
        """Send bytes, or leave them for the writer: it is idle as long as it waits for an event."""
        if not data or self._end is not None:
            return
        if self._posted is not None and self._send_nowait is not None and not self._outbox:
            data = data[self._send_nowait(data) :]
            if not data:
                return
        self._outbox.append(data)
        if self._posted is not None:
            self._posted.set()

    def lose(self, reason: str) -> None:
        """End the channel: the sandbox can't be used any more."""
        if self._end is None:
            self.reason = reason
        self._finish(SandboxLost, f"The sandbox was lost: {reason}. Open a new one.")

    def close(self) -> None:
        """End the channel: its user is done."""
        self._finish(SandboxClosed, "The sandbox is closed; use it inside its `async with` block.")

    def _finish(self, kind: type[SandboxError], reason: str) -> None:
        if self._end is not None:
            return
        self._end = (kind, reason)
        self._greeted.set()
        for done in self._resets:
            done.set()
        for exchange in self._exchanges.values():
            exchange.wake()
        self._exchanges.clear()

    async def read(self) -> None:
        """Take what comes until the stream ends, one way or another."""
        reason = await self._read_to_end()
        cause = await self._cause()
        self.lose("; ".join(part for part in (reason, self._last_words, cause) if part))

    async def _read_to_end(self) -> str:
        try:
            while True:
                data = await self._stream.receive(_RECEIVE)
                for event in self.connection.receive(data):
                    self._dispatch(event)
        except anyio.EndOfStream:
            return "the guest ended"
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            return f"the link to it broke ({_said(error)})"
        except ProtocolError as error:
            return f"the guest broke the protocol ({error})"
        except Exception as error:  # noqa: BLE001  whatever a container sends, no task of the caller may end by it
            _log.exception("reading from a sandbox failed")
            return f"reading from it failed ({error!r})"

    async def _cause(self) -> str:
        with anyio.move_on_after(_EXPLAIN):
            try:
                return await self._explain()
            except Exception as error:  # noqa: BLE001  the engine may be what died; its answer is only an addition
                return f"the engine could not say why ({error})"
        return "the engine did not say why in time"

    def _dispatch(self, event: Event) -> None:
        match event:
            case CallEnded(call):
                exchange = self._exchanges.pop(call, None)
                if exchange is not None:
                    exchange.wake()
            case OutputReceived(call, stream, data):
                if call in self._exchanges:
                    self._exchanges[call].receive(stream, data)
            case InputWanted(call):
                if call in self._exchanges:
                    self._exchanges[call].input_wanted()
            case HelloReceived():
                self._greeted.set()
            case ResetDone():
                self._resets.popleft().set()
            case GuestDies(reason):
                self._last_words = f"it said: {reason}"

    async def write(self) -> None:
        """Send what is posted. Nobody's cancellation can cut a frame in two here."""
        try:
            while True:
                while not self._outbox:
                    self._posted = anyio.Event()
                    await self._posted.wait()
                    self._posted = None
                data = b"".join(self._outbox)
                self._outbox.clear()
                await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            # The reader sees the same end and knows more of it, if it sees it.
            await anyio.sleep(2 * _EXPLAIN)
            self.lose(f"the link to it broke ({_said(error)})")

    async def keep(self) -> None:
        """Renew the lease, and notice a guest that no longer answers."""
        while True:
            await anyio.sleep(self._tick)
            if self.connection.unanswered_pings >= _PATIENCE:
                self.lose("the guest does not answer any more")
            self._look_for_late_calls()
            if not self._outbox:
                self.post(self.connection.ping())

    def _look_for_late_calls(self) -> None:
        """Late twice: the answer may lie unread when this program's own event loop was blocked."""
        now = anyio.current_time()
        for exchange in list(self._exchanges.values()):
            is_late = exchange.deadline is not None and now > exchange.deadline and not exchange.stalled
            if is_late and exchange.late:
                self.lose("the guest did not answer a call long after its timeout")
            exchange.late = is_late


def _said(error: Exception) -> str:
    return str(error) or str(error.__cause__ or type(error).__name__)


@asynccontextmanager
async def open_channel(
    stream: ByteStream, *, lease: float, explain: Callable[[], Awaitable[str]]
) -> AsyncIterator[Channel]:
    """Run a channel's tasks around the block."""
    channel = Channel(stream, lease=lease, explain=explain)
    async with beside(channel.read, channel.write, channel.keep):
        try:
            yield channel
        finally:
            channel.close()
