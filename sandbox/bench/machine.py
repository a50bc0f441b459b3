"""The machine that a table was measured on: a number without it means nothing."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sandbox.engine import EngineInfo
from sandbox.spec import MIB


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts of this host and of the engine, read when a run begins."""

    date: str
    cpu: str
    cores: int
    memory: int
    """Bytes; 0: not known."""
    kernel: str
    python: str
    load: float | None
    """Processes that wanted to run in the last minute before the run; None where the system doesn't say."""
    engine: str
    engine_address: str
    storage_driver: str
    cgroup_version: str
    image: str

    @classmethod
    def read(cls, info: EngineInfo, image: str) -> Machine:
        """As it is now."""
        return cls(
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            cpu=_cpu(),
            cores=os.cpu_count() or 0,
            memory=_memory(),
            kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=f"{platform.python_implementation()} {sys.version.split()[0]}",
            load=_load(),
            engine=f"{info.name} {info.version}",
            engine_address=info.address,
            storage_driver=info.storage_driver,
            cgroup_version=info.cgroup_version,
            image=image,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        memory = f", {self.memory / MIB / 1024:.0f} GiB" if self.memory else ""
        load = "" if self.load is None else f"; load average at the start: {self.load:.1f}"
        return [
            f"{self.date}; {self.cpu}, {self.cores} cores{memory}; {self.kernel}; {self.python}",
            f"{self.engine}, {self.storage_driver}, cgroup v{self.cgroup_version}; image {self.image}{load}",
        ]


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None
