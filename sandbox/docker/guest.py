"""The volume that holds the guest: seeded once per engine, mounted read-only by every sandbox.

It is named after the binary's own hash, so versions live side by side. A created, never started container is the door
to it: the engine's archive calls write and read a volume through one. The seeding one has a fixed name, which makes it
the mutex between processes.
"""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from sandbox.docker.api import DockerApi, RefusedError
from sandbox.docker.config import GUEST_PATH, guest_mount
from sandbox.docker.facts import parse_time
from sandbox.errors import SandboxStartError
from sandbox.owner import Owner
from sandbox.plan import GUEST_DIR, NAME_PREFIX, shared_labels

SEEDING_BOUND = 30.0
"""Seconds to wait for another process's seeding, which takes a tenth of one."""

STALE_AFTER = 20.0
"""Less than that: who waits for a seeding that has failed must see it so."""

_SEEDING: dict[str, threading.Lock] = {}
"""One for each engine's address: within a process there is one seeding at a time. So a seeding container of this very
process, seen by whoever holds the lock, is one that the engine died over."""


class GuestVolume:
    """One guest binary on one engine."""

    def __init__(self, api: DockerApi, binary: bytes, arch: str, clock_offset: float) -> None:
        self._api = api
        self._binary = binary
        self._arch = arch
        self._digest = hashlib.sha256(binary).hexdigest()
        self._clock_offset = clock_offset
        self._lock = threading.Lock()
        self._ready = False
        self._doors: set[str] = set()
        """Names of containers that may be there still: the engine died, or did not say."""
        self.name = f"{NAME_PREFIX}guest-{self._digest[:16]}-{arch}"
        self._mutex = f"{NAME_PREFIX}seed-{self._digest[:16]}-{arch}"

    def ensure(self, image: str) -> None:
        """Make sure that the volume holds the guest. ``image`` is any image of the engine's.

        Verified once per object, not per container: nothing but the engine's own administrator can change it.
        """
        if not self._binary:
            raise SandboxStartError(
                f"This installation has no guest for {self._arch}; make it with `python -m sandbox.guest.build` or "
                "install a release wheel."
            )
        with self._lock:
            if not self._ready or self._doors:
                with _SEEDING.setdefault(self._api.address, threading.Lock()):
                    self._prepare(image)

    def _prepare(self, image: str) -> None:
        for name in tuple(self._doors):
            if self._is_mine(self._api.inspect(name)):
                self._api.discard(name)
            self._doors.discard(name)
        if not self._ready and not self._verified(image):
            self._seed(image)
        self._ready = True

    def forget(self) -> None:
        """The volume turned out to be without its guest: it was pruned. The next ``ensure`` seeds it again."""
        with self._lock:
            self._ready = False

    def is_present(self) -> bool:
        """Whether the engine has the volume; what it holds is not looked at."""
        return self._api.volume(self.name) is not None

    def _verified(self, image: str) -> bool:
        if not self.is_present():
            return False
        name = f"{NAME_PREFIX}check-{uuid4().hex}"
        door = self._open_door(name, image)
        try:
            return self._holds_guest(door)
        finally:
            self._close_door(name, door)

    def _seed(self, image: str) -> None:
        self._api.create_volume(self.name, shared_labels("guest"))
        door = self._take_mutex(image)
        try:
            if self._holds_guest(door):
                return  # another process was faster
            self._api.put_file(door, GUEST_DIR, Path(GUEST_PATH).name, self._binary)
            if not self._holds_guest(door):
                raise SandboxStartError(
                    f"The guest in the volume {self.name} is not the one that was put there; remove the volume "
                    "(docker volume rm) and see the engine's log."
                )
        finally:
            self._close_door(self._mutex, door)

    def _holds_guest(self, door: str) -> bool:
        data = self._api.get_file(door, GUEST_PATH)
        return data is not None and hashlib.sha256(data).hexdigest() == self._digest

    def _take_mutex(self, image: str) -> str:
        deadline = time.monotonic() + SEEDING_BOUND
        while True:
            try:
                return self._open_door(self._mutex, image)
            except RefusedError as refusal:
                self._doors.discard(self._mutex)
                if refusal.status != 409:
                    raise
            self._discard_stale()
            if time.monotonic() > deadline:
                raise SandboxStartError(
                    f"Another process has been seeding the guest for {SEEDING_BOUND:.0f} s; remove its container with "
                    f"`docker rm {self._mutex}` and try again."
                )
            time.sleep(0.05)

    def _discard_stale(self) -> None:
        holder = self._api.inspect(self._mutex)
        if holder is not None and (self._is_mine(holder) or is_stale(holder, self._clock_offset)):
            self._api.discard(str(holder["Id"]))

    def _is_mine(self, door: dict[str, Any] | None) -> bool:
        return door is not None and _owner(door) == Owner.current()

    def _open_door(self, name: str, image: str) -> str:
        self._doors.add(name)
        config = {
            "Image": image,
            "Entrypoint": [GUEST_PATH],
            "Labels": {**shared_labels("seed"), **Owner.current().labels()},
            "NetworkDisabled": True,
            "HostConfig": {"NetworkMode": "none", "Mounts": [guest_mount(self.name, read_only=False)]},
        }
        return self._api.create(name, config)[0]

    def _close_door(self, name: str, door: str) -> None:
        self._api.discard(door)
        self._doors.discard(name)


def is_stale(inspected: dict[str, Any], clock_offset: float) -> bool:
    """Whether a seeding container's owner is dead, or has taken so long that it must have failed."""
    if _owner(inspected).liveness() == "dead":
        return True
    return time.time() + clock_offset - parse_time(str(inspected.get("Created"))) > STALE_AFTER


def _owner(inspected: dict[str, Any]) -> Owner:
    return Owner.from_labels((inspected.get("Config") or {}).get("Labels") or {})
