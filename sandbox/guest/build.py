"""Compiles the guest: ``python -m sandbox.guest.build [--arch ARCH] [--out PATH] [--sanitize]``.

For this machine's own architecture a C compiler that links statically is used, if there is one; else, and for any
other architecture, zig (``pip install ziglang``), which brings a libc and cross-compiles.

Standard library only, and nothing of the rest of the package: a build runs this file by its path, before any
dependency is installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import platform
import re
import shlex
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ARCHS = {"x86_64": 62, "aarch64": 183}
"""The architectures that the guest is built for, with their number in an ELF header."""

ZIG = "ziglang==0.17.1"
"""Exactly one release, so that a release wheel can be made again bit for bit."""

HERE = Path(__file__).resolve().parent
WARNINGS = ["-Wall", "-Wextra"]
LANGUAGE = ["-std=c11", "-D_GNU_SOURCE"]
STATIC = ["-static", "-Os", "-s"]
SANITIZE = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]

_SPELLINGS = {"amd64": "x86_64", "arm64": "aarch64"}
_PROBE_STATUS = 42
_ELF_HEADER = 64


class BuildError(Exception):
    """The guest can't be compiled; the message says what to do."""


def normalize(arch: str) -> str:
    """``arch`` as ``uname -m`` says it on Linux; one that the guest isn't built for is an error."""
    lower = arch.lower()
    name = _SPELLINGS.get(lower, lower)
    if name not in ARCHS:
        raise BuildError(f"the guest is built for {' and '.join(ARCHS)}, not for {arch}: ask for one with --arch")
    return name


def machine() -> str:
    """This machine's architecture."""
    return normalize(platform.machine())


def sources() -> list[str]:
    """The guest's C files, named relative to their folder, so that no path of this machine gets into the binary."""
    found = sorted(path.name for path in HERE.glob("*.c"))
    if not found:
        raise BuildError(f"there are no C files in {HERE}: this installation lacks the guest's sources")
    return found


def default_out(arch: str) -> Path:
    """Where :func:`sandbox.guest.guest_binary` looks."""
    return HERE / "bin" / f"guest-{arch}"


def requirements(archs: Sequence[str] = ()) -> list[str]:
    """What a build needs from PyPI: zig, unless a compiler of this machine will do.

    ``archs`` are those of a release, which is always made with zig, so that it doesn't depend on where it was made.
    """
    return [ZIG] if archs or native_compiler() is None else []


def build(arch: str, out: Path, *, release: bool = False, werror: bool = False) -> Path:
    """Compile a static guest for ``arch`` into ``out``, whole or not at all."""
    arch = normalize(arch)
    native = None if release or arch != machine() else native_compiler()
    compiler = native or [*zig(), "-target", f"{arch}-linux-musl"]
    if native is None:
        print(f"guest: compiling for {arch} with zig (a minute the first time)", file=sys.stderr, flush=True)
    options = [*LANGUAGE, *WARNINGS, *(["-Werror"] if werror else []), *STATIC]
    _compile([*compiler, *options], out)
    problem = elf_problem(out, arch)
    if problem:
        out.unlink()
        raise BuildError(f"{shlex.join(compiler)} made a guest that is no use: {problem}")
    return out


def build_sanitized(out: Path) -> Path:
    """Compile a guest for tests on this machine, under the address and undefined-behaviour sanitizers."""
    for compiler in _candidates("gcc", "clang", "cc"):
        if _makes_a_working_program([*compiler, *SANITIZE]):
            _compile([*compiler, *LANGUAGE, *WARNINGS, "-Werror", *SANITIZE], out)
            return out
    raise BuildError("no C compiler with address and undefined-behaviour sanitizers was found: install gcc")


@functools.cache
def native_compiler() -> list[str] | None:
    """A compiler whose static programs run here; musl's first, since its programs are the smallest."""
    if not sys.platform.startswith("linux"):
        return None  # the guest is a Linux program wherever the engine's client runs
    for compiler in _candidates("musl-gcc", "cc", "gcc", "clang"):
        if _makes_a_working_program([*compiler, *STATIC], static=True):
            return compiler
    return None


