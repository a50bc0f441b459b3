"""What a figure is: its bar, what was seen on both sides, the verdict. Arithmetic only, so that it can be tested."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["s", "B", "x", ""]
"""Seconds, bytes, a ratio, a count."""

Verdict = Literal["met", "not met", "n/a", "failed"]


class NotHere(Exception):  # noqa: N818  it is an answer and no error
    """A figure that can't be told on this host; the message says why."""


@dataclass(frozen=True, slots=True)
class Samples:
    """One side of a comparison: everything that was measured, in the order of measuring."""

    label: str
    unit: Unit
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"nothing was measured of {self.label!r}")

    @classmethod
    def of(cls, label: str, unit: Unit, values: Iterable[float]) -> Samples:
        """From any iterable."""
        return cls(label, unit, tuple(values))

    @property
    def median(self) -> float:
        """Half are at or below it."""
        return statistics.median(self.values)

    @property
    def p90(self) -> float:
        """The smallest value that nine tenths are at or below (nearest rank): always one that was measured."""
        return sorted(self.values)[math.ceil(0.9 * len(self.values)) - 1]

    @property
    def worst(self) -> float:
        """The largest: all that is measured here is a cost."""
        return max(self.values)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with every value."""
        return {
            "label": self.label,
            "unit": self.unit,
            "n": len(self.values),
            "median": self.median,
            "p90": self.p90,
            "worst": self.worst,
            "values": list(self.values),
        }


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must reach."""

    sense: Literal["at most", "at least"]
    bound: float
    unit: Unit = "x"

    def is_met(self, value: float) -> bool:
        """Whether ``value`` is on the right side; the bound itself is."""
        return value <= self.bound if self.sense == "at most" else value >= self.bound


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table before it is measured."""

    what: str
    bar: Bar


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured for a line: the number that its bar judges, and the sides that it came from."""

    value: float
    ours: Samples
    other: Samples | None = None
    note: str = ""


def times_as_much(ours: Samples, other: Samples, note: str = "") -> Seen:
    """Our median over the other's: how much more it costs."""
    return Seen(_over(ours, other), ours, other, note)


def times_less(ours: Samples, other: Samples, note: str = "") -> Seen:
    """The other's median over ours: how much faster, or cheaper."""
    return Seen(_over(other, ours), ours, other, note)


def _over(upper: Samples, lower: Samples) -> float:
    return upper.median / lower.median if lower.median else math.inf


@dataclass(frozen=True, slots=True)
class Row:
    """A line and what became of it."""

    figure: str
    line: Line
    seen: Seen | None = None
    reason: str = ""
    failed: bool = False
    """The measuring itself broke, which says nothing about the bar."""

    @property
    def verdict(self) -> Verdict:
        """Whether the bar is met."""
        if self.seen is None:
            return "failed" if self.failed else "n/a"
        return "met" if self.line.bar.is_met(self.seen.value) else "not met"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        seen, bar = self.seen, self.line.bar
        return {
            "figure": self.figure,
            "what": self.line.what,
            "bar": {"sense": bar.sense, "bound": bar.bound, "unit": bar.unit},
            "verdict": self.verdict,
            "value": None if seen is None or not math.isfinite(seen.value) else seen.value,
            "ours": seen.ours.as_dict() if seen else None,
            "other": seen.other.as_dict() if seen and seen.other else None,
            "note": seen.note if seen else self.reason,
        }
