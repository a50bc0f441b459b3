"""SIGKILL of the controlling process at random instants, its start included: how long until no container runs, and
what is left of any state after a sweep."""

from __future__ import annotations

import random
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import anyio
from anyio.abc import Process

from sandbox.bench.bench import Bench
from sandbox.bench.figure import Samples, Seen
from sandbox.docker.baseline import Baseline
from sandbox.selftest.leak import labelled, victim_command
from sandbox.shield import finish
from sandbox.sweep import sweep

QUIET = 0.3
"""Seconds without a running container after which none comes any more: a request may still have been on its way."""

POLL = 0.02
BOUND = 20.0
"""Seconds until we stop waiting for a container; the run then counts with so much."""

SERVING_SHARE = 1.6
"""The instants are spread over so many times what an opening takes, so about a third fall on a sandbox that serves."""


@dataclass(frozen=True, slots=True)
class _Kill:
    pid: int
    was_serving: bool
    gone_after: float | None
    """Seconds from the SIGKILL until no container ran; None when none ran at all."""
    left: int
    """Containers of any state after the sweep."""


async def kill(bench: Bench) -> Sequence[Seen]:
    """Each run is a process of its own that opens a sandbox and is killed; a sweep follows each."""
    with bench.baseline() as baseline:
        try:
            return await _kill_all(bench, baseline)
        except BaseException:
            # The last one killed may have been about to start a container that nobody sweeps then.
            await finish(partial(_sweep_late, bench), deadline=10)
            raise


async def _kill_all(bench: Bench, baseline: Baseline) -> Sequence[Seen]:
    runs = bench.count(100, 3)
    span = SERVING_SHARE * statistics.median([await _opening_time(bench) for _ in range(bench.count(5, 1))])
    # Stratified: at random, and yet no stretch of the way is left out by chance.
    instants = [(run + random.random()) / runs * span for run in range(runs)]
    random.shuffle(instants)
    kills = []
    for done, instant in enumerate(instants):
        bench.tick(done, runs)
        kills.append(await _kill_at(bench, baseline, instant))
    await anyio.sleep(1)
    return _seen(kills, late=sum(baseline.owned_by(one.pid) for one in kills))


def _seen(kills: Sequence[_Kill], late: int) -> list[Seen]:
    serving = sum(one.was_serving for one in kills)
    ran = [one.gone_after for one in kills if one.gone_after is not None]
    gone = Samples.of("gone after SIGKILL", "s", ran or [0.0])
    left = Samples.of("left after the sweep", "", [one.left for one in kills])
    note = f"{len(kills)} kills, {len(kills) - serving} of them during create and start; a container ran in {len(ran)}"
    return [
        Seen(gone.worst, gone, note=note),
        Seen(sum(left.values) + late, left, note="containers of any state, all kills together"),
    ]


async def _sweep_late(bench: Bench) -> None:
    await anyio.sleep(QUIET)
    await sweep(bench.engine)


async def _victim(bench: Bench, token: str) -> Process:
    command = victim_command(bench.engine.info.address, bench.image, token)
    # In a session of its own: Ctrl-C is for this process, which ends that one.
    return await anyio.open_process(command, stderr=subprocess.DEVNULL, start_new_session=True)


async def _read_lines(victim: Process, count: int) -> bytes:
    """So many lines, or what there is at the end."""
    assert victim.stdout is not None
    text = b""
    try:
        while text.count(b"\n") < count:
            text += await victim.stdout.receive()
    except anyio.EndOfStream:
        pass
    return text


async def _opening_time(bench: Bench) -> float:
    token = uuid4().hex
    async with await _victim(bench, token) as victim:
        try:
            await _read_lines(victim, 1)
            began = time.perf_counter()
            if (await _read_lines(victim, 1)).count(b"\n") != 1:
                raise RuntimeError("the controlling process that was to be killed ended by itself")
            took = time.perf_counter() - began
        finally:
            victim.kill()
    await _gone(bench, token)
    return took


async def _kill_at(bench: Bench, baseline: Baseline, instant: float) -> _Kill:
    token = uuid4().hex
    async with await _victim(bench, token) as victim:
        try:
            await _read_lines(victim, 1)
            await anyio.sleep(instant)
        finally:
            victim.kill()
        gone = await _gone(bench, token)
        was_serving = b"\n" in await _read_lines(victim, 1)
    await sweep(bench.engine)
    with anyio.move_on_after(2):
        while baseline.owned_by(victim.pid):  # noqa: ASYNC110  the engine tells nobody
            await anyio.sleep(POLL)
    return _Kill(victim.pid, was_serving, gone, baseline.owned_by(victim.pid))


async def _gone(bench: Bench, token: str) -> float | None:
    """Wait until none has run for a while; the first look that found none, counted from now."""
    began = time.perf_counter()
    ran = False
    clear_since: float | None = None
    while True:
        running = await labelled(bench.engine, token, {"running", "paused", "restarting"})
        now = time.perf_counter()
        ran = ran or bool(running)
        clear_since = None if running else clear_since or now
        if now - (clear_since or now) >= QUIET or now - began > BOUND:
            return (clear_since or now) - began if ran else None
        await anyio.sleep(POLL)
