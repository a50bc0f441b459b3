"""The memory that the guest adds to an idle sandbox, and what a flood of output costs the controlling process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import anyio

from sandbox.bench.bench import Bench
from sandbox.bench.figure import NotHere, Samples, Seen
from sandbox.bench.proc import check_is_here, kernel_memory, resident
from sandbox.docker.baseline import Baseline
from sandbox.docker.config import create_config
from sandbox.plan import plan_container

_WORK = "head -c 2000000 /dev/zero; head -c 2000000 /dev/zero >&2"


async def idle(bench: Bench) -> Sequence[Seen]:
    """Everything that PID 1 of an idle sandbox holds, as if a container needed no PID 1 at all.

    That is its resident memory, counted whole although the pages of its binary are shared by all sandboxes of a host,
    and what the kernel holds for it beyond what it holds for the same container with the image's own shell as PID 1,
    which waits for its input. The sandbox has worked before: buffers that were filled once count.
    """
    rounds = bench.count(5, 1)
    ours: list[float] = []
    shells: list[float] = []
    binary: list[float] = []
    with bench.baseline() as baseline:
        for done in range(rounds):
            bench.tick(done, rounds)
            used, anonymous, kernel = await _of_guest(bench, baseline)
            shell_used, shell_kernel = await _of_shell(bench, baseline)
            ours.append(used + max(0, kernel - shell_kernel))
            shells.append(shell_used)
            binary.append(used - anonymous)
    mine = Samples.of("guest, all of it", "B", ours)
    note = f"{max(binary) / 1024:.0f} KiB of it are pages of its binary, which all sandboxes of a host share"
    return [Seen(mine.median, mine, Samples.of("the image's sh as PID 1", "B", shells), note)]


async def _of_guest(bench: Bench, baseline: Baseline) -> tuple[int, int, int]:
    async with bench.sandbox() as box:
        guest = baseline.process_id(box.container_id)
        check_is_here(guest, box.container_id)
        for _ in range(20):
            await box.run("true")
        await box.run(_WORK)
        await anyio.sleep(0.1)
        used, anonymous = resident(guest)
        return used, anonymous, kernel_memory(guest)


async def _of_shell(bench: Bench, baseline: Baseline) -> tuple[int, int]:
    spec = bench.spec()
    plan = plan_container(spec, await bench.engine.image(spec.image), bench.engine.info)
    config = create_config(plan, bench.engine.guest_volume, None) | {"Entrypoint": ["/bin/sh", "-c", "read line"]}
    try:
        with baseline.started(plan.name, config) as (container, _):
            await anyio.sleep(0.2)
            shell = baseline.process_id(container)
            return resident(shell)[0], kernel_memory(shell)
    finally:
        await bench.engine.remove(plan.name)


async def flood(bench: Bench) -> Sequence[Seen]:
    """How far the controlling process grows at its peak while a command prints, unwatched and watched by a callback
    that drops everything; each in a process of its own, where no earlier measurement has left free memory."""
    size = bench.count(10**9, 10**7)
    seen = []
    for step, way in enumerate(("kept", "watched")):
        bench.tick(step, 2)
        answer = await _flooded(bench, size, way)
        if answer["grown"] is None:
            raise NotHere("the peak of a process's memory can't be read on this system")
        growth = Samples.of(f"{size / 1e6:.0f} MB, {way}", "B", [answer["grown"]])
        rate = size / answer["seconds"] / 1e6
        seen.append(Seen(growth.worst, growth, note=f"{answer['before'] / 2**20:.0f} MiB before; {rate:.0f} MB/s"))
    return seen


async def _flooded(bench: Bench, size: int, way: str) -> dict[str, float]:
    command = [sys.executable, "-m", "sandbox.bench.flooded", bench.engine.info.address, bench.image, str(size), way]
    # In a session of its own: Ctrl-C is for this process, which ends that one.
    done = await anyio.run_process(command, stderr=subprocess.PIPE, check=False, start_new_session=True)
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise RuntimeError(f"the flooded process ended with {done.returncode} ({''.join(last)})")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer
