"""What breaks on purpose: an engine of the tests' own, a proxy before the real one, guests that misbehave."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dockerd import Docker
from tests.faults.own_engine import OwnEngine
from tests.faults.proxy import FaultyEngine
from tests.real_engine import MINIMAL, compile_static


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def _own_engine(docker: Docker) -> Iterator[OwnEngine]:
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("a second dockerd needs root and the dockerd program")
    engine = OwnEngine()
    try:
        engine.start()
        engine.docker.load(docker.save(MINIMAL))
        yield engine
    finally:
        engine.destroy()


@pytest.fixture
def own_engine(_own_engine: OwnEngine) -> OwnEngine:
    """The tests' own engine, running, whatever an earlier test did to it."""
    _own_engine.start()
    return _own_engine


@pytest.fixture
def proxy(docker: Docker, tmp_path: Path) -> Iterator[FaultyEngine]:
    """The real engine behind a proxy that breaks what it is told to."""
    if not docker.address.startswith("unix://"):
        pytest.skip("the proxy speaks to a unix socket only")
    with FaultyEngine(docker.address.removeprefix("unix://"), tmp_path / "proxy.sock") as faulty:
        yield faulty


@pytest.fixture(scope="session")
def _bad_guest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("guest") / "bad-guest"
    try:
        return compile_static(Path(__file__).with_name("bad_guest.c"), out).read_bytes()
    except subprocess.CalledProcessError:
        pytest.skip("no compiler here makes a static program")


@pytest.fixture
def bad_guest(_bad_guest: bytes, tmp_path: Path, docker: Docker) -> Iterator[Callable[[str], Path]]:
    """A guest that misbehaves in the named way; its volume is removed after the test."""
    before = set(docker.volumes())

    def make(mode: str) -> Path:
        field = b"mode=garbage................"
        assert _bad_guest.count(field) == 1
        path = tmp_path / f"guest-{mode}"
        path.write_bytes(_bad_guest.replace(field, f"mode={mode}".encode().ljust(len(field), b".")))
        return path

    yield make
    _remove_new_guests(docker, before)


@pytest.fixture
def own_guest(tmp_path: Path, docker: Docker) -> Iterator[Path]:
    """The real guest under a hash of its own, so that its volume is this test's alone."""
    from sandbox.guest import build, guest_binary

    before = set(docker.volumes())
    path = tmp_path / "guest"
    path.write_bytes(guest_binary(build.machine()).read_bytes() + os.urandom(16))
    yield path
    _remove_new_guests(docker, before)


def _remove_new_guests(docker: Docker, before: set[str]) -> None:
    from sandbox.plan import ROLE

    for name, volume in docker.volumes().items():
        if name not in before and (volume["Labels"] or {}).get(ROLE) == "guest":
            docker.remove_volume(name)
