"""DockerEngine: the contract of :mod:`sandbox.engine`, kept by a daemon that speaks Docker's API.

Only the event loop's side is here. What blocks runs in threads, and each kind of work has its own: a removal never
waits behind starts, nor a question behind a pull.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self
from weakref import WeakValueDictionary

import anyio
from anyio import AsyncContextManagerMixin

from sandbox.docker import queries
from sandbox.docker.address import check_address, find_addresses
from sandbox.docker.api import RefusedError
from sandbox.docker.connection import Connection, connect
from sandbox.docker.death import with_last_words
from sandbox.docker.launch import Launch
from sandbox.docker.removal import remove_container
from sandbox.docker.stream import GuestStream, OpenSockets
from sandbox.docker.threads import Workers
from sandbox.engine import Attachment, ContainerInfo, ContainerPlan, Death, EngineInfo, ImageInfo
from sandbox.errors import EngineUnavailable, SandboxError
from sandbox.sweep import sweep

SWEEP_BOUND = 10.0
CLOSE_BOUND = 30.0
LEFT_OVER_BOUND = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What lives from the engine's opening to its end."""

    connection: Connection
    # Beyond about two starts a core only their latency grows.
    starts: Workers
    questions: Workers
    removals: Workers = field(default_factory=partial(Workers, "sandbox-remove", 8))
    pulls: Workers = field(default_factory=partial(Workers, "sandbox-pull", 2))
    launches: dict[str, Launch] = field(default_factory=dict)
    unremoved: set[str] = field(default_factory=set)
    """Containers whose removal failed, with the engine mostly; they are tried again when it answers."""
    sockets: OpenSockets = field(default_factory=OpenSockets)
    streams: WeakValueDictionary[str, GuestStream] = field(default_factory=WeakValueDictionary)


class DockerEngine(AsyncContextManagerMixin):
    """A Docker engine, local or over plain TCP; used within ``async with``.

    ``address`` is such as ``unix:///var/run/docker.sock``; None finds the engine as the docker command does.
    ``guest`` is another guest's binary than this package's own, for tests. ``sweeping`` says whether opening the
    engine removes what dead owners left there.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        guest: Path | None = None,
        sweeping: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._address = address
        self._guest = guest
        self._sweeping = sweeping
        self._environ = os.environ if environ is None else environ
        self._state: _Opened | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self:
        """The engine that the docker command would use."""
        return cls(environ=environ)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        addresses = find_addresses(self._environ) if self._address is None else (check_address(self._address),)
        questions = Workers("sandbox-ask", 4)
        try:
            connection = await questions.run(partial(connect, addresses, self._guest), lambda late: late.api.close())
        except BaseException:
            questions.close()
            raise
        self._state = state = _Opened(connection, Workers("sandbox-start", 2 * max(1, connection.info.cpus)), questions)
        try:
            if self._sweeping:
                await self._sweep()
            yield self
        finally:
            self._state = None
            await state.removals.finish(partial(_wind_up, state))

    @property
    def info(self) -> EngineInfo:
        """Facts read when the engine was opened."""
        return self._opened.connection.info

    @property
    def guest_volume(self) -> str:
        """The name of the volume that holds the guest."""
        return self._opened.connection.guest.name

    async def image(self, reference: str, platform: str | None = None) -> ImageInfo:
        """Make sure that the image is here, pulling it if it must be; ``ImageUnavailable`` if it can't be."""
        state = self._opened
        local = await state.questions.run(partial(queries.local_image, state.connection, reference, platform))
        if local is not None:
            return local
        return await state.pulls.run(partial(queries.pulled_image, state.connection, reference, platform))

    async def launch(self, plan: ContainerPlan) -> Attachment:
        """Create, attach, start. When it raises (``SandboxStartError``), nothing is left.

        When it is cancelled, its thread ends what it has begun, and ``remove`` waits for that.
        """
        state = self._opened
        launch = state.launches[plan.name] = Launch(plan, state.connection, lambda: state.launches.pop(plan.name, None))
        try:
            started = await state.starts.run(launch)
            state.sockets.add(started.raw)
            stream = await GuestStream.over(started.raw)
        except BaseException:
            launch.abandon()
            raise
        state.streams[started.container_id] = stream
        return Attachment(started.container_id, stream, started.warnings)

    async def remove(self, name: str, *, deadline: float = 30.0) -> None:
        """Kill the container and wait until it is gone, its anonymous volumes too. None of that name: no error."""
        state = self._opened
        await state.removals.finish(partial(_remove, state, name, deadline))

    async def cause_of_death(self, container_id: str) -> Death:
        """Why the container ended, as well as the engine still knows."""
        state = self._opened
        death = await state.questions.run(partial(queries.cause_of_death, state.connection, container_id))
        stream = state.streams.get(container_id)
        return with_last_words(death, stream.stderr if stream is not None else b"")

    async def containers(self) -> list[ContainerInfo]:
        """All sandboxes, of whatever owner and state."""
        state = self._opened
        return await state.questions.run(partial(queries.list_sandboxes, state.connection))

    async def guest_is_present(self) -> bool:
        """Whether the guest's volume is on the engine already; the first start puts it there."""
        state = self._opened
        return await state.questions.run(state.connection.guest.is_present)

    async def remove_unused(self) -> list[str]:
        """Remove what sandboxes share and none uses: networks, stale seeding containers, other versions' guests."""
        state = self._opened
        return await state.questions.run(partial(queries.remove_unused, state.connection))

    @property
    def _opened(self) -> _Opened:
        if self._state is None:
            raise EngineUnavailable("The engine is not open; use it within `async with`.")
        return self._state

    async def _sweep(self) -> None:
        """Remove what dead owners left. A failure is no reason not to start: the next opening tries again."""
        with anyio.move_on_after(SWEEP_BOUND):
            try:
                await sweep(self)
            except SandboxError as error:
                _log.warning("The sweep at the engine's opening failed: %s", error)


