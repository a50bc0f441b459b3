"""Where the SDK's blocking calls run: a bounded number of threads for each kind of work.

anyio's own worker threads would not do: on asyncio a natively cancelled call gives its place in the limiter back while
its thread still runs, so cancelled starts would pile up threads. Here a job keeps its thread until it ends, whoever
stopped waiting for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint_if_cancelled, current_token

T = TypeVar("T")


class Workers:
    """At most ``count`` threads, made when they are needed. Usable from any event loop."""

    def __init__(self, name: str, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, function: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
        """Run ``function``. A cancelled caller leaves at once; a function that has begun goes on to its end.

        ``discard`` gets the result that nobody waits for any more, in the thread.
        """
        await checkpoint_if_cancelled()
        job = _Job(function, discard)
        future = self._pool.submit(job)
        try:
            await job.done.wait()
        except BaseException:
            future.cancel()
            job.abandon()
            raise
        return job.result()

    async def finish(self, function: Callable[[], T]) -> T:
        """Run ``function`` to its end whatever cancels the caller, then raise the cancellation.

        A shield stops anyio's cancellation only; ``Task.cancel()`` interrupts each wait once, so the wait is resumed.
        The function itself must be bounded in time.
        """
        job = _Job(function)
        self._pool.submit(job)
        interruption: BaseException | None = None
        with anyio.CancelScope(shield=True):
            while not job.done.is_set():
                try:
                    await job.done.wait()
                except anyio.get_cancelled_exc_class() as error:
                    interruption = error
        if interruption is not None:
            raise interruption
        await checkpoint_if_cancelled()
        return job.result()

    def close(self) -> None:
        """Take no more work; what has begun goes on, what has not never will."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Job(Generic[T]):
    """One function on its way through a thread, and the event that tells the event loop that it is over."""

    def __init__(self, function: Callable[[], T], discard: Callable[[T], object] | None = None) -> None:
        self._function = function
        self._discard = discard
        self._lock = threading.Lock()
        self._abandoned = False
        self._values: list[T] = []
        self._error: BaseException | None = None
        self._soon = _call_soon()
        self.done = anyio.Event()

    def __call__(self) -> None:
        """The thread's part."""
        try:
            value = self._function()
        except BaseException as error:  # noqa: BLE001  it is raised where the result is asked for
            self._error = error
        else:
            with self._lock:
                self._values.append(value)
                if self._abandoned:
                    self._throw_away()
        # RuntimeError: the event loop is gone, and with it whoever waited.
        with contextlib.suppress(RuntimeError):
            self._soon(self.done.set)

    def abandon(self) -> None:
        """Nobody will ask for the result."""
        with self._lock:
            self._abandoned = True
            self._throw_away()

    def result(self) -> T:
        """What the function returned or raised; to be asked for once, when it is done."""
        error, self._error = self._error, None
        if error is None:
            return self._values.pop()
        try:
            raise error
        finally:
            del error, self  # the error's traceback holds this frame

    def _throw_away(self) -> None:
        while self._values:
            value = self._values.pop()
            if self._discard is not None:
                self._discard(value)


def _call_soon() -> Callable[[Callable[[], Any]], object]:
    """This event loop's way to be called from a thread; unlike anyio's it never blocks the thread."""
    loop: Any = current_token().native_token
    return loop.call_soon_threadsafe if isinstance(loop, asyncio.AbstractEventLoop) else loop.run_sync_soon
