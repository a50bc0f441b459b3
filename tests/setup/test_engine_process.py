"""Starting and stopping an engine by hand, with a program of the test's own in dockerd's place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import console, setup_engine
from scripts.console import SetupError
from scripts.setup_engine import DaemonPaths, forget_the_dead, living, start_by_hand, stop

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

FAKE_DOCKERD = """\
import os, signal, socket, sys
if sys.argv[1:] == ["--fail"]:
    print("failed to start daemon: no room")
    sys.exit(1)
open("{folder}/docker.pid", "w").write(str(os.getpid()))
open("/proc/self/comm", "w").write("dockerd")
listener = socket.socket(socket.AF_UNIX)
listener.bind("{folder}/docker.sock")
listener.listen()
while True:
    client, _ = listener.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nOK")
    client.close()
"""


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DaemonPaths]:
    """A ``dockerd`` on PATH that answers pings, with notes and pid files of this test's own."""
    program = tmp_path / "bin/dockerd"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable} -S\n" + FAKE_DOCKERD.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    notes = tmp_path / "notes"
    monkeypatch.setattr(console, "NOTES", notes)
    monkeypatch.setattr(setup_engine, "NOTES", notes)
    monkeypatch.setattr(setup_engine, "STARTED", notes / "dockerd.json")
    monkeypatch.setattr(setup_engine, "LOG", notes / "dockerd.log")
    monkeypatch.setattr(setup_engine, "PATIENCE", 20.0)
    paths = DaemonPaths(tmp_path / "docker.pid", tmp_path / "containerd.pid")
    yield paths
    pid = living(paths.pidfile, "dockerd")
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def start(paths: DaemonPaths, *options: str) -> None:
    start_by_hand(options, f"unix://{paths.pidfile.parent}/docker.sock", paths)


def test_an_engine_that_set_up_started_is_stopped_by_it(daemon: DaemonPaths, capsys: pytest.CaptureFixture[str]):
    start(daemon)
    pid = living(daemon.pidfile, "dockerd")
    assert pid is not None
    stop()
    assert living(daemon.pidfile, "dockerd") is None
    stop()
    assert "started none" in capsys.readouterr().out


def test_an_engine_that_somebody_else_started_is_not_stopped(daemon: DaemonPaths):
    start(daemon)
    setup_engine.STARTED.unlink()
    start(daemon)  # finds it running
    stop()
    assert living(daemon.pidfile, "dockerd") is not None


def test_a_later_process_of_the_same_number_is_not_stopped(daemon: DaemonPaths):
    start(daemon)
    noted = json.loads(setup_engine.STARTED.read_text())
    setup_engine.STARTED.write_text(json.dumps({**noted, "born": "1"}))
    stop()
    assert living(daemon.pidfile, "dockerd") == noted["pid"]


def test_an_engine_that_ends_at_once_shows_the_end_of_its_log(daemon: DaemonPaths):
    with pytest.raises(SetupError, match=r"ended with status 1 instead of answering(.|\n)*no room"):
        start(daemon, "--fail")
    assert not setup_engine.STARTED.exists()


def test_pid_files_that_name_no_engine_are_removed(daemon: DaemonPaths):
    bystander = subprocess.Popen(["sleep", "60"])
    zombie = subprocess.Popen(["true"])
    try:
        while Path(f"/proc/{zombie.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        daemon.pidfile.write_text(str(bystander.pid))
        daemon.containerd_pidfile.write_text(str(zombie.pid))
        assert living(daemon.containerd_pidfile, "true") is None
        forget_the_dead(daemon)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        zombie.wait()
    assert not daemon.pidfile.exists()
    assert not daemon.containerd_pidfile.exists()


def test_the_pid_file_of_a_living_engine_stays(daemon: DaemonPaths):
    start(daemon)
    forget_the_dead(daemon)
    assert daemon.pidfile.exists()


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("dockerd") is None, reason="starts a real dockerd as root")
def test_a_real_engine_comes_back_after_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    # Its sockets' paths must be short, and pytest's are long.
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/engine-XXXXXX"], text=True).strip())
    request.addfinalizer(lambda: _remove(folder))
    for module, name, value in (
        (console, "NOTES", tmp_path),
        (setup_engine, "NOTES", tmp_path),
        (setup_engine, "STARTED", tmp_path / "dockerd.json"),
        (setup_engine, "LOG", tmp_path / "dockerd.log"),
    ):
        monkeypatch.setattr(module, name, value)
    paths = DaemonPaths(folder / "docker.pid", folder / "exec/containerd/containerd.pid")
    address = f"unix://{folder}/docker.sock"
    options = [
        f"--data-root={folder}/data",
        f"--exec-root={folder}/exec",
        f"--pidfile={paths.pidfile}",
        f"--host={address}",
        "--bridge=none",
        "--iptables=false",
    ]
    start_by_hand(options, address, paths)
    killed = [living(paths.pidfile, "dockerd"), living(paths.containerd_pidfile, "containerd")]
    try:
        for pid in killed:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while living(paths.pidfile, "dockerd") is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        start_by_hand(options, address, paths)
        assert living(paths.pidfile, "dockerd") not in (None, killed[0])
    finally:
        stop()
    assert living(paths.pidfile, "dockerd") is None
    assert living(paths.containerd_pidfile, "containerd") is None


def _remove(folder: Path) -> None:
    # A killed dockerd leaves its data root mounted on itself, once for each start.
    while subprocess.run(["umount", str(folder / "data")], capture_output=True).returncode == 0:
        pass
    shutil.rmtree(folder)
