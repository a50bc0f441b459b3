"""What the person, or the program, sees of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sandbox.errors import SandboxError
from sandbox.selftest.check import REPORT, Check, Failed

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """How one check ended."""

    name: str
    promise: str
    outcome: Outcome
    seconds: float
    detail: str
    expected: str = ""
    remedy: str = ""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def finding_of(check: Check, seconds: float, error: BaseException | None, detail: str = "") -> Finding:
    """A failure keeps apart what was seen, what was expected and what to do.

    A ``SandboxError`` is one sentence that names what to do; any other exception is nobody's plan.
    """
    if isinstance(error, Failed):
        seen = f"{error.what}: {error.seen}"
        return Finding(check.name, check.promise, "failed", seconds, seen, str(error.expected), error.remedy)
    if error is not None:
        remedy = "What to do is in the sentence above." if isinstance(error, SandboxError) else REPORT
        seen = f"{type(error).__name__}: {error}"
        return Finding(check.name, check.promise, "failed", seconds, seen, check.promise, remedy)
    return Finding(check.name, check.promise, "passed", seconds, detail)


class Reporter(Protocol):
    """Told of every check before and after."""

    def began(self, check: Check) -> None: ...

    def ended(self, finding: Finding) -> None: ...


class Silent:
    """For a program that reads the JSON at the end."""

    def began(self, check: Check) -> None:
        """Say nothing."""

    def ended(self, finding: Finding) -> None:
        """Say nothing."""


_MARKS = {"passed": ("✔", "green"), "failed": ("✘", "red"), "skipped": ("–", "yellow")}


class LiveTable:
    """A table that grows while the checks run."""

    def __init__(self, console: Console, title: str) -> None:
        self._title = title
        self._findings: list[Finding] = []
        self._current: Check | None = None
        self._live = Live(self._render(), console=console, refresh_per_second=8, get_renderable=self._render)

    def __enter__(self) -> LiveTable:
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._current = None
        self._live.refresh()
        self._live.__exit__(None, None, None)

    def began(self, check: Check) -> None:
        """Show it as running."""
        self._current = check

    def ended(self, finding: Finding) -> None:
        """Show how it ended."""
        self._current = None
        self._findings.append(finding)
        self._live.refresh()

    def _render(self) -> Group | Table:
        table = Table(title=self._title, title_justify="left", expand=False, box=None, padding=(0, 1))
        table.add_column("")
        table.add_column("check", no_wrap=True, style="bold")
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("what was seen", overflow="fold")
        for finding in self._findings:
            mark, color = _MARKS[finding.outcome]
            table.add_row(Text(mark, style=color), finding.name, f"{finding.seconds:.2f} s", _explain(finding))
        if self._current is None:
            return table
        return Group(table, Spinner("dots", text=f"{self._current.name}: {self._current.promise}"))


def _explain(finding: Finding) -> Text:
    text = Text(finding.detail, style="" if finding.outcome == "passed" else _MARKS[finding.outcome][1])
    if finding.expected:
        text.append(f"\nexpected: {finding.expected}")
    if finding.remedy:
        text.append(f"\n{finding.remedy}", style="italic")
    return text
