"""One cancellation at each await point of open, run, transfers and close; nothing may be left by any of them.

The coroutine under test is stepped by hand: its suspensions are counted, and at the n-th one it is cancelled, natively
(``Task.cancel()``, which no shield of anyio's stops) or by a cancel scope. n grows until the coroutine ends by itself.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sandbox import Sandbox, SandboxSpec, open_sandbox
from sandbox.docker import DockerEngine
from sandbox.owner import Owner
from sandbox.testing import FakeEngine

pytestmark = pytest.mark.anyio

AT_ONCE = 8.0
"""Seconds: less than a cleanup takes that waits for somebody who was cancelled too."""

Scenario = Callable[[], Coroutine[Any, Any, object]]
Cancel = Callable[[], object]


class Steps:
    """Counts a coroutine's suspensions and cancels at some of them."""

    def __init__(self, at: range) -> None:
        self.taken = 0
        self._at = at

    @types.coroutine
    def run(self, coroutine: Coroutine[Any, Any, object], cancel: Cancel) -> Generator[Any, Any, object]:
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = coroutine.send(value) if error is None else coroutine.throw(error)
            except StopIteration as end:
                return end.value
            self.taken += 1
            if self.taken in self._at:
                cancel()
            value, error = None, None
            try:
                value = yield waits_for
            except BaseException as raised:  # noqa: BLE001  thrown into the coroutine at the next turn
                error = raised


def natively(scenario: Scenario, steps: Steps) -> Awaitable[bool]:
    """Cancel with ``Task.cancel()``; whether the cancellation came out."""

    async def call() -> bool:
        async def body() -> None:
            task = asyncio.current_task()
            assert task is not None
            await steps.run(scenario(), task.cancel)

        task = asyncio.create_task(body())
        await asyncio.wait({task})
        if task.cancelled():
            return True
        task.result()
        return False

    return call()


def by_scope(scenario: Scenario, steps: Steps) -> Awaitable[bool]:
    """Cancel with a cancel scope."""

    async def call() -> bool:
        with anyio.CancelScope() as scope:
            await steps.run(scenario(), scope.cancel)
        return scope.cancelled_caught

    return call()


WAYS = {"natively": natively, "by scope": by_scope}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, anyio_backend: str) -> Callable[[Scenario, Steps], Awaitable[bool]]:
    if request.param == "natively" and anyio_backend != "asyncio":
        pytest.skip("only asyncio can cancel a task natively")
    return WAYS[request.param]


@pytest.fixture(params=[1, 4], ids=["once", "four times"])
def times(request: pytest.FixtureRequest) -> int:
    return int(request.param)


async def settle() -> None:
    """Let tasks that were told to end do so."""
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
    await anyio.sleep(0.001)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        import trio

        return trio.lowlevel.current_statistics().tasks_living


@asynccontextmanager
async def leaving_nothing() -> AsyncIterator[None]:
    await settle()
    before = descriptors(), tasks()
    yield
    await settle()
    assert (descriptors(), tasks()) == before


async def cancel_at_each_step(scenario: Scenario, way: Any, times: int, check: Callable[[], Awaitable[None]]) -> int:
    """Run the scenario once for each of its await points."""
    for point in range(1, 10_000):
        steps = Steps(range(point, point + times))
        async with leaving_nothing():
            began = anyio.current_time()
            cancelled = await way(scenario, steps)
            assert anyio.current_time() - began < AT_ONCE
            await settle()
            await check()
        if steps.taken < point:
            assert not cancelled
            return point - 1
        # A scope that is cancelled during the last, shielded steps has nothing left to interrupt; a task is told.
        assert cancelled or way is by_scope, f"the cancellation at step {point} was swallowed"
    raise AssertionError("the scenario never ended by itself")


async def test_a_cancelled_sandbox_leaves_no_container(way, times):
    async with FakeEngine() as engine:

        async def scenario() -> None:
            async with open_sandbox(SandboxSpec(image="any"), engine=engine) as box:
                await box.run("echo hi")

        async def check() -> None:
            assert engine.containers_by_name == {}

        assert await cancel_at_each_step(scenario, way, times, check) >= 7


async def test_a_cancelled_sandbox_of_a_failing_body_leaves_no_container(way):
    async with FakeEngine() as engine:

        async def scenario() -> None:
            try:
                async with open_sandbox(SandboxSpec(image="any"), engine=engine):
                    raise LookupError
            except LookupError:
                pass

        async def check() -> None:
            assert engine.containers_by_name == {}

        assert await cancel_at_each_step(scenario, way, 1, check) >= 7