def _remove(state: _Opened, name: str, deadline: float) -> None:
    """In a thread: end the container of that name, and those that could not be ended before."""
    until = time.monotonic() + deadline
    try:
        _wait_for_launch(state, name, deadline)
        gone = remove_container(state.connection, name, until - time.monotonic())
    except SandboxError:
        state.unremoved.add(name)
        raise
    if gone:
        _remove_left_over(state)
    else:
        state.unremoved.add(name)


def _wait_for_launch(state: _Opened, name: str, deadline: float) -> None:
    launch = state.launches.get(name)
    if launch is None:
        return
    launch.abandon()
    if not launch.over.wait(deadline):
        raise SandboxError(
            f"The start of {name} did not come to an end within {deadline:g} s; see the engine's log, and remove the "
            f"container with `docker rm -f -v {name}`."
        )


def _remove_left_over(state: _Opened) -> None:
    """The owner lives, so no sweep takes these."""
    for name in list(state.unremoved):
        if name in state.launches:
            continue
        try:
            state.connection.api.delete(name, LEFT_OVER_BOUND)
        except RefusedError as refusal:
            if refusal.status != 404:
                continue
        except EngineUnavailable:
            return
        state.unremoved.discard(name)


def _wind_up(state: _Opened) -> None:
    """In a thread: let begun launches end, and give everything back."""
    until = time.monotonic() + CLOSE_BOUND
    for launch in list(state.launches.values()):
        launch.abandon()
        launch.over.wait(max(0.0, until - time.monotonic()))
    _remove_left_over(state)
    try:
        state.connection.network.release()
    except SandboxError as error:
        _log.debug("The open network stays for the next sweep: %s", error)
    for workers in (state.starts, state.questions, state.pulls, state.removals):
        workers.close()
    state.connection.api.close()
