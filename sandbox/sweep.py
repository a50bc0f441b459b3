"""Removal of what dead owners left behind.

A running sandbox needs no sweep: its guest ends itself when its controller's end of the stream is gone. What can stay
is a container that was created and not yet started, and one whose own removal failed. A sweep removes those whose
owner is provably dead, and, where that can't be judged (another host, another namespace), those that are old. It
never touches what a living owner has.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import anyio

from sandbox.engine import ContainerInfo, Engine
from sandbox.errors import SandboxError
from sandbox.owner import Liveness, Owner

UNJUDGEABLE_AGE = 600.0
"""Seconds after which a container that doesn't run counts as left behind although its owner can't be judged."""

STUCK_AGE = 600.0
"""Seconds after which a removal that the engine began itself counts as stuck; younger ones are left to it."""

REMOVAL_BOUND = 10.0

_AT_REST = frozenset({"created", "exited", "dead"})


@runtime_checkable
class Housekeeping(Protocol):
    """An engine on which sandboxes share things that may be left over too."""

    async def remove_unused(self) -> list[str]:
        """Remove them where nothing uses them; what was removed, for people."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did."""

    removed: tuple[str, ...]
    """Names of containers, and of what they had shared."""
    failed: tuple[str, ...] = ()
    """One sentence for each that should have gone and did not."""


def is_orphan(container: ContainerInfo, liveness: Liveness, now: float) -> bool:
    """Whether nobody can miss this container."""
    match liveness:
        case "alive":
            return False
        case "dead":
            return container.state != "removing" or now - container.created > STUCK_AGE
        case "unknown":
            # A running one is its dead-man's switch's affair.
            return container.state in _AT_REST and now - container.created > UNJUDGEABLE_AGE


async def sweep(engine: Engine) -> Swept:
    """Remove all orphans from the engine, and what they had shared."""
    now = time.time()
    orphans = [
        container.name
        for container in await engine.containers()
        if is_orphan(container, Owner.from_labels(container.labels).liveness(), now)
    ]
    removed: list[str] = []
    failed: list[str] = []
    async with anyio.create_task_group() as tasks:
        for name in orphans:
            tasks.start_soon(partial(_remove, engine, name, removed, failed))
    if isinstance(engine, Housekeeping):
        removed += await engine.remove_unused()
    return Swept(tuple(removed), tuple(failed))


async def _remove(engine: Engine, name: str, removed: list[str], failed: list[str]) -> None:
    try:
        await engine.remove(name, deadline=REMOVAL_BOUND)
    except SandboxError as error:
        failed.append(str(error))
    else:
        removed.append(name)