CALLS: dict[str, Callable[[Sandbox, Path], Awaitable[object]]] = {
    "run": lambda box, folder: box.run("sleep 0.02; echo done"),
    "run with stdin": lambda box, folder: box.run("cat", stdin=bytes(600_000)),
    "run with a source": lambda box, folder: box.run("cat", stdin=source()),
    "run with a watcher": lambda box, folder: box.run("head -c 600000 /dev/zero", on_output=watch),
    "stream": lambda box, folder: iterate(box),
    "read": lambda box, folder: box.read_file("/tmp/large"),
    "write": lambda box, folder: box.write_file("/tmp/other", bytes(600_000)),
    "upload": lambda box, folder: box.upload(folder / "tree", "/tmp/tree"),
    "download": lambda box, folder: download(box, folder / "back"),
    "reset": lambda box, folder: box.reset(),
}


async def source() -> AsyncIterator[bytes]:
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
        yield bytes(100_000)


async def watch(_stream: str, _data: bytes) -> None:
    await anyio.lowlevel.checkpoint()


async def iterate(box: Sandbox) -> None:
    async with box.stream("head -c 600000 /dev/zero") as running:
        async for _chunk in running:
            await anyio.lowlevel.checkpoint()


async def download(box: Sandbox, place: Path) -> None:
    if place.exists():
        for path in sorted(place.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    await box.download("/tmp/down", place)


@pytest.mark.parametrize("name", CALLS)
async def test_a_cancelled_call_is_dead_and_the_next_one_is_served(way, times, name, tmp_path):
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "file").write_bytes(bytes(600_000))
    async with FakeEngine() as engine, open_sandbox(SandboxSpec(image="any", grace=0), engine=engine) as box:
        await box.write_file("/tmp/large", bytes(600_000))
        await box.upload(tmp_path / "tree", "/tmp/down")
        # Threads and their selectors come with the first use.
        await CALLS[name](box, tmp_path)
        container = engine.container(box.container_id)

        async def scenario() -> None:
            await CALLS[name](box, tmp_path)

        async def check() -> None:
            assert container.open_calls == 0
            assert (await box.run("echo next")).stdout.text == "next\n"
            assert not box.closed
            assert {path.name for path in tmp_path.iterdir()} <= {"tree", "back"}

        assert await cancel_at_each_step(scenario, way, times, check) >= 1


async def test_a_guest_that_ignores_a_cancel_is_lost_and_holds_nobody_up(way, monkeypatch):
    monkeypatch.setattr("sandbox.exchange.DEATH", 0.2)
    async with FakeEngine() as engine, open_sandbox(SandboxSpec(image="any", grace=0), engine=engine) as box:

        async def scenario() -> None:
            await box.run("sleep 100")

        engine.container(box.container_id).stall()
        with anyio.fail_after(5):
            assert await way(scenario, Steps(range(1, 2)))
        assert box.closed


async def test_cancelling_everything_at_the_end_of_the_loop_leaves_nothing(anyio_backend):
    if anyio_backend != "asyncio":
        pytest.skip("of asyncio's own end")
    await anyio.to_thread.run_sync(run_until_interrupted)


def run_until_interrupted() -> None:
    """``asyncio.run`` cancels all tasks at its end, those of a cleanup too."""
    engines: list[FakeEngine] = []

    async def hold(engine: FakeEngine, ready: asyncio.Event) -> None:
        async with open_sandbox(SandboxSpec(image="any"), engine=engine) as box:
            ready.set()
            await box.run("sleep 100")

    async def main() -> None:
        engine = FakeEngine()
        engines.append(engine)
        ready = asyncio.Event()
        async with engine:
            held = asyncio.create_task(hold(engine, ready))
            await ready.wait()
            held.cancel()
            await asyncio.sleep(0)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                if "finish" in repr(task.get_coro()) or "bounded" in repr(task.get_coro()):
                    task.cancel()
            await asyncio.wait({held})
            assert engine.containers_by_name == {}

    asyncio.run(main())
    assert engines[0].containers_by_name == {}


def ours(containers: list[Any]) -> list[str]:
    here = Owner.current()
    return [one.name for one in containers if Owner.from_labels(one.labels) == here]


@pytest.mark.engine
@pytest.mark.slow
async def test_a_cancelled_sandbox_leaves_no_container_on_a_real_engine(way):
    async with DockerEngine(sweeping=False) as engine:

        async def scenario() -> None:
            async with open_sandbox(SandboxSpec(image="shell-agent-sandbox/minimal:latest"), engine=engine) as box:
                await box.run("sleep 0.05")

        await scenario()  # the guest's volume and the threads come with the first one

        async def check() -> None:
            assert ours(await engine.containers()) == []

        assert await cancel_at_each_step(scenario, way, 1, check) > 5
