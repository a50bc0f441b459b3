"""What tests on a real engine say often. The fixtures are in tests/engine_fixtures.py."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sandbox import SandboxSpec

MINIMAL = "shell-agent-sandbox/minimal:latest"
PRIVATE = "localhost:1/sandbox-test"
"""References under it are at a registry on this very machine where nobody listens: a pull is refused at once."""

MARKS = [pytest.mark.engine, pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]


def minimal(**changes: Any) -> SandboxSpec:
    """A spec of the minimal image."""
    return SandboxSpec(image=MINIMAL, **changes)


def assert_one_sentence(error: BaseException, *words: str) -> None:
    """One clear sentence: a single line that ends in a full stop, without layers of other programs' errors, and with
    the words that say what to do."""
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    assert len(text) < 500
    assert not re.search(r"Traceback|HTTPConnectionPool|ConnectionPool|<[^ ]+ object at|\bNone\b", text), text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
