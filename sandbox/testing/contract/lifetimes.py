"""What ends, and what goes on: timeouts, cancellation, background children, resets, the sandbox itself."""

from __future__ import annotations

import time

import anyio
import anyio.lowlevel

from sandbox.errors import SandboxClosed
from sandbox.sandbox import Sandbox
from sandbox.spec import ExecResult
from sandbox.testing.contract.base import OpenBox, raises, raising


async def a_timeout_kills_and_spares_the_sandbox(open_box: OpenBox) -> None:
    """What was printed before is kept."""
    async with open_box() as box:
        began = time.monotonic()
        result = await box.run("echo before; sleep 100", timeout=0.3)
        assert (result.status, result.exit_code) == ("timed_out", 124), result
        assert result.stdout.text == "before\n"
        assert time.monotonic() - began < 10
        assert (await box.run("echo next")).stdout.text == "next\n"


async def a_cancelled_call_is_dead_when_its_caller_goes_on(open_box: OpenBox) -> None:
    """And the sandbox serves the next one."""
    async with open_box() as box:
        with anyio.move_on_after(0.3) as scope:
            await box.run("sleep 3; echo alive > /tmp/alive")
        assert scope.cancelled_caught
        await anyio.sleep(3)
        assert (await box.run("test -e /tmp/alive")).exit_code == 1


async def calls_run_side_by_side(open_box: OpenBox) -> None:
    """A slow one delays no other."""
    async with open_box() as box:
        done: list[str] = []

        async def call(seconds: float, name: str) -> None:
            result = await box.run(f"sleep {seconds}; echo {name}")
            done.append(result.stdout.text.strip())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, 1, "slow")
            for number in range(8):
                tasks.start_soon(call, 0, f"quick{number}")
        assert done[-1] == "slow"
        assert sorted(done[:-1]) == [f"quick{number}" for number in range(8)]


async def a_background_child_delays_nothing(open_box: OpenBox) -> None:
    """It goes on, and is told."""
    async with open_box() as box:
        began = time.monotonic()
        result = await box.run("sleep 30 & echo done")
        assert result.stdout.text == "done\n"
        assert result.background
        assert time.monotonic() - began < 10
        assert not (await box.run("true")).background


async def a_reset_kills_everything(open_box: OpenBox) -> None:
    """Calls that run are told, files stay."""
    async with open_box() as box:
        await box.write_file("/tmp/stays", b"")
        results: list[ExecResult] = []

        async def call() -> None:
            results.append(await box.run("sleep 100"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await box.run("sleep 100 & true")
            await anyio.sleep(0.3)
            await box.reset()
        assert [result.status for result in results] == ["killed"], results
        assert results[0].reason
        assert (await box.run("test -e /tmp/stays")).ok


async def a_closed_sandbox_says_so(open_box: OpenBox) -> None:
    """To each call, also to one that still ran."""
    outcome: list[type[BaseException]] = []

    async def call(box: Sandbox) -> None:
        try:
            await box.run("sleep 100")
        except SandboxClosed as error:
            outcome.append(type(error))

    async with anyio.create_task_group() as tasks:
        async with open_box() as box:
            assert not box.closed
            tasks.start_soon(call, box)
            await box.run("true")
    assert box.closed
    assert outcome == [SandboxClosed]
    await raises(SandboxClosed, box.run("true"))
    await raises(SandboxClosed, box.read_file("/etc/passwd"))
    await raises(SandboxClosed, box.reset())


async def an_exception_of_the_block_comes_out_as_it_is(open_box: OpenBox) -> None:
    """In no group, whatever tasks the sandbox has."""
    with raising(LookupError):
        async with open_box() as box:
            await box.run("true")
            raise LookupError