def zig() -> list[str]:
    """The command of the ``ziglang`` package's C compiler."""
    if importlib.util.find_spec("ziglang") is None:
        raise BuildError(
            f"no C compiler that links statically for this architecture was found: install one "
            f"(gcc and the static C library), or run `{Path(sys.executable).name} -m pip install {ZIG}`"
        )
    return [sys.executable, "-m", "ziglang", "cc"]


def elf_problem(path: Path, arch: str) -> str | None:
    """What keeps the program at ``path`` from running in any image of ``arch``, if anything."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < _ELF_HEADER:
        return "it is no 64-bit little-endian ELF program"
    if struct.unpack_from("<H", data, 18)[0] != ARCHS[arch]:
        return f"it is not for {arch}"
    offset, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<I", data, offset + i * size)[0] for i in range(count)]
    interp = 3
    return "it is linked dynamically, and an image need have no libc" if interp in segments else None


def _candidates(*names: str) -> Iterable[list[str]]:
    own = os.environ.get("CC")
    return [*([shlex.split(own)] if own else []), *([name] for name in names)]


def _makes_a_working_program(command: Sequence[str], *, static: bool = False) -> bool:
    """Whether ``command`` compiles a program with every header that the guest includes, and the program runs.

    The headers matter: Debian's musl-gcc has none of Linux's own unless somebody put them there.
    """
    with tempfile.TemporaryDirectory(prefix="guest-probe-") as folder:
        probe, out = Path(folder, "probe.c"), Path(folder, "probe")
        probe.write_text(f"{_system_includes()}\nint main(void) {{ return {_PROBE_STATUS}; }}\n")
        try:
            made = _run([*command, *LANGUAGE, "-o", str(out), str(probe)], timeout=120).returncode == 0
            works = made and _run([str(out)], timeout=20).returncode == _PROBE_STATUS
        except (OSError, subprocess.TimeoutExpired):
            return False
        return works and (not static or elf_problem(out, machine()) is None)


def _system_includes() -> str:
    lines = {
        match.group(0)
        for path in [*HERE.glob("*.c"), *HERE.glob("*.h")]
        for match in re.finditer(r"^#include <[^>]+>", path.read_text(), re.MULTILINE)
    }
    # libc's before the kernel's: some of the kernel's headers stand back only for a libc header already seen.
    return "\n".join(sorted(lines, key=lambda line: ("<linux/" in line, line)))


def _compile(command: Sequence[str], out: Path) -> None:
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=out.parent) as folder:
        made = Path(folder, out.name)
        result = _run([*command, "-I", ".", "-o", str(made), *sources()], cwd=HERE)
        if result.returncode:
            raise BuildError(f"the guest does not compile with {shlex.join(command)}:\n{result.stdout}")
        made.chmod(0o755)
        made.replace(out)  # in one step: a start in another process sees the old or the new one


def _run(
    command: Sequence[str], *, cwd: Path | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.guest.build", description="Compile the guest.")
    parser.add_argument("--arch", help=f"{' or '.join(ARCHS)}; this machine's if not given")
    parser.add_argument("--out", type=Path, help="the file to write; the package's own place if not given")
    parser.add_argument("--sanitize", action="store_true", help="for tests: not static, with gcc's sanitizers")
    parser.add_argument("--requires", action="store_true", help="print what must be installed first, build nothing")
    options = parser.parse_args(arguments)
    try:
        if options.requires:
            print("\n".join(requirements()))
            return 0
        arch = normalize(options.arch) if options.arch else machine()
        if options.sanitize:
            out = build_sanitized(options.out or default_out(f"{arch}-sanitized"))
        else:
            out = build(arch, options.out or default_out(arch), werror=True)
    except BuildError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    print(f"guest: {out} ({out.stat().st_size} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
