"""``python -m sandbox.selftest [--image IMAGE] [--json] [--only NAME]``; exits 0 only if every promise holds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import anyio
from rich.console import Console

from sandbox.docker import DockerEngine
from sandbox.selftest.basics import host
from sandbox.selftest.check import Check
from sandbox.selftest.checks import CHECKS, DEFAULT_IMAGE
from sandbox.selftest.report import Finding, LiveTable, Silent
from sandbox.selftest.run import run_checks


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m sandbox.selftest", description="Prove the promises on this host.")
    parser.add_argument("--image", default=DEFAULT_IMAGE, help="any image with a /bin/sh (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the findings as JSON, for a program")
    parser.add_argument(
        "--only", action="append", metavar="NAME", choices=[check.name for check in CHECKS], help="this check; repeat"
    )
    return parser.parse_args(argv)


def _chosen(only: Sequence[str] | None) -> list[Check]:
    return [check for check in CHECKS if not only or check.name in only]


def _print_json(image: str, findings: Sequence[Finding], ok: bool) -> None:
    report = {"ok": ok, "host": host(), "image": image, "checks": [finding.as_dict() for finding in findings]}
    print(json.dumps(report, indent=2))


def _print_verdict(console: Console, findings: Sequence[Finding], ok: bool) -> None:
    counts = {name: sum(f.outcome == name for f in findings) for name in ("passed", "failed", "skipped")}
    text = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    console.print(f"\n{'All promises hold' if ok else 'Not every promise holds'} on this host: {text}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks; the exit status."""
    args = _parse(argv)
    checks = _chosen(args.only)
    console = Console()
    if args.json:
        findings = anyio.run(run_checks, checks, DockerEngine.from_environment, args.image, Silent())
    else:
        with LiveTable(console, f"Selftest with {args.image} on {host()}") as table:
            findings = anyio.run(run_checks, checks, DockerEngine.from_environment, args.image, table)
    ok = len(findings) >= len(checks) and all(finding.outcome != "failed" for finding in findings)
    if args.json:
        _print_json(args.image, findings, ok)
    else:
        _print_verdict(console, findings, ok)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
