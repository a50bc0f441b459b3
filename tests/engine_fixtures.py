"""Fixtures for tests on a real engine: the engine itself, images made by hand, and the proof that nothing was left.

A test module takes them with ``pytest_plugins = ["tests.engine_fixtures"]`` and the marks of ``tests.real_engine``.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sandbox.docker import DockerEngine
from sandbox.docker.address import find_addresses
from sandbox.owner import OWNER, Owner
from sandbox.plan import NAME_PREFIX, ROLE
from tests.dockerd import Docker, Entry, make_image
from tests.real_engine import MINIMAL, PRIVATE

BOUND = 15.0


@pytest.fixture(scope="session")
def docker() -> Docker:
    """The engine that the docker command would use."""
    found = [Docker(address) for address in find_addresses(os.environ)]
    answering = [engine for engine in found if engine.answers()]
    if not answering:
        pytest.skip(f"no container engine answers at {', '.join(engine.address for engine in found)}: make engine")
    return answering[0]


@dataclass
class Census:
    """What is there before a test, of all that a sandbox could leave."""

    docker: Docker
    volumes: set[str] = field(default_factory=set)
    networks: set[str] = field(default_factory=set)
    descriptors: dict[str, str] = field(default_factory=dict)
    threads: set[int | None] = field(default_factory=set)

    @classmethod
    def take(cls, docker: Docker) -> Census:
        volumes = set(docker.volumes())
        threads = {thread.ident for thread in threading.enumerate()}
        return cls(docker, volumes, set(docker.networks().values()), _descriptors(), threads)

    def left(self) -> list[str]:
        """What is there now and was not before. Guests' volumes stay by design."""
        shared = {name for name, volume in self.docker.volumes().items() if (volume["Labels"] or {}).get(ROLE)}
        now = Census.take(self.docker)
        mine = self.docker.containers(f"{OWNER}={Owner.current().owner}")
        threads = [t for t in threading.enumerate() if t.ident not in self.threads and t.name.startswith("sandbox-")]
        return [
            *(f"container {container['Names']} ({container['State']})" for container in mine),
            *(f"volume {name}" for name in now.volumes - self.volumes - shared),
            *(f"network {name}" for name in now.networks - self.networks if name.startswith(NAME_PREFIX)),
            *(f"descriptor {fd}: {now.descriptors[fd]}" for fd in now.descriptors.keys() - self.descriptors.keys()),
            *(f"thread {thread.name}" for thread in threads),
        ]


def _descriptors() -> dict[str, str]:
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[path.name] = str(path.readlink())
        except OSError:
            continue  # the one that lists them
    return found


@pytest.fixture
def nothing_left(docker: Docker) -> Iterator[None]:
    """Around every test that may start a container: no trace of it may stay."""
    census = Census.take(docker)
    yield
    deadline = time.monotonic() + BOUND
    while left := census.left():
        gc.collect()  # an exception's traceback may hold a closed client's socket
        assert time.monotonic() < deadline, f"left behind: {', '.join(left)}"
        time.sleep(0.02)


def _tasks() -> set[asyncio.Task[Any]]:
    """All but anyio's own, which run fixtures and tests."""
    return {task for task in asyncio.all_tasks() if "TestRunner" not in getattr(task.get_coro(), "__qualname__", "")}


@pytest.fixture
async def real_engine(docker: Docker, nothing_left: None) -> AsyncIterator[DockerEngine]:
    """An engine of this test's own. When the test is over none of its tasks may be."""
    before = _tasks()
    async with DockerEngine(docker.address, sweeping=False) as engine:
        yield engine
    deadline = time.monotonic() + BOUND
    while left := _tasks() - before:
        assert time.monotonic() < deadline, f"tasks left behind: {left}"
        await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def make_hand_image(docker: Docker) -> Iterator[Callable[..., str]]:
    """Load an image made by hand; its reference. They are gone after the session."""
    made: list[str] = []

    def make(name: str, entries: Mapping[str, Entry], **more: Any) -> str:
        reference = f"{PRIVATE}-{name}-{os.getpid()}:latest"
        if reference not in made:
            docker.load(make_image(reference, entries, **more))
            made.append(reference)
        return reference

    yield make
    for reference in made:
        docker.remove_image(reference)


@pytest.fixture(scope="session")
def busybox(docker: Docker) -> bytes:
    """The minimal image's static shell, for images made by hand."""
    container = docker.create(f"sandbox-test-busybox-{os.getpid()}", {"Image": MINIMAL})
    try:
        return docker.get(container, "/bin/busybox")
    finally:
        docker.remove(container)
