"""What tests on a real engine say often. The fixtures are in tests/engine_fixtures.py."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sandbox import SandboxSpec
from sandbox.guest import build

MINIMAL = "shell-agent-sandbox/minimal:latest"
PRIVATE = "localhost:1/sandbox-test"
"""References under it are at a registry on this very machine where nobody listens: a pull is refused at once."""

MARKS = [pytest.mark.engine, pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]


def minimal(**changes: Any) -> SandboxSpec:
    """A spec of the minimal image."""
    return SandboxSpec(image=MINIMAL, **changes)


def assert_one_sentence(error: BaseException, *words: str) -> None:
    """One clear sentence, or that and a short one: a single line that ends in a full stop, without the layers of other
    programs' errors, and with the words that say what to do."""
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    assert len(text) < 500
    assert not re.search(r"Traceback|HTTPConnectionPool|ConnectionPool|<[^ ]+ object at|\bNone\b", text), text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


def compile_static(source: Path, out: Path) -> Path:
    """A static program for the containers of this machine."""
    compiler = build.native_compiler() or [*build.zig(), "-target", f"{build.machine()}-linux-musl"]
    subprocess.run([*compiler, "-std=gnu11", "-Wall", "-Wextra", "-static", "-O1", "-o", out, source], check=True)
    return out
