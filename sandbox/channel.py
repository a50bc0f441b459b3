"""One attached stream, driven by :mod:`sandbox.connection`: tasks that read, write and keep the lease.

What goes wrong here ends the channel and wakes every call with the reason; it never ends a task of the caller. A
call needs no task of its own: it leaves bytes for the writer and waits until the reader wakes it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ByteStream

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
from sandbox.engine import Death
from sandbox.errors import SandboxClosed, SandboxError, SandboxExhausted, SandboxLost
from sandbox.exchange import LATE, Exchange
from sandbox.shield import beside
from sandbox.wire import Hello, ProtocolError, Request

_TICK = 15.0
_PATIENCE = 10
"""Pings without an answer until the sandbox counts as lost: by then its lease has run out too."""
_EXPLAIN = 5.0
_RECEIVE = 256 * 1024

_log = logging.getLogger(__name__)


class Channel:
    """The stream of one sandbox, shared by its calls."""

    def __init__(self, stream: ByteStream, *, lease: float, explain: Callable[[], Awaitable[Death]]) -> None:
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
        exchange = Exchange(call, self.post, lambda: self.connection.cancel(call), patience)
        self._exchanges[call] = exchange
        self.post(data)
        return exchange

    async def abandon(self, exchange: Exchange, grace: float) -> None:
        """Kill a call's command and see it dead; a guest that doesn't answer to that is lost."""
        try:
            await exchange.abandon(grace)
        finally:
            if exchange.running:
                self.lose("the guest did not end a cancelled call in time")

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

    def lose(self, reason: str, kind: type[SandboxLost] = SandboxLost) -> None:
        """End the channel: the sandbox can't be used any more."""
        if self._end is None:
            self.reason = reason
            self._finish(kind, f"The sandbox was lost: {reason}. Open a new one.")

    def close(self) -> None:
        """End the channel: its user is done."""
        self._finish(SandboxClosed, "The sandbox is closed; use it inside its `async with` block.")

    def _finish(self, kind: type[SandboxError], reason: str) -> None:
        self._end = (kind, reason)
        self._greeted.set()
        for done in self._resets:
            done.set()
        for exchange in self._exchanges.values():
            exchange.lose(kind(reason))
        self._exchanges.clear()

    async def read(self) -> None:
        """Take what comes until the stream ends, one way or another."""
        reason = await self._read_to_end()
        death = await self._death()
        kind = SandboxExhausted if death.exhausted else SandboxLost
        self.lose("; ".join(part for part in (reason, self._last_words, death.cause) if part), kind)

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

    async def _death(self) -> Death:
        with anyio.move_on_after(_EXPLAIN):
            try:
                return await self._explain()
            except Exception as error:  # noqa: BLE001  the engine may be what died; its answer is only an addition
                return Death(f"the engine could not say why ({error})")
        return Death("the engine did not say why in time")

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
    stream: ByteStream, *, lease: float, explain: Callable[[], Awaitable[Death]]
) -> AsyncIterator[Channel]:
    """Run a channel's tasks around the block."""
    channel = Channel(stream, lease=lease, explain=explain)
    async with beside(channel.read, channel.write, channel.keep):
        try:
            yield channel
        finally:
            channel.close()
