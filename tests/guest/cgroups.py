"""Control groups of the tests' own, of either version: fork bombs and memory hogs run in nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Group:
    """``enter`` is shell code that puts the shell in it; ``mounts`` shows it where a container has it."""

    path: Path
    unified: bool
    controller: str

    @property
    def enter(self) -> str:
        return f"echo $$ >{self.path}/cgroup.procs"

    @property
    def mounts(self) -> str:
        return f"mount --bind {self.path} {ROOT if self.unified else ROOT / self.controller}"

    def count(self, name: str) -> int:
        return int((self.path / name).read_text())


@contextmanager
def group(controller: str, limits: dict[str, str]) -> Iterator[Group | str]:
    """A new group; or why there can be none. ``limits``: each file, by its name in version 1, and what it is given."""
    unified = (ROOT / "cgroup.controllers").exists()
    path = (ROOT if unified else ROOT / controller) / f"guest-tests-{os.getpid()}-{time.monotonic_ns()}"
    names = {"memory.limit_in_bytes": "memory.max", "memory.memsw.limit_in_bytes": "memory.swap.max"}
    try:
        if unified and controller not in (ROOT / "cgroup.subtree_control").read_text().split():
            (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
        path.mkdir()
    except OSError as error:
        yield f"no control group of the controller {controller} can be made here: {error}"
        return
    try:
        for name, value in limits.items():
            with suppress(FileNotFoundError):
                (path / (names.get(name, name) if unified else name)).write_text(value)
        yield Group(path, unified, controller)
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for pid in (path / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        try:
            path.rmdir()
        except OSError:
            time.sleep(0.02)
        else:
            return
