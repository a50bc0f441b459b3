"""The guest: the small static C program that is PID 1 of every sandbox.

Its sources stand beside this file, ``build.py`` compiles them, and the binaries lie in ``bin/`` as package data.
"""

from __future__ import annotations

from pathlib import Path

_BIN = Path(__file__).parent / "bin"
_SPELLINGS = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64", "armv8": "aarch64", "arm64/v8": "aarch64"}


def normalize_arch(arch: str) -> str:
    """``arch`` as ``uname -m`` says it on Linux, whether Docker, Python or a person spelled it."""
    lower = arch.strip().lower()
    return _SPELLINGS.get(lower, lower)


def guest_binary(arch: str) -> Path:
    """The guest for containers of ``arch`` (``x86_64``, ``aarch64``; Docker's names do as well)."""
    name = normalize_arch(arch)
    path = _BIN / f"guest-{name}"
    if path.is_file():
        return path
    built = sorted(p.name.removeprefix("guest-") for p in _BIN.glob("guest-*"))
    raise FileNotFoundError(
        f"there is no guest for {name} containers in this installation ({_BIN} holds: {', '.join(built) or 'none'}); "
        f"run `python -m sandbox.guest.build --arch {name}`, or install a release wheel, which holds every architecture"
    )
