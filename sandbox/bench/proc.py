"""What the host's /proc tells of an engine on this host: which processes it has, their CPU time, their memory.

Everything raises ``NotHere`` where the engine's processes aren't this host's, or this user may not look at them.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from sandbox.bench.figure import NotHere

PROC = Path("/proc")
_TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> tuple[str, list[str]]:
    """The command's name, and the fields after it; the name may hold spaces and parentheses itself."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        raise NotHere(f"the host's /proc does not show process {pid}") from None
    head, _, tail = text.rpartition(")")
    return head.partition("(")[2], tail.split()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of all children that it has waited for: user and system, in ticks of 10 ms."""
    fields = _stat(pid)[1]
    return sum(int(field) for field in fields[11:15]) / _TICK


def all_pids() -> Iterator[int]:
    """Every process that this /proc shows."""
    return (int(path.name) for path in PROC.iterdir() if path.name.isdigit())


def _named(name: str) -> list[int]:
    found = []
    for pid in all_pids():
        try:
            if _stat(pid)[0] == name:
                found.append(pid)
        except NotHere:
            continue
    return found


def check_is_here(pid: int, container: str) -> None:
    """Whether this host's process ``pid`` is really of that container, and not another host's number."""
    try:
        cgroups = (PROC / str(pid) / "cgroup").read_text()
    except OSError:
        cgroups = ""
    if container not in cgroups:
        raise NotHere("the engine's processes are not in this host's /proc")


def engine_processes(address: str, guest: int) -> list[int]:
    """Every process outside of the container that a call through the engine keeps busy: shim, containerd, dockerd."""
    shim = int(_stat(guest)[1][1])
    if not _stat(shim)[0].startswith("containerd-shim"):
        raise NotHere(f"the container's parent is {_stat(shim)[0]} and no containerd-shim: another kind of engine")
    daemon = _listener(address)
    daemons = [daemon] if daemon is not None else _named("dockerd")
    containerds = _named("containerd")
    own = [pid for pid in containerds if int(_stat(pid)[1][1]) in daemons]
    if not daemons or not containerds:
        raise NotHere("the host's /proc shows no dockerd and containerd")
    return [shim, *daemons, *(own or containerds)]


def _listener(address: str) -> int | None:
    """The daemon behind a unix socket; None where another one (systemd) opened the socket for it."""
    if not address.startswith("unix://") or not hasattr(socket, "SO_PEERCRED"):
        return None
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(address.removeprefix("unix://"))
        pid = int(struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
    try:
        return pid if _stat(pid)[0] == "dockerd" else None
    except NotHere:
        return None


def total_cpu(pids: Sequence[int]) -> float:
    """CPU seconds of these processes, this one, and all their children that are gone."""
    own = os.times()
    return sum(own[:4]) + sum(cpu_seconds(pid) for pid in pids)


def resident(pid: int) -> tuple[int, int]:
    """Resident bytes of a process, and those of them that come from no file."""
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        raise NotHere(f"this user may not read /proc/{pid}/smaps_rollup (root may)") from None
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return kib["Rss"] * 1024, kib["Anonymous"] * 1024


def kernel_memory(pid: int) -> int:
    """Bytes that the kernel holds for the process's cgroup: page tables, stacks, descriptors, pipes."""
    try:
        for line in (PROC / str(pid) / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "memory":
                return int((Path("/sys/fs/cgroup/memory" + path) / "memory.kmem.usage_in_bytes").read_text())
            if controllers == "":
                found = re.search(r"^kernel (\d+)$", (Path("/sys/fs/cgroup" + path) / "memory.stat").read_text(), re.M)
                if found:
                    return int(found[1])
    except OSError:
        pass
    raise NotHere("the memory cgroup of the container can't be read here")


def marked(mark: bytes) -> set[int]:
    """The processes that have ``mark`` as an environment variable: what a command started, wherever it went."""
    found = set()
    for pid in all_pids():
        try:
            if mark in (PROC / str(pid) / "environ").read_bytes().split(b"\0"):
                found.add(pid)
        except OSError:
            continue
    return found
