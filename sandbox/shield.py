"""Cleanup that survives cancellation, with a deadline.

anyio's shields stop anyio's own cancellation. A raw ``Task.cancel()`` of asyncio (Atropos cancels its workers so, and
``asyncio.run`` everything at its end) goes through them, once for each call. So the step runs in a task of its own,
and whoever waits for it waits again after each interruption and passes it on when the step is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

T = TypeVar("T")
Step = Callable[[], Coroutine[Any, Any, object]]


async def finish(step: Step, *, deadline: float) -> bool:
    """Carry ``step`` out although the caller is, or gets, cancelled; then the cancellation goes on.

    Returns False when ``deadline`` seconds did not suffice. ``step`` is called anew when the event loop's own end
    cancels it, so it must be one that can be done twice.
    """
    if _in_asyncio_task():
        return await _finish_on_asyncio(step, deadline)
    return await _bounded(step, deadline, shield=True)


async def in_thread(function: Callable[[], T]) -> T:
    """Run a short blocking function in a worker thread; a cancelled caller goes on when the thread is done.

    So nothing is written behind the back of a cleanup that follows.
    """
    if not _in_asyncio_task():
        return await anyio.to_thread.run_sync(function)
    interruption: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        future = asyncio.get_running_loop().run_in_executor(None, function)
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError as error:
                interruption = interruption or error
    if interruption is not None:
        raise interruption from future.exception()
    return future.result()


async def _bounded(step: Step, deadline: float, *, shield: bool = False) -> bool:
    with anyio.move_on_after(deadline, shield=shield) as scope:
        await step()
    return not scope.cancelled_caught


async def _finish_on_asyncio(step: Step, deadline: float) -> bool:
    end = anyio.current_time() + deadline
    interruption: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        task = asyncio.create_task(_bounded(step, deadline))
        while not task.done() or task.cancelled():
            if task.cancelled():
                task = asyncio.create_task(_bounded(step, end - anyio.current_time()))
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                interruption = interruption or error
    if interruption is not None:
        raise interruption from task.exception()
    return task.result()


def _in_asyncio_task() -> bool:
    # Trio's guest mode may have a loop of asyncio around it, but none of its tasks.
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


async def _within(scope: anyio.CancelScope, step: Step) -> None:
    with scope:
        await step()


@asynccontextmanager
async def beside(*steps: Step) -> AsyncIterator[TaskGroup]:
    """Run tasks beside the block and cancel them at its end, not before: its cleanup may need them.

    They must not raise. The block's own exception comes out as it is, where a task group would wrap it in a group.
    """
    failure: BaseException | None = None
    scopes = [anyio.CancelScope(shield=True) for _ in steps]
    try:
        async with anyio.create_task_group() as tasks:
            for step, scope in zip(steps, scopes, strict=True):
                tasks.start_soon(_within, scope, step)
            try:
                yield tasks
            except BaseException as error:  # noqa: BLE001  raised again below, outside of the group
                failure = error
            tasks.cancel_scope.cancel()
            for scope in scopes:
                scope.cancel()
        if failure is not None:
            raise failure
    finally:
        del failure  # its traceback holds this frame
