"""Runs the checks one after the other. The engine's absence fails the first one and ends the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import anyio

from sandbox.engine import Engine
from sandbox.errors import SandboxError
from sandbox.selftest.check import Check, Context, Skipped
from sandbox.selftest.report import Finding, Reporter, finding_of

CHECK_BOUND = 180.0
"""Seconds for one check; none should come near."""


async def run_check(check: Check, context: Context) -> Finding:
    """One check, whatever it raises."""
    began = time.perf_counter()
    try:
        with anyio.fail_after(CHECK_BOUND):
            detail = await check.prove(context)
    except Skipped as reason:
        return Finding(check.name, check.promise, "skipped", time.perf_counter() - began, str(reason))
    except Exception as error:
        return finding_of(check, time.perf_counter() - began, error)
    return finding_of(check, time.perf_counter() - began, None, detail)


async def run_checks(
    checks: Sequence[Check],
    open_engine: Callable[[], AbstractAsyncContextManager[Engine]],
    image: str,
    reporter: Reporter,
) -> list[Finding]:
    """All checks, in order; the findings in the same order."""
    findings: list[Finding] = []
    began = time.perf_counter()
    reporter.began(checks[0])
    try:
        async with open_engine() as engine:
            context = Context(engine, image)
            for check in checks:
                reporter.began(check)
                findings.append(await run_check(check, context))
                reporter.ended(findings[-1])
    except SandboxError as error:
        findings.append(finding_of(checks[min(len(findings), len(checks) - 1)], time.perf_counter() - began, error))
        reporter.ended(findings[-1])
    return findings
