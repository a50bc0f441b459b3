"""Blocking work in threads: who stops waiting, and what becomes of the work."""

from __future__ import annotations

import asyncio
import threading
import time

import anyio
import anyio.to_thread
import pytest

from sandbox.docker.threads import Workers

pytestmark = pytest.mark.anyio


@pytest.fixture
def workers():
    made = Workers("test", 2)
    yield made
    made.close()


async def test_a_result_and_an_error_come_back(workers):
    assert await workers.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await workers.run(lambda: 1 // 0)


async def test_threads_are_bounded_however_much_is_asked(workers):
    running: set[int] = set()

    def work():
        running.add(threading.get_ident())
        time.sleep(0.002)

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(workers.run, work)
    assert len(running) <= 2


async def test_a_cancelled_caller_leaves_at_once_and_the_work_goes_on(workers):
    release, ended = threading.Event(), threading.Event()

    def work():
        release.wait(10)
        ended.set()

    with anyio.move_on_after(0.05):
        await workers.run(work)
    assert not ended.is_set()
    release.set()
    assert await anyio.to_thread.run_sync(ended.wait, 10)


async def test_a_result_that_nobody_waits_for_is_discarded(workers):
    release, discarded = threading.Event(), threading.Event()

    with anyio.move_on_after(0.05):
        await workers.run(lambda: release.wait(10), lambda _: discarded.set())
    release.set()
    assert await anyio.to_thread.run_sync(discarded.wait, 10)


async def test_work_that_was_not_begun_never_is(workers):
    release = threading.Event()
    begun: list[int] = []
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(workers.run, lambda: release.wait(10))
        await anyio.sleep(0.05)
        with anyio.move_on_after(0.05):
            await workers.run(lambda: begun.append(1))
        release.set()
    await workers.run(lambda: None)
    assert not begun


async def test_finish_outlasts_a_cancelled_scope(workers):
    ended: list[int] = []

    def slowly():
        time.sleep(0.2)
        ended.append(1)

    with anyio.CancelScope() as scope:
        scope.cancel()
        await workers.finish(slowly)
        pytest.fail("the cancellation did not go on")
    assert ended == [1]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_finish_outlasts_native_cancels(workers, anyio_backend):
    ended: list[int] = []

    def slowly():
        time.sleep(0.2)
        ended.append(1)

    task = asyncio.create_task(workers.finish(slowly))
    for _ in range(3):
        await asyncio.sleep(0.03)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [1]


def test_work_that_outlives_its_event_loop_ends_quietly():
    workers = Workers("test", 1)
    release, ended = threading.Event(), threading.Event()

    def work():
        release.wait(10)
        ended.set()

    async def main():
        with anyio.move_on_after(0.05):
            await workers.run(work)

    anyio.run(main)
    release.set()
    assert ended.wait(10)
    workers.close()
