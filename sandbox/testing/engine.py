"""An engine in memory: real streams and the real protocol, no container."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from sandbox.engine import Attachment, ContainerInfo, ContainerPlan, Death, EngineInfo, ImageInfo
from sandbox.errors import EngineUnavailable, ImageUnavailable, SandboxError, SandboxStartError
from sandbox.shield import beside, finish
from sandbox.sockets import RawStream
from sandbox.testing.calls import Responder
from sandbox.testing.files import FileSystem
from sandbox.testing.guest import FakeGuest, Machine

IMAGE = ImageInfo(id="sha256:fake", architecture="amd64", workdir="/")


@dataclass
class Faults:
    """What goes wrong; change it at any time."""

    unavailable: str = ""
    """The engine answers nothing but this."""
    refuse_start: str = ""
    """No container starts, for this reason."""
    start_delay: float = 0.0
    """Seconds that a start takes."""
    greet: bool = True
    """False: a guest that starts and says nothing."""
    hello: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`sandbox.testing.guest.Machine` that its guests say wrongly: ``pid``, ``interfaces`` ..."""


class FakeContainer:
    """One fake container, with the ways in which it can go wrong."""

    def __init__(self, plan: ContainerPlan, container_id: str, machine: Machine) -> None:
        self.plan = plan
        self.id = container_id
        self.machine = machine
        self.state = "created"
        self.gone = anyio.Event()
        self.created = time.time()
        self.exhausted = False
        self._scope = anyio.CancelScope(shield=True)
        self._cause = ""
        self._guest: FakeGuest | None = None

    @property
    def files(self) -> FileSystem:
        """Its file system."""
        return self.machine.files

    @property
    def open_calls(self) -> int:
        """How many calls its guest works on."""
        return 0 if self._guest is None else self._guest.open_calls

    def die(self, cause: str = "it was killed from outside (SIGKILL)", *, exhausted: bool = False) -> None:
        """End at once, as after ``docker kill``, or (``exhausted``) because its commands used up its memory."""
        self.exhausted = exhausted
        self._cause = cause
        self._scope.cancel()

    def send_garbage(self, data: bytes = b"\xff" * 64) -> None:
        """Write bytes to the stream that no guest would."""
        assert self._guest is not None
        self._guest.send(data)

    def stall(self, stalled: bool = True) -> None:
        """Stop answering, or go on."""
        assert self._guest is not None
        self._guest.stall(stalled)

    async def serve(self, stream: RawStream, greet: bool) -> str:
        """Live; the clause that says why it ended."""
        self._guest = FakeGuest(self.machine, stream)
        self.state = "running"
        cause = ""
        try:
            with self._scope:
                if greet:
                    cause = await self._guest.serve()
                else:
                    await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
        return self._cause or cause

    def end(self) -> None:
        """It is no more."""
        self._scope.cancel()
        self.gone.set()


class FakeEngine(AsyncContextManagerMixin):
    """An engine whose containers are tasks of this event loop; used within ``async with``.

    ``images`` are the images it has, by reference; None: any, with a root user and ``/`` for a working directory.
    ``respond`` answers commands in place of the fake's own shell. ``faults`` and the ``containers_by_name`` are for
    tests of what happens when things go wrong.
    """

    def __init__(
        self,
        *,
        images: Mapping[str, ImageInfo] | None = None,
        respond: Responder | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.faults = faults or Faults()
        self.containers_by_name: dict[str, FakeContainer] = {}
        self._images = images
        self._respond = respond
        self._deaths: dict[str, Death] = {}
        self._serial = itertools.count(1)
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with beside() as tasks:
            self._tasks = tasks
            try:
                yield self
            finally:
                self._tasks = None
                for container in self.containers_by_name.values():
                    container.die("it ended with its engine")

    @property
    def info(self) -> EngineInfo:
        """Facts of a machine that has everything."""
        return EngineInfo(
            address="memory:",
            name="fake",
            version="0",
            api_version="0",
            architecture="x86_64",
            operating_system="fake",
            storage_driver="memory",
            cgroup_version="2",
            runtimes=("runc",),
            cpus=64,
            memory=1 << 40,
            disk_quota=True,
        )

    def container(self, container_id: str) -> FakeContainer:
        """The container of a sandbox's ``container_id``."""
        return next(one for one in self.containers_by_name.values() if one.id == container_id)

    async def image(self, reference: str, platform: str | None = None) -> ImageInfo:
        """The image, if the engine has it."""
        await self._reach()
        if self._images is None:
            return IMAGE
        if reference not in self._images:
            raise ImageUnavailable(f"The fake engine has no image {reference!r}; name it in images=.")
        return self._images[reference]

    async def launch(self, plan: ContainerPlan) -> Attachment:
        """Start a fake container. A cancelled launch leaves it behind, as a real one may."""
        tasks = await self._reach()
        if self.faults.refuse_start:
            raise SandboxStartError(self.faults.refuse_start)
        machine = Machine(FileSystem(), self._respond, plan.spec.lease, **self.faults.hello)
        container = FakeContainer(plan, f"{next(self._serial):064x}", machine)
        self.containers_by_name[plan.name] = container
        await anyio.sleep(self.faults.start_delay)
        near, far = socket.socketpair()
        tasks.start_soon(self._run, container, RawStream(far))
        return Attachment(container.id, RawStream(near))

    async def remove(self, name: str, *, deadline: float = 30.0) -> None:
        """End a container and wait until it is gone."""
        container = self.containers_by_name.get(name)
        if container is None:
            await checkpoint()
            return
        if container.state == "created":
            self._forget(container, "it never started")
        container.die("it was removed")
        if not await finish(container.gone.wait, deadline=deadline):
            raise SandboxError(f"The fake container {name} did not end within {deadline:g} s.")

    async def cause_of_death(self, container_id: str) -> Death:
        """Why a container ended."""
        await self._reach()
        for container in self.containers_by_name.values():
            if container.id == container_id:
                with anyio.move_on_after(0.2):
                    await container.gone.wait()
                break
        return self._deaths.get(container_id, Death())

    async def containers(self) -> list[ContainerInfo]:
        """All containers that were not removed."""
        await self._reach()
        return [
            ContainerInfo(
                id=container.id,
                name=name,
                state=container.state,
                image=container.plan.spec.image,
                created=container.created,
                labels=container.plan.labels,
            )
            for name, container in self.containers_by_name.items()
        ]

    async def _reach(self) -> TaskGroup:
        await checkpoint()
        if self._tasks is None:
            raise EngineUnavailable("The engine is not open; use it within `async with`.")
        if self.faults.unavailable:
            raise EngineUnavailable(self.faults.unavailable)
        return self._tasks

    async def _run(self, container: FakeContainer, stream: RawStream) -> None:
        cause = "it ended with its engine"
        try:
            cause = await container.serve(stream, self.faults.greet)
        finally:
            self._forget(container, cause)

    def _forget(self, container: FakeContainer, cause: str) -> None:
        self._deaths[container.id] = Death(cause, container.exhausted)
        self.containers_by_name.pop(container.plan.name, None)
        container.end()
