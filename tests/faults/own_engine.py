"""A dockerd of the tests' own, which they may kill: its own data, sockets and pid file, no network."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.dockerd import Docker, wait_until

START_BOUND = 60.0
STOP_BOUND = 30.0

_MNT_DETACH = 2


class OwnEngine:
    """One engine with one data directory; it can be started again after its death."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="own-engine-"))
        self.socket = self.home / "docker.sock"
        self.docker = Docker(f"unix://{self.socket}")
        self._pid_file = self.home / "docker.pid"
        self._process: subprocess.Popen[bytes] | None = None
        (self.home / "daemon.json").write_text("{}")

    @property
    def address(self) -> str:
        return self.docker.address

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start it and wait until it answers."""
        if self._process is not None:
            return
        self._pid_file.unlink(missing_ok=True)
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "dockerd",
                    f"--config-file={self.home}/daemon.json",
                    f"--data-root={self.home}/data",
                    f"--exec-root={self.home}/exec",
                    f"--pidfile={self._pid_file}",
                    f"--host=unix://{self.socket}",
                    f"--containerd-namespace={self.home.name}",
                    f"--containerd-plugins-namespace={self.home.name}-plugins",
                    "--add-runtime=broken=/bin/false",
                    "--bridge=none",
                    "--iptables=false",
                    "--ip6tables=false",
                    "--log-level=error",
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        wait_until(self._has_answered, START_BOUND, "the tests' own engine answers")

    def _has_answered(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the tests' own engine ended: {self.log()}"
        return self.docker.answers()

    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")[-2000:]

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL: no time for anything."""
        self.signal(signal.SIGKILL)
        self._wait()
        # Its containerd is killed by the kernel with it; a new engine that sees it dying would wait for it in vain.
        wait_until(lambda: not self._containerd_lives(), STOP_BOUND, "its containerd is dead")
        (self.home / "exec/containerd/containerd.pid").unlink(missing_ok=True)

    def _containerd_lives(self) -> bool:
        try:
            pid = int((self.home / "exec/containerd/containerd.pid").read_text())
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (OSError, ValueError):
            return False

    def stop(self) -> None:
        """SIGTERM, as a host's shutdown does it; its containers are stopped too."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(STOP_BOUND)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._wait()

    def _wait(self) -> None:
        assert self._process is not None
        self._process.wait()
        self._process = None

    def destroy(self) -> None:
        """Stop it and remove every trace: what it started names its directory."""
        self.stop()
        for _ in range(50):
            mine = self._processes()
            for pid in mine:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not mine:
                break
            time.sleep(0.1)
        libc = ctypes.CDLL(None, use_errno=True)
        for place in sorted(self._mounts(), reverse=True):
            libc.umount2(place.encode(), _MNT_DETACH)
        shutil.rmtree(self.home, ignore_errors=True)

    def _processes(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if f"{self.home}/".encode() in path.read_bytes() and path.parent.name != str(os.getpid()):
                    found.append(int(path.parent.name))
        return found

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mounts").read_text().splitlines()
        return [line.split()[1] for line in lines if line.split()[1].startswith(f"{self.home}/")]
