"""Commands that don't want to end: what a timeout, a full process table and an empty memory leave behind."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import anyio

from sandbox.sandbox import Sandbox
from sandbox.selftest.check import REPORT, Context, expect
from sandbox.spec import ExecResult, Limits

BOMB = """#!/bin/sh
while :; do setsid /tmp/bomb 2>/dev/null & done
"""


def _marker() -> str:
    """A number of seconds that nobody else sleeps, by which the processes can be told."""
    return str(random.randrange(10**8, 10**9))


async def _count_inside(box: Sandbox, marker: str) -> int:
    command = f"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c '^[{marker[0]}]{marker[1:]}$'"
    return int((await box.run(command, user="0:0")).stdout.text)


def _command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:
            continue


def _count_on_host(marker: str) -> int:
    return sum(marker.encode() in line.split(b"\0") for line in _command_lines())


async def survivors(context: Context) -> str:
    """A timeout leaves nothing of its call alive, and touches nothing else."""
    doomed, innocent = _marker(), _marker()
    command = (
        f"setsid sleep {doomed} & "
        f"(setsid sh -c 'trap \"\" TERM HUP; sleep {doomed}; sleep {doomed}' &) ; "
        f"(sleep {doomed} &) ; trap '' TERM; sleep {doomed}; sleep {doomed}"
    )
    async with context.sandbox() as box:
        await box.run(f"sleep {innocent} & true")
        results: list[ExecResult] = []

        async def bystander() -> None:
            results.append(await box.run("sleep 3; echo unharmed", timeout=60))

        async with anyio.create_task_group() as group:
            group.start_soon(bystander)
            result = await box.run(command, timeout=1)
            left = (await _count_inside(box, doomed), _count_on_host(doomed))
        expect("the call", (result.status, result.exit_code), ("timed_out", 124), remedy=REPORT)
        expect("survivors (counted inside, on the host)", left, (0, 0), remedy=REPORT)
        expect("survivors that the guest knows of", result.survivors, 0, remedy=REPORT)
        expect("the concurrent call", results[0].stdout.text, "unharmed\n", remedy=REPORT)
        expect("the older background child", await _count_inside(box, innocent), 1, remedy=REPORT)
        seen_from_host = _count_on_host(innocent) > 0
    where = "inside and from the host" if seen_from_host else "inside (the host can't see this engine's processes)"
    return f"setsid, double fork, ignored SIGTERM: 0 survivors, counted {where}; bystanders live"


async def fork_bomb(context: Context) -> str:
    """A fork bomb ends with its call."""
    async with context.sandbox(limits=Limits(pids=64), user="65534:65534", workdir="/") as box:
        await box.write_file("/tmp/bomb", BOMB.encode(), mode=0o755)
        began = time.perf_counter()
        result = await box.run("trap '' TERM; /tmp/bomb & while :; do :; done", timeout=1)
        took = time.perf_counter() - began - 1
        seen = (result.status, result.survivors)
        expect("the bomb's call (status, survivors)", seen, ("timed_out", 0), remedy=REPORT)
        after = await box.run("echo well")
        expect("the next call", (after.status, after.stdout.text), ("exited", "well\n"), remedy=REPORT)
    return f"ended {took:.1f} s after its timeout{', by uid-wide kill' if result.swept else ''}; the next call works"


async def memory_hog(context: Context) -> str:
    """A command that takes all memory is reported as such, and costs nobody else anything."""
    async with context.sandbox(limits=Limits(memory="64MiB")) as box:
        result = await box.run("x=0123456789abcdef; while :; do x=$x$x; done", timeout=60)
        if not result.oom_known:
            return f"this runtime has no OOM counter: {result.status}, exit code {result.exit_code}"
        expect("the hog's status", result.status, "out_of_memory", remedy="Give the engine the memory controller.")
        after = await box.run("echo well")
        expect("the next call", (after.status, after.stdout.text), ("exited", "well\n"), remedy=REPORT)
    return "out_of_memory at 64 MiB; the next call works"
