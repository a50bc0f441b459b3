"""What is needed from a container engine, and nothing more.

An engine is an ``async with`` object. ``launch`` is the one step that makes a container; ``remove`` the one that ends
it. Both are named by the plan's name, which is fixed before anything exists, so that a caller who was interrupted
anywhere can still clean up. The Docker engine is in :mod:`sandbox.docker`, a fake one in :mod:`sandbox.testing`; the
contract that both keep is :data:`sandbox.testing.CONTRACT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from anyio.abc import ByteStream

from sandbox.spec import SandboxSpec


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts about an engine, read once when it is opened."""

    address: str
    name: str
    version: str
    api_version: str
    architecture: str
    """As ``uname -m`` says it: ``x86_64``, ``aarch64``."""
    operating_system: str = ""
    kernel: str = ""
    storage_driver: str = ""
    cgroup_version: str = ""
    runtimes: tuple[str, ...] = ()
    security: tuple[str, ...] = ()
    cpus: int = 0
    memory: int = 0
    """Bytes of the host."""
    memory_limit: bool = True
    pids_limit: bool = True
    cpu_limit: bool = True
    disk_quota: bool = False
    """Whether ``Limits.disk`` can be enforced."""
    rootless: bool = False


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image's own configuration: what a sandbox inherits."""

    id: str
    architecture: str
    user: str = ""
    workdir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """One container to be, complete: an engine only translates it."""

    name: str
    spec: SandboxSpec
    image: ImageInfo
    labels: Mapping[str, str]
    guest_args: tuple[str, ...]
    """The guest's command line, without its own path."""


@dataclass(frozen=True, slots=True)
class Death:
    """Why a container ended, as well as the engine knows."""

    cause: str = ""
    """One clause; empty if nothing is known."""
    exhausted: bool = False
    """What ran in it used up its memory limit, and the kernel took the guest too."""


@dataclass(frozen=True, slots=True)
class ContainerInfo:
    """A container of ours as the engine lists it."""

    id: str
    name: str
    state: str
    """``created``, ``running``, ``paused``, ``restarting``, ``removing``, ``exited`` or ``dead``."""
    image: str
    created: float
    """Seconds since the epoch."""
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Attachment:
    """A started container and the one stream to its guest."""

    container_id: str
    stream: ByteStream
    """Bytes of the guest's stdout come out, bytes for its stdin go in. Closing it ends the guest."""
    warnings: tuple[str, ...] = ()
    """What the engine said about the plan: limits that it discards, for one."""


class Engine(Protocol):
    """A container engine. Every method raises ``EngineUnavailable`` when the engine itself can't be reached."""

    @property
    def info(self) -> EngineInfo:
        """Facts read when the engine was opened."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...

    async def image(self, reference: str, platform: str | None = None) -> ImageInfo:
        """Make sure that the image is here, pulling it if it must be; ``ImageUnavailable`` if it can't be."""

    async def launch(self, plan: ContainerPlan) -> Attachment:
        """Create, attach, start. When it raises (``SandboxStartError``), nothing is left.

        When it is *cancelled*, the container may come to exist nonetheless; ``remove`` waits for that and ends it.
        """

    async def remove(self, name: str, *, deadline: float = 30.0) -> None:
        """Kill the container and wait until it is gone, its anonymous volumes too. None of that name: no error.

        It also survives a native ``Task.cancel()``: it finishes (within ``deadline`` seconds) and then re-raises.
        """

    async def cause_of_death(self, container_id: str) -> Death:
        """Why the container ended. It may have ended just now; one that still runs has no cause."""

    async def containers(self) -> list[ContainerInfo]:
        """All containers with our label, of whatever owner and state."""
