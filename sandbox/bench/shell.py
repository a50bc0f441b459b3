"""The sandbox's own shell, to be run on the host too: a comparison of two different shells would say little."""

from __future__ import annotations

import platform
import struct
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from sandbox.sandbox import Sandbox

HOST_SHELL = Path("/bin/sh")

_HEAD = struct.Struct("<16sHHIQQQIHHHHHH")
_MACHINES = {62: "x86_64", 183: "aarch64"}
_INTERPRETER = 3


@asynccontextmanager
async def shell_of(box: Sandbox) -> AsyncGenerator[tuple[Path, str]]:
    """The image's /bin/sh as a file on this host, else the host's own; and which of them it is, for people."""
    content = await box.read_file("/bin/sh")
    why_not = why_it_cant_run_here(content)
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-") as folder:
        shell = Path(folder, "sh")
        if not why_not:
            why_not = _tried(shell, content)
        if why_not:
            yield HOST_SHELL, f"beside the host's own /bin/sh: the image's can't run here ({why_not})"
        else:
            yield shell, "beside the image's own /bin/sh, copied out and run on the host"


def _tried(shell: Path, content: bytes) -> str:
    """Put it there and try it; why it doesn't run (a temporary directory may be mounted noexec), or ""."""
    try:
        shell.write_bytes(content)
        shell.chmod(0o700)
        subprocess.run(["sh", "-c", "true"], executable=shell, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return str(error)
    return ""


def why_it_cant_run_here(program: bytes, machine: str | None = None) -> str:
    """Why this host couldn't run an image's program outside of the image; "" if it can."""
    if not program.startswith(b"\x7fELF") or len(program) < _HEAD.size:
        return "it is no ELF program"
    if program[4:6] != b"\x02\x01" or platform.system() != "Linux":
        return "it is for another system"
    head = _HEAD.unpack_from(program)
    built_for = _MACHINES.get(head[2], f"machine {head[2]}")
    if built_for != (machine or platform.machine()):
        return f"it is built for {built_for}"
    start, size, count = head[5], head[9], head[10]
    kinds = [int.from_bytes(program[start + i * size :][:4], "little") for i in range(count)]
    return "it is linked dynamically" if _INTERPRETER in kinds else ""
