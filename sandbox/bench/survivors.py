"""What is alive of a command after its timeout, counted from the host, and who else was hit.

The host's /proc tells by an environment variable, which every descendant inherits wherever it goes; what is inside
the sandbox can't hide from it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import anyio

from sandbox.bench.adversaries import ADVERSARIES, Adversary
from sandbox.bench.bench import Bench
from sandbox.bench.figure import NotHere, Samples, Seen
from sandbox.bench.proc import marked
from sandbox.sandbox import Sandbox
from sandbox.spec import ExecResult, Limits

MARK = "SANDBOX_BENCH_MARK"
SIDE_BY_SIDE = 4
"""Sandboxes at once: calls are then ended on a busy host, which is the harder case."""

PIDS = 64
_UNHARMED = "unharmed\n"


@dataclass
class _Tally:
    """What all runs saw together."""

    survivors: list[int] = field(default_factory=list)
    hit: list[int] = field(default_factory=list)
    told: int = 0
    """Bystanders of fork bombs that were hit, and whose outcome, or the bomb's, says so."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Which adversary survived, or hit somebody."""


@dataclass
class _Older:
    """A background child of an earlier call."""

    mark: str = ""
    pids: frozenset[int] = frozenset()

    @property
    def lives(self) -> bool:
        """Whether it is the same process still."""
        return bool(self.pids) and _pids(self.mark) >= self.pids


async def survivors(bench: Bench) -> Sequence[Seen]:
    """Each run ends one adversary by its timeout, beside a call that must go on and an older background child."""
    runs = bench.count(200, len(ADVERSARIES))
    todo = [ADVERSARIES[run % len(ADVERSARIES)] for run in range(runs)]
    random.shuffle(todo)
    tally = _Tally()

    async def work() -> None:
        async with bench.sandbox(limits=Limits(pids=PIDS, cpus=1), disk_reserve=0) as box:
            older = _Older()
            while todo:
                await _run(box, older, todo.pop(), tally)
                bench.tick(len(tally.survivors), runs)

    async with anyio.create_task_group() as group:
        for _ in range(min(SIDE_BY_SIDE, runs)):
            group.start_soon(work)
    return _seen(tally, sum(adversary.is_bomb for adversary in ADVERSARIES))


def _seen(tally: _Tally, kinds_of_bombs: int) -> list[Seen]:
    left, hit = Samples.of("survivors", "", tally.survivors), Samples.of("innocents hit", "", tally.hit)
    blame = ", ".join(f"{name} {count}" for name, count in tally.kinds.items())
    note = f"{len(tally.survivors)} timeouts of {len(ADVERSARIES)} kinds{': ' + blame if blame else ''}"
    bombs = f"of two calls each, {kinds_of_bombs} kinds of fork bombs excepted: they hit {tally.told}, and said so"
    return [Seen(sum(left.values), left, note=note), Seen(sum(hit.values), hit, note=bombs)]


async def _run(box: Sandbox, older: _Older, adversary: Adversary, tally: _Tally) -> None:
    if not older.lives:
        await _start_older(box, older)
    doomed, bystander, release = uuid4().hex, uuid4().hex, anyio.Event()
    outcomes: list[ExecResult] = []

    async def innocent() -> None:
        command = 'read -r word; echo "$word"'
        outcomes.append(await box.run(command, stdin=_word_after(release), env={MARK: bystander}, timeout=120))

    async with anyio.create_task_group() as group:
        group.start_soon(innocent)
        with anyio.fail_after(30):
            await _until_there(bystander)
        result = await box.run(adversary.command, timeout=random.uniform(0.1, 0.5), env={MARK: doomed})
        left = _pids(doomed)
        await anyio.sleep(0.05)  # a second look: one that starts its successor and goes can be missed by the first
        left |= _pids(doomed)
        release.set()
    if result.status != "timed_out":
        raise RuntimeError(f"the command {adversary.name!r} was to run into its timeout and is {result.status}")
    hits = [not older.lives, outcomes[0].stdout.text != _UNHARMED]
    told = [result.swept, outcomes[0].collateral or outcomes[0].status == "killed"]
    after = await box.run("echo well")
    if after.stdout.text != "well\n":
        raise RuntimeError(f"after {adversary.name!r} the sandbox did not serve: {after.status}, {after.reason}")
    _count(tally, adversary, len(left), hits, told)


def _count(tally: _Tally, adversary: Adversary, left: int, hits: Sequence[bool], told: Sequence[bool]) -> None:
    excepted = [hit and adversary.is_bomb and said for hit, said in zip(hits, told, strict=True)]
    counted = sum(hits) - sum(excepted)
    tally.survivors.append(left)
    tally.hit.append(counted)
    tally.told += sum(excepted)
    if left or counted:
        tally.kinds[adversary.name] += 1


async def _word_after(release: anyio.Event) -> AsyncIterator[bytes]:
    await release.wait()
    yield _UNHARMED.encode()


async def _start_older(box: Sandbox, older: _Older) -> None:
    older.mark = uuid4().hex
    started = await box.run("sleep 100000 & true", env={MARK: older.mark})
    if not started.background:
        raise RuntimeError(f"no background child could be started: {started.status}, {started.stderr.text}")
    # In the midst of an exec a process shows no environment.
    with anyio.move_on_after(5):
        await _until_there(older.mark)
    older.pids = frozenset(_pids(older.mark))
    if not older.pids:
        raise NotHere("this host's /proc does not show the sandbox's processes, or only root may read it")


async def _until_there(mark: str) -> None:
    while not _pids(mark):  # noqa: ASYNC110  the kernel tells nobody
        await anyio.sleep(0.005)


def _pids(mark: str) -> set[int]:
    return marked(f"{MARK}={mark}".encode())
