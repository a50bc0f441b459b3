"""What a call costs, beside a host subprocess and beside ``docker exec``: time, and CPU of everything it keeps busy."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from sandbox.bench.bench import Bench, in_turns
from sandbox.bench.figure import Samples, Seen, times_as_much, times_less
from sandbox.bench.proc import check_is_here, engine_processes, total_cpu
from sandbox.bench.shell import shell_of

SCRIPT = "true"
CALLS_TO_AN_EXEC = 10
_ARGV = ["/bin/sh", "-c", SCRIPT]


async def call(bench: Bench) -> Sequence[Seen]:
    """``box.run`` over ``subprocess.run``, with the same things asked of both: the exit code, both outputs, no input,
    a timeout."""
    async with bench.sandbox() as box, shell_of(box) as (shell, note):

        async def ours() -> None:
            await box.run(SCRIPT)

        async def host() -> None:
            # Blocking, as a program without a sandbox has it; a thread would only add to its time.
            subprocess.run(  # noqa: ASYNC221
                _ARGV, executable=shell, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60
            )

        times = await in_turns(bench.count(1000, 20), ours, host, tick=bench.tick, warm_up=20)
    return [times_as_much(Samples.of("box.run", "s", times[0]), Samples.of("subprocess.run", "s", times[1]), note)]


async def exec_(bench: Bench) -> Sequence[Seen]:
    """``box.run`` and ``docker exec`` in the same container; ten calls to an exec, since what an exec leaves the engine
    to tidy up after it falls on whatever comes next, and is none of its cost."""
    async with bench.sandbox() as box:
        with bench.baseline() as baseline:
            once = baseline.timed_exec(box.container_id, _ARGV)

            async def ours() -> None:
                await box.run(SCRIPT)

            async def docker_exec() -> None:
                once()

            times = await in_turns(bench.count(60, 3), *[ours] * CALLS_TO_AN_EXEC, docker_exec, tick=bench.tick)
    *calls, execs = times
    mine = Samples.of("box.run", "s", [seconds for turn in zip(*calls, strict=True) for seconds in turn])
    return [times_less(mine, Samples.of("docker exec", "s", execs))]


async def cpu(bench: Bench) -> Sequence[Seen]:
    """CPU time a call, of this process, the guest and its children, the shim, containerd and dockerd.

    /proc counts in ticks of 10 ms, so many calls are measured at once, in blocks that alternate.
    """
    calls, execs, blocks = bench.count(300, 100), bench.count(20, 3), bench.count(10, 2)
    ours: list[float] = []
    theirs: list[float] = []
    async with bench.sandbox() as box:
        with bench.baseline() as baseline:
            guest = baseline.process_id(box.container_id)
            check_is_here(guest, box.container_id)
            pids = [guest, *engine_processes(bench.engine.info.address, guest)]
            docker_exec = baseline.timed_exec(box.container_id, _ARGV)
            docker_exec()
            for block in range(blocks):
                bench.tick(block, blocks)
                before = total_cpu(pids)
                for _ in range(calls):
                    await box.run(SCRIPT)
                between = total_cpu(pids)
                for _ in range(execs):
                    docker_exec()
                ours.append((between - before) / calls)
                theirs.append((total_cpu(pids) - between) / execs)
    note = f"blocks of {calls} calls and {execs} execs; this process, guest, shim, containerd, dockerd, all children"
    return [times_less(Samples.of("box.run", "s", ours), Samples.of("docker exec", "s", theirs), note)]
