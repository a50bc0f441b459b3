"""Create, attach, start: one job in one thread, which can be abandoned at any instant and then leaves nothing.

The attach comes before the start, so no byte of the guest is lost, and there is only ever one: a second one could
inject frames, and its end would end the guest.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sandbox.docker.api import RefusedError
from sandbox.docker.config import GUEST_PATH, create_config
from sandbox.docker.connection import Connection
from sandbox.engine import ContainerPlan
from sandbox.errors import ImageUnavailable, SandboxError, SandboxStartError
from sandbox.spec import Network

_ATTEMPTS = 3
"""One, and one more for each of the shared things that can be gone: the guest's volume and the open network."""


@dataclass(frozen=True, slots=True)
class Started:
    """A running container and its raw, blocking socket."""

    container_id: str
    raw: socket.socket
    warnings: tuple[str, ...]


class AbandonedError(Exception):
    """The caller of this launch has gone; nothing of it is left."""


class Launch:
    """One container's way into life."""

    def __init__(self, plan: ContainerPlan, connection: Connection, on_end: Callable[[], object]) -> None:
        self._plan = plan
        self._on_end = on_end
        self._api = connection.api
        self._guest = connection.guest
        self._network = connection.network
        self._lock = threading.Lock()
        self._begun = False
        self._abandoned = False
        self._started: Started | None = None
        self.over = threading.Event()
        """Set when the thread is done with this launch, or never will begin it."""

    def __call__(self) -> Started:
        """The thread's part."""
        try:
            with self._lock:
                self._begun = True
            started = self._launch()
            with self._lock:
                self._started = started
                if not self._abandoned:
                    return started
            self._undo(started.raw)
            raise AbandonedError
        finally:
            self._end()

    def abandon(self) -> None:
        """Nobody wants the container any more. What has come to be is ended, here or by the thread."""
        with self._lock:
            self._abandoned = True
            if not self._begun:
                self._end()
            if self._started is not None:
                self._started.raw.close()

    def _end(self) -> None:
        self._on_end()
        self.over.set()

    def _launch(self) -> Started:
        for attempt in range(_ATTEMPTS):
            self._give_up_if_abandoned()
            network = self._prepare()
            try:
                return self._attempt(network)
            except RefusedError as refusal:
                if attempt == _ATTEMPTS - 1 or not self._mended(refusal, network):
                    raise self._explained(refusal) from refusal
        raise AssertionError("unreachable")

    def _prepare(self) -> str | None:
        """Make sure of all that the container shares with others; the id of its network."""
        spec = self._plan.spec
        try:
            for mount in spec.mounts:
                # The engine would silently create it, empty.
                if self._api.volume(mount.volume) is None:
                    raise SandboxStartError(
                        f"The engine has no volume {mount.volume!r} to mount at {mount.target}; create and fill it "
                        "first (docker volume create)."
                    )
            self._guest.ensure(self._plan.image.id)
            return self._network.ensure() if spec.network is Network.OPEN else None
        except RefusedError as refusal:
            raise self._explained(refusal) from refusal

    def _attempt(self, network: str | None) -> Started:
        self._give_up_if_abandoned()
        raw: socket.socket | None = None
        try:
            config = create_config(self._plan, self._guest.name, network)
            container, warnings = self._api.create(self._plan.name, config, self._plan.spec.platform)
            check_warnings(warnings)
            self._give_up_if_abandoned()
            raw = self._api.attach(container)
            self._give_up_if_abandoned()
            self._api.start(container)
            return Started(container, raw, warnings)
        except BaseException:
            self._undo(raw)
            raise

    def _undo(self, raw: socket.socket | None) -> None:
        if raw is not None:
            raw.close()
        # If the engine is gone, the guest's end of file, its lease or the next sweep ends the rest.
        with contextlib.suppress(SandboxError):
            self._api.remove(self._plan.name, 30.0)

    def _give_up_if_abandoned(self) -> None:
        with self._lock:
            if self._abandoned:
                raise AbandonedError

    def _mended(self, refusal: RefusedError, network: str | None) -> bool:
        """Whether the refusal came of something shared that was removed meanwhile. Nothing has run, so try again."""
        if GUEST_PATH in refusal.message:
            self._guest.forget()
            return True
        if network is not None and network in refusal.message:
            self._network.forget()
            return True
        return False

    def _explained(self, refusal: RefusedError) -> SandboxError:
        spec, message = self._plan.spec, refusal.message
        if refusal.status == 404 and re.search(r"no such image", message, re.IGNORECASE):
            return ImageUnavailable(f"The image {spec.image!r} is no longer on the engine; pull or build it again.")
        for words, hint in _HINTS:
            if re.search(words, message, re.IGNORECASE):
                return SandboxStartError(f"The engine could not start the sandbox ({message}); {hint(self._plan)}.")
        return SandboxStartError(
            f"The engine could not start the sandbox ({message}); mend the spec, or see the engine's log."
        )


_HINTS: tuple[tuple[str, Callable[[ContainerPlan], str]], ...] = (
    (r"storage-opt|pquota|quota", lambda plan: "leave limits.disk out, or use overlay2 on xfs with pquota"),
    (r"capability", lambda plan: "this engine's kernel lacks it: leave it out of the spec's capabilities"),
    (
        r"exec format error",
        lambda plan: f"the guest does not run on this engine: check that the image is for {plan.image.architecture}",
    ),
    (r"rlimit", lambda plan: "lower limits.open_files, or raise the engine's own limit (LimitNOFILE)"),
    (r"memory|oom|cannot allocate", lambda plan: f"raise limits.memory above {int(plan.spec.limits.memory)} bytes"),
    (r"pids|resource temporarily unavailable", lambda plan: f"raise limits.pids above {plan.spec.limits.pids}"),
    (r"no space left", lambda plan: "free disk space on the engine's host (docker system df)"),
    (r"address pool", lambda plan: "remove unused networks on the engine (docker network prune)"),
)


def check_warnings(warnings: tuple[str, ...]) -> None:
    """An engine may create a container and only warn that it ignores a limit; without its limits none may start.

    Swap is the exception: an engine that can't bound it still bounds the memory, and says so in the attachment.
    """
    for warning in warnings:
        if "discarded" in warning.lower() and "swap" not in warning.lower():
            raise SandboxStartError(
                f"The engine discards a limit that every sandbox needs ({warning.rstrip('.')}); enable it on the "
                "engine's host or delegate the cgroup controllers to the user's engine."
            )
