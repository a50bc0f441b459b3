"""``python -m sandbox.bench``: measure, print; exits 0 unless a measurement broke (1) or was interrupted (130)."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import anyio
from rich.console import Console

from sandbox.bench.bench import Figure, Reporter, Silent, measure_all
from sandbox.bench.figure import Row
from sandbox.bench.figures import FIGURES
from sandbox.bench.machine import Machine
from sandbox.bench.report import LiveTable, document
from sandbox.docker import DockerEngine
from sandbox.errors import SandboxError
from sandbox.selftest.checks import DEFAULT_IMAGE

INTERRUPTED = 130


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m sandbox.bench", description="Measure the project's figures here.")
    parser.add_argument("--image", default=DEFAULT_IMAGE, help="any image with a /bin/sh (default: %(default)s)")
    names = [figure.name for figure in FIGURES]
    parser.add_argument("--only", action="append", metavar="NAME", choices=names, help=f"of {', '.join(names)}; repeat")
    parser.add_argument("--quick", action="store_true", help="so few rounds that the numbers mean little: a smoke test")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything that was measured, for a program")
    form.add_argument("--markdown", action="store_true", help="the text of docs/figures.md")
    return parser.parse_args(argv)


async def _measure(args: argparse.Namespace, chosen: Sequence[Figure], rows: list[Row]) -> tuple[Machine, bool]:
    """The machine, and whether it came to its end. Whatever ends it, nothing of it is left on the engine."""
    async with DockerEngine.from_environment() as engine:
        machine = Machine.read(engine.info, args.image)
        with ExitStack() as stack:
            reporter = _reporter(stack, args, machine)
            async with anyio.create_task_group() as group:
                group.start_soon(_cancel_on_signals, group.cancel_scope)
                await measure_all(chosen, engine, args.image, reporter, rows, quick=args.quick)
                group.cancel_scope.cancel()
    return machine, len({row.figure for row in rows}) == len(chosen)


async def _cancel_on_signals(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


def _reporter(stack: ExitStack, args: argparse.Namespace, machine: Machine) -> Reporter:
    if args.json:
        return Silent()
    # stdout is the document's alone where it is one.
    return stack.enter_context(LiveTable(Console(stderr=args.markdown), "\n".join(machine.lines())))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the exit status."""
    args = _parse(argv)
    chosen = [figure for figure in FIGURES if not args.only or figure.name in args.only]
    rows: list[Row] = []
    try:
        machine, finished = anyio.run(_measure, args, chosen, rows)
    except SandboxError as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        answer = {"machine": machine.as_dict(), "quick": args.quick, "rows": [row.as_dict() for row in rows]}
        print(json.dumps(answer | {"finished": finished}, indent=2))
    elif args.markdown:
        print(document(machine, rows), end="")
    if not finished:
        return INTERRUPTED
    return 1 if any(row.verdict == "failed" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
