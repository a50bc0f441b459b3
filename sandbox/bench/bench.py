"""What a measurement is given, and how the measurements are run one after the other."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from sandbox.bench.figure import Line, NotHere, Row, Seen
from sandbox.docker import DockerEngine
from sandbox.docker.baseline import Baseline
from sandbox.sandbox import Sandbox
from sandbox.spec import SandboxSpec

Tick = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Bench:
    """The engine, the image, and how much is to be measured."""

    engine: DockerEngine
    image: str
    quick: bool
    tick: Tick
    """Told how many of how many steps are done; never within a measured stretch."""

    def count(self, full: int, quick: int) -> int:
        """How often to measure."""
        return quick if self.quick else full

    def spec(self, **changes: Any) -> SandboxSpec:
        """The default spec of the image with these changes."""
        return SandboxSpec(image=self.image, **changes)

    @asynccontextmanager
    async def sandbox(self, **changes: Any) -> AsyncGenerator[Sandbox]:
        """A sandbox of this measurement's own."""
        async with Sandbox.open(self.engine, self.spec(**changes)) as box:
            yield box

    @contextmanager
    def baseline(self) -> Iterator[Baseline]:
        """The SDK's own calls."""
        address = self.engine.info.address
        if not address.startswith(("unix://", "tcp://")):
            raise NotHere(f"the SDK's own calls can't be measured at {address}")
        baseline = Baseline(address)
        try:
            yield baseline
        finally:
            baseline.close()


Measure = Callable[[Bench], Awaitable[Sequence[Seen]]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement: it fills one line of the table or more."""

    name: str
    lines: tuple[Line, ...]
    measure: Measure
    """One ``Seen`` for each line; raises ``NotHere`` where this host can't tell."""


class Reporter(Protocol):
    """Told of every figure before, while and after."""

    def began(self, figure: Figure) -> None: ...

    def tick(self, done: int, total: int) -> None: ...

    def ended(self, rows: Sequence[Row]) -> None: ...


class Silent:
    """For a program that reads the JSON at the end."""

    def began(self, figure: Figure) -> None:
        """Say nothing."""

    def tick(self, done: int, total: int) -> None:
        """Say nothing."""

    def ended(self, rows: Sequence[Row]) -> None:
        """Say nothing."""


async def measure_figure(figure: Figure, bench: Bench) -> list[Row]:
    """One figure's lines, whatever its measurement raises."""
    try:
        seen = await figure.measure(bench)
    except Exception as error:  # noqa: BLE001  one broken measurement must not cost the others
        causes = _leaves(error)
        failed = not any(isinstance(cause, NotHere) for cause in causes)
        told = [f"{type(cause).__name__}: {cause}" if failed else str(cause) for cause in causes]
        return [Row(figure.name, line, reason="; ".join(dict.fromkeys(told)), failed=failed) for line in figure.lines]
    return [Row(figure.name, line, one) for line, one in zip(figure.lines, seen, strict=True)]


def _leaves(error: Exception) -> list[Exception]:
    """What a task group wraps tells more than the group."""
    if isinstance(error, ExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


async def measure_all(
    figures: Sequence[Figure], engine: DockerEngine, image: str, reporter: Reporter, rows: list[Row], *, quick: bool
) -> None:
    """All figures, in order. ``rows`` grows as they are measured, so an interrupted run keeps what it has."""
    bench = Bench(engine, image, quick, reporter.tick)
    for figure in figures:
        reporter.began(figure)
        measured = await measure_figure(figure, bench)
        rows += measured
        reporter.ended(measured)


Side = Callable[[], Awaitable[object]]


async def in_turns(rounds: int, *sides: Side, tick: Tick, warm_up: int = 3) -> list[list[float]]:
    """Seconds of each side, measured A B A B: what slows the host down slows all sides alike."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(warm_up):
        for side in sides:
            await side()
    for done in range(rounds):
        if done % max(1, rounds // 20) == 0:
            tick(done, rounds)
        for side, kept in zip(sides, times, strict=True):
            began = time.perf_counter()
            await side()
            kept.append(time.perf_counter() - began)
    tick(rounds, rounds)
    return times
