"""Who owns a container, and whether that process still lives: what a sweep must know before it removes anything.

A container carries its owner as labels. A pid alone proves nothing: it is reused, it means another process in another
pid namespace and after a reboot. So the labels also name the boot, the namespaces and the process's start time, and
whoever can't compare all of them says "unknown" and never "dead".
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self
from uuid import uuid4

from sandbox.spec import LABEL_PREFIX

Liveness = Literal["alive", "dead", "unknown"]

OWNER = f"{LABEL_PREFIX}owner"

_FIELDS = ("owner", "host", "boot", "namespace", "pid", "started")

_TOKEN = uuid4().hex
"""Tells processes apart where /proc can't (another operating system, another host)."""


@dataclass(frozen=True, slots=True)
class Owner:
    """One controlling process. Fields that this platform can't tell are empty."""

    owner: str
    host: str = ""
    boot: str = ""
    namespace: str = ""
    pid: str = ""
    started: str = ""

    @classmethod
    def current(cls) -> Self:
        """This process; asked anew each time, since a fork makes another one."""
        pid = os.getpid()
        return cls(
            owner=f"{_TOKEN}-{pid}",
            host=socket.gethostname(),
            boot=_read("/proc/sys/kernel/random/boot_id"),
            namespace=_namespace(),
            pid=str(pid),
            started=_start_time(pid)[0],
        )

    @classmethod
    def from_labels(cls, labels: Mapping[str, str]) -> Self:
        """The owner that a container's labels name."""
        return cls(**{name: labels.get(LABEL_PREFIX + name, "") for name in _FIELDS})

    def labels(self) -> dict[str, str]:
        """The labels that name this owner."""
        return {LABEL_PREFIX + name: getattr(self, name) for name in _FIELDS}

    def liveness(self) -> Liveness:
        """Whether this owner still lives, as far as a process here and now can prove it."""
        here = Owner.current()
        if self == here:
            return "alive"
        if not (self.boot and self.namespace and self.pid.isdigit() and self.started):
            return "unknown"
        if (self.boot, self.namespace) != (here.boot, here.namespace):
            return "unknown"
        return _liveness(int(self.pid), self.started)


def _liveness(pid: int, started: str) -> Liveness:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return "dead"
    except PermissionError:
        pass  # it is there, under another user
    now, state = _start_time(pid)
    if not now:
        return "unknown"  # /proc may be mounted with hidepid
    # A zombie has closed its descriptors: it owns nothing any more.
    return "alive" if now == started and state not in "ZX" else "dead"


def _start_time(pid: int) -> tuple[str, str]:
    """Start time (clock ticks since boot) and state of a process; empty where they can't be read."""
    # The command's name stands in parentheses and may hold spaces and parentheses itself.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[19], fields[0]) if len(fields) > 19 else ("", "")


def _namespace() -> str:
    """The pid namespace, and the time namespace, which shifts the start times that /proc tells."""
    try:
        return f"{Path('/proc/self/ns/pid').stat().st_ino}-{_inode('/proc/self/ns/time')}"
    except OSError:
        return ""


def _inode(path: str) -> int:
    try:
        return Path(path).stat().st_ino
    except OSError:
        return 0  # kernels before 5.6 have no time namespaces


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
