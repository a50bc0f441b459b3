"""What the person, the program or the document sees of a run."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sandbox.bench.bench import Figure
from sandbox.bench.figure import Bar, Row, Samples, Unit
from sandbox.bench.machine import Machine

HEADINGS = ("figure", "what", "bar", "seen", "ours", "beside", "verdict")

_MARKS = {"met": ("✔", "green"), "not met": ("✘", "red"), "n/a": ("-", "yellow"), "failed": ("!", "red")}


def amount(value: float, unit: Unit) -> str:
    """A number as people read it."""
    if unit == "x":
        return f"{value:.0f} x" if value >= 20 else f"{value:.2f} x"
    if unit == "":
        return f"{value:g}"
    if unit == "B":
        return f"{value / 2**20:.2f} MiB" if value >= 2**20 else f"{value / 2**10:.0f} KiB"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{1000 * value:.0f} ms" if value >= 0.1 else f"{1000 * value:.2f} ms"


def side(samples: Samples) -> str:
    """One side: its median, and how the measurements spread."""
    count = len(samples.values)
    if samples.unit == "":
        return f"{samples.label}: {amount(sum(samples.values), '')} in {count}"
    text = f"{samples.label}: {amount(samples.median, samples.unit)}"
    return text if count == 1 else f"{text} (p90 {amount(samples.p90, samples.unit)}, n {count})"


def bar(it: Bar) -> str:
    """What is to be reached."""
    return f"{'≤' if it.sense == 'at most' else '≥'} {it.bound:g} x" if it.unit == "x" else f"≤ {_plain(it)}"


def _plain(it: Bar) -> str:
    if it.unit == "B":
        return f"{it.bound / 2**20:g} MiB"
    return f"{it.bound:g} s" if it.unit == "s" else f"{it.bound:g}"


def cells(row: Row) -> tuple[str, ...]:
    """A row's texts, one for each heading."""
    head = (row.figure, row.line.what, bar(row.line.bar))
    if row.seen is None:
        return (*head, "", row.reason, "", row.verdict)
    other = side(row.seen.other) if row.seen.other else ""
    return (*head, amount(row.seen.value, row.line.bar.unit), side(row.seen.ours), other, row.verdict)


def markdown(machine: Machine, rows: Sequence[Row]) -> str:
    """The table as a document has it."""
    head = ["| " + " | ".join(HEADINGS[1:]) + " |", "|---|---|---|---|---|---|"]
    body = ["| " + " | ".join(text.replace("|", "\\|") for text in cells(row)[1:]) + " |" for row in rows]
    measured = "Measured " + ".  \n".join(machine.lines()) + "."
    return "\n".join([*head, *body, "", measured, "", *(f"- {note}" for note in notes(rows))])


def notes(rows: Sequence[Row]) -> list[str]:
    """What is to be known of how the rows were measured."""
    return [f"{row.line.what}: {row.seen.note}." for row in rows if row.seen is not None and row.seen.note]


def document(machine: Machine, rows: Sequence[Row]) -> str:
    """The whole of docs/figures.md."""
    return (
        "# Figures\n\n"
        "Written by `python -m sandbox.bench --markdown`; not typed. Medians; both sides of each ratio were measured\n"
        "in the same run and in turns, and it is the ratio that holds on other machines.\n\n"
        f"{markdown(machine, rows)}\n"
    )


class LiveTable:
    """A table that grows while the figures are measured. It draws only when it is told something: a drawing thread of
    its own would take its time from what is measured."""

    def __init__(self, console: Console, title: str) -> None:
        self._title = title
        self._rows: list[Row] = []
        self._state = ""
        self._figure: Figure | None = None
        self._live = Live(console=console, auto_refresh=False, get_renderable=self._render)

    def __enter__(self) -> LiveTable:
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._figure = None
        self._live.refresh()
        self._live.__exit__(None, None, None)

    def began(self, figure: Figure) -> None:
        """Show it as being measured."""
        self._figure, self._state = figure, ""
        self._live.refresh()

    def tick(self, done: int, total: int) -> None:
        """Show how far it is."""
        self._state = f"{done}/{total}"
        self._live.refresh()

    def ended(self, rows: Sequence[Row]) -> None:
        """Show what came out."""
        self._figure = None
        self._rows += rows
        self._live.refresh()

    def _render(self) -> Group:
        table = table_of(self._title, self._rows)
        if self._figure is None:
            return Group(table, "", *notes(self._rows))
        return Group(table, Text(f" … {self._figure.name}: {self._figure.lines[0].what} {self._state}", style="dim"))


def table_of(title: str, rows: Sequence[Row]) -> Table:
    """For a terminal."""
    table = Table(title=title, title_justify="left", expand=False, box=None, padding=(0, 1))
    for heading in ("", *HEADINGS[:-1]):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("bar", "seen") else "left")
    for row in rows:
        mark, color = _MARKS[row.verdict]
        *texts, _ = cells(row)
        table.add_row(Text(mark, style=color), *texts)
    return table
