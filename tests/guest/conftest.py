"""The guest's binaries, made once a session: as it is shipped, and under address and undefined-behaviour sanitizers."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sandbox.guest import build
from tests.guest.driver import Guest, Stage, missing_tools

PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
agent:x:1000:1000:An agent,,,:/home/agent:/bin/sh
other:x:1001:1001::/home/other:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
GROUP = """root:x:0:
daemon:x:1:
agent:x:1000:
audio:x:29:agent,other
video:x:44:other,agent
other:x:1001:
nogroup:x:65534:
"""


def _compile_probe(out: Path) -> None:
    compiler = build.native_compiler() or build.zig()
    source = Path(__file__).with_name("probe.c")
    subprocess.run(
        [*compiler, "-static", "-O1", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-o", str(out), str(source)],
        check=True,
    )


@pytest.fixture(scope="session")
def stage_folder() -> Iterator[Path]:
    """What is bound to /mnt inside. Not pytest's own folder, which only root may enter."""
    reason = missing_tools()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="guest-tests-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        logs, etc = folder / "logs", folder / "etc"
        logs.mkdir()
        logs.chmod(0o1777)
        etc.mkdir()
        (etc / "passwd").write_text(PASSWD)
        (etc / "group").write_text(GROUP)
        (etc / "hosts").write_text("127.0.0.1 localhost\n")
        try:
            _compile_probe(folder / "probe")
        except build.BuildError as error:
            pytest.skip(str(error))
        yield folder


@pytest.fixture(scope="session", params=["static", "sanitized"])
def stage(request: pytest.FixtureRequest, stage_folder: Path) -> Stage:
    """Both builds; every test runs on each."""
    name = f"guest-{request.param}"
    try:
        if request.param == "static":
            build.build(build.machine(), stage_folder / name, werror=True)
        else:
            build.build_sanitized(stage_folder / name)
    except build.BuildError as error:
        pytest.skip(str(error))
    return Stage(stage_folder, name, request.param == "sanitized")


@pytest.fixture
def reports(stage_folder: Path) -> Iterator[None]:
    """No sanitizer had anything to say, in PID 1 or in any process that it forked."""
    yield
    found = sorted((stage_folder / "logs").iterdir())
    texts = [text for path in found if (text := path.read_text(errors="replace"))]
    for path in found:
        path.unlink()
    assert not texts, "\n".join(texts)


@pytest.fixture
def start(stage: Stage, reports: None) -> Iterator[Callable[..., Guest]]:
    """Starts guests, which end with the test."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Guest(stage, *args, **options))


@pytest.fixture
def guest(start: Callable[..., Guest]) -> Guest:
    """A guest as an engine would start it."""
    return start()


@pytest.fixture
def etc(stage_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An /etc of the test's own."""
    with tempfile.TemporaryDirectory(prefix="guest-etc-") as name:
        copy = Path(name) / "etc"
        shutil.copytree(stage_folder / "etc", copy)
        Path(name).chmod(0o755)
        yield copy
