"""One call on its way over a channel: what came for it and was not taken yet, and what it still has to send.

It is the caller's end. The channel's reader fills and wakes it; nothing here waits for the stream itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Literal

import anyio
from anyio.lowlevel import checkpoint

from sandbox.connection import Call
from sandbox.errors import SandboxError
from sandbox.shield import finish
from sandbox.wire import STDOUT, Exit

StreamName = Literal["stdout", "stderr"]
Post = Callable[[bytes], None]

LATE = 30.0
"""Seconds that a call's outcome may be later than its own timeout and grace before the sandbox counts as lost."""

DEATH = 10.0
"""Seconds beyond the grace in which the guest must have ended a cancelled call: it may be a fork bomb."""

_PIECES = 512


class Exchange:
    """One call on its way: what came for it and was not taken yet."""

    def __init__(self, call: Call, post: Post, cancel: Callable[[], bytes], patience: float | None) -> None:
        self.call = call
        self.deadline = None if patience is None else anyio.current_time() + patience
        self.late = False
        self.abandoned = False
        self._post = post
        self._cancel = cancel
        self._output: deque[tuple[int, bytearray]] = deque()
        self._owed = 0
        self._handed_at: float | None = None
        self._failure: Exception | None = None
        self._lost = False
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
            self._post(self.call.taken(self._owed))
            self._owed = 0
        self._excuse()
        if self._output:
            await checkpoint()  # a quick command and a quick callback must not keep the event loop from everything else
        while not self._output:
            if self.call.exit is not None:
                return None
            self.check()
            await self._sleep()
        stream, data = self._output.popleft()
        self._owed = len(data)
        self._handed_at = anyio.current_time()
        return "stdout" if stream == STDOUT else "stderr", bytes(data)

    def _excuse(self) -> None:
        """The call may end later by as long as its caller took. By more, and a guest that sends a byte now and then
        would keep its caller for ever."""
        if self.deadline is not None and self._handed_at is not None:
            self.deadline += anyio.current_time() - self._handed_at
        self._handed_at = None

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
        self._post(self.call.sendable())

    async def abandon(self, grace: float) -> None:
        """Kill the call's command and see it dead, whatever cancels this, if the guest answers in time."""
        if not self.running:
            return
        self.abandoned = True
        self._post(self._cancel())
        self._post(self.call.taken(self._owed + sum(len(data) for _stream, data in self._output)))
        self._output.clear()
        await finish(self._until_dead, deadline=grace + DEATH)

    @property
    def running(self) -> bool:
        """Whether an outcome may still come."""
        return self.call.exit is None and not self._lost

    @property
    def stalled(self) -> bool:
        """Whether the call waits for its own caller."""
        return bool(self._output or self._owed)

    def lose(self, error: SandboxError) -> None:
        """No outcome will come."""
        self._lost = True
        self._failure = error
        self.wake()

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
            self._post(self.call.taken(len(data)))
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
            if not self.running or self.abandoned:
                return False
            self._room = anyio.Event()
            await self._room.wait()
        return True

    def check(self) -> None:
        """Raise what kept the call from its end, if anything did."""
        if self.call.exit is None and self._failure is not None:
            raise self._failure

    async def _sleep(self) -> None:
        self._wake = anyio.Event()
        await self._wake.wait()

    async def _until_dead(self) -> None:
        while self.running:
            await self._sleep()
