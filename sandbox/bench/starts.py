"""What a start costs beyond the engine's own part: the whole way to a sandbox that serves, beside create, attach and
start by the raw API with the very same options."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sandbox.bench.bench import Bench
from sandbox.bench.figure import Samples, Seen, times_as_much
from sandbox.docker.baseline import Baseline
from sandbox.docker.config import create_config
from sandbox.plan import plan_container


async def start(bench: Bench) -> Sequence[Seen]:
    """Ours ends when the guest has said hello and checked user and directory, the raw API's when the engine answers."""
    rounds = bench.count(40, 2)
    ours: list[float] = []
    raw: list[float] = []
    with bench.baseline() as baseline:
        await _ours(bench)  # puts the guest's volume there, if it isn't yet
        await _raw(bench, baseline)
        for done in range(rounds):
            bench.tick(done, rounds)
            ours.append(await _ours(bench))
            raw.append(await _raw(bench, baseline))
    sides = Samples.of("Sandbox.open", "s", ours), Samples.of("create, attach, start", "s", raw)
    return [times_as_much(*sides, note="network none; each is gone before the next one starts")]


async def _ours(bench: Bench) -> float:
    began = time.perf_counter()
    async with bench.sandbox():
        return time.perf_counter() - began


async def _raw(bench: Bench, baseline: Baseline) -> float:
    spec = bench.spec()
    plan = plan_container(spec, await bench.engine.image(spec.image), bench.engine.info)
    config = create_config(plan, bench.engine.guest_volume, None)
    try:
        with baseline.started(plan.name, config) as (_, seconds):
            return seconds
    finally:
        await bench.engine.remove(plan.name)
