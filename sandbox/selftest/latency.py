"""What a call costs, beside what it replaces: measured in turns, so that a busy host slows all sides alike."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable

import anyio.to_thread

from sandbox.docker.baseline import Baseline
from sandbox.selftest.check import Context, Failed, Skipped

ROUNDS = 4
CALLS = 50
EXECS = 5


async def latency(context: Context) -> str:
    """A call costs far less than `docker exec`, and about what a host subprocess costs."""
    address = context.engine.info.address
    if not address.startswith(("unix://", "tcp://")):
        raise Skipped(f"docker exec can't be measured at {address}")
    calls: list[float] = []
    execs: list[float] = []
    locals_: list[float] = []
    baseline = Baseline(address)
    try:
        async with context.sandbox() as box:
            once = baseline.timed_exec(box.container_id, ["/bin/sh", "-c", "true"])

            async def call() -> None:
                await box.run("true")

            async def docker_exec() -> None:
                await anyio.to_thread.run_sync(once)

            for _ in range(ROUNDS):
                calls += await _timed(call, CALLS)
                locals_ += [_local() for _ in range(CALLS)]
                execs += await _timed(docker_exec, EXECS)
    finally:
        baseline.close()
    ours, theirs, host = (statistics.median(times) * 1000 for times in (calls, execs, locals_))
    if ours >= theirs:
        raise Failed(
            "a call's median time",
            seen=f"{ours:.1f} ms",
            expected=f"less than docker exec's {theirs:.1f} ms",
            remedy="Look for what slows the engine's attach stream: a remote engine, or a proxy before it.",
        )
    return (
        f"{ours:.2f} ms; docker exec {theirs:.1f} ms ({theirs / ours:.0f} x), "
        f"host subprocess {host:.2f} ms ({ours / host:.1f} x)"
    )


async def _timed(function: Callable[[], Awaitable[None]], count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await function()
        times.append(time.perf_counter() - began)
    return times


def _local() -> float:
    began = time.perf_counter()
    subprocess.run(["/bin/sh", "-c", "true"], capture_output=True, check=True)
    return time.perf_counter() - began
