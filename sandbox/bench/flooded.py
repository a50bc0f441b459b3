"""The process that the flood is measured in: it runs one command that prints, and says how far it grew meanwhile."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import anyio

from sandbox import SandboxSpec, open_sandbox
from sandbox.docker import DockerEngine

_OWN = Path("/proc/self")


def _resident(field: str) -> int | None:
    """``VmRSS``, resident bytes now, or ``VmHWM``, their peak; None where there is no such /proc."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB$", (_OWN / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _forget_peak() -> bool:
    """Let the peak begin anew from now: the kernel then misses nothing, as samples could."""
    try:
        (_OWN / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def drop(_stream: str, _data: bytes) -> None:
    """A watcher that keeps nothing."""


async def main(address: str, image: str, size: int, way: str) -> None:
    """Print JSON: bytes before, bytes grown (null: not known here), seconds."""
    watcher = drop if way == "watched" else None
    async with DockerEngine(address, sweeping=False) as engine:
        async with open_sandbox(SandboxSpec(image=image), engine=engine) as box:
            for _ in range(20):
                await box.run("true")
            before, exact = _resident("VmRSS"), _forget_peak()
            began = time.perf_counter()
            result = await box.run(f"head -c {size} /dev/zero", timeout=None, on_output=watcher)
            seconds = time.perf_counter() - began
            peak = _resident("VmHWM")
    if result.stdout.total_bytes != size:
        raise RuntimeError(f"the command was to print {size} bytes and printed {result.stdout.total_bytes}")
    grown = max(0, peak - before) if exact and peak is not None and before is not None else None
    print(json.dumps({"before": before, "grown": grown, "seconds": seconds}))


if __name__ == "__main__":
    _, address, image, size, way = sys.argv
    anyio.run(main, address, image, int(size), way)
