"""What a check is, what it is given, and how it fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sandbox.engine import Engine
from sandbox.sandbox import Sandbox
from sandbox.spec import SandboxSpec


class Failed(Exception):
    """A promise that doesn't hold on this host."""

    def __init__(self, what: str, *, seen: object, expected: object, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.seen = seen
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: saw {self.seen}, expected {self.expected}. {self.remedy}"


class Skipped(Exception):
    """A check that can't be made here; the message says why and what would allow it."""


@dataclass
class Context:
    """What the checks share: the engine and the image. Tests break a promise by overriding ``sandbox``."""

    engine: Engine
    image: str

    def spec(self, **changes: Any) -> SandboxSpec:
        """The default spec of the image with these changes."""
        return SandboxSpec(image=self.image, **changes)

    @asynccontextmanager
    async def sandbox(self, **changes: Any) -> AsyncGenerator[Sandbox]:
        """A sandbox of this check's own."""
        async with Sandbox.open(self.engine, self.spec(**changes)) as box:
            yield box


@dataclass(frozen=True, slots=True)
class Check:
    """One promise and the function that proves it."""

    name: str
    promise: str
    prove: Callable[[Context], Awaitable[str]]
    """Returns what was seen, in a line; raises Failed or Skipped, or any other exception, which fails it too."""


def expect(what: str, seen: object, expected: object, *, remedy: str) -> None:
    """Fail unless ``seen`` equals ``expected``."""
    if seen != expected:
        raise Failed(what, seen=repr(seen), expected=repr(expected), remedy=remedy)


REPORT = "This is a defect: please report it with the output of `python -m sandbox doctor --json`."
"""The remedy where the user can do nothing about it."""
