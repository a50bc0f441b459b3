"""What the behaviours share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Protocol, TypeVar

import anyio
import anyio.lowlevel

from sandbox.sandbox import Sandbox


class OpenBox(Protocol):
    """Opens a sandbox of the engine under test."""

    def __call__(self, **changes: Any) -> AbstractAsyncContextManager[Sandbox]:
        """``changes`` are fields of the spec."""


Error = TypeVar("Error", bound=BaseException)
Behaviour = Callable[[OpenBox], Awaitable[None]]

LARGE = 3 * 1024 * 1024
"""More than any window and pipe between the two sides holds."""


async def raises(kind: type[Error], call: Awaitable[object]) -> Error:
    """Await the call, which must raise; the exception."""
    try:
        await call
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


@contextmanager
def raising(kind: type[BaseException]) -> Iterator[None]:
    """The block must raise."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} was raised")


async def open_only(opening: AbstractAsyncContextManager[Sandbox]) -> None:
    """Open a sandbox and close it again."""
    async with opening:
        pass


async def pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    """A source of stdin."""
    for piece in pieces:
        await anyio.lowlevel.checkpoint()
        yield piece


async def endless() -> AsyncIterator[bytes]:
    """A source of stdin that never ends."""
    while True:
        await anyio.sleep(0.01)
        yield b"more\n"
