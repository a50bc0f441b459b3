"""``make engine`` and ``make engine-stop``: see that a container engine answers.

One that answers is used as it is and nothing is installed. Where none does, root on a Debian-like system gets
Debian's ``docker.io``, started by systemd or, where that isn't PID 1, by hand. Looking comes first, then a plan in
plain code, then the doing.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.console import NOTES, ROOT, SetupError, alone, command_line, relative, run_logged, say, tail
from scripts.find_engine import DEFAULT, Place, Probe, probe, probe_all

STARTED = NOTES / "dockerd.json"
"""The engine that this tree's set-up started: what `make engine-stop` may stop."""

LOG = NOTES / "dockerd.log"
PATIENCE = 90.0
"""Seconds for an engine to come up; restoring what an earlier one left can take long."""


@dataclass(frozen=True)
class Facts:
    """What the plan is made from."""

    probes: Sequence[Probe]
    root: bool
    linux: bool
    systemd: bool
    has_dockerd: bool
    has_apt: bool


@dataclass(frozen=True)
class Use:
    """An engine answers."""

    place: Place


@dataclass(frozen=True)
class Start:
    """An engine must be started at the default socket, and perhaps installed."""

    install: bool
    by_systemd: bool


@dataclass(frozen=True)
class Refuse:
    """A person must do something."""

    sentence: str


@dataclass(frozen=True)
class DaemonPaths:
    """Where a dockerd keeps what it runs with."""

    pidfile: Path = Path("/var/run/docker.pid")
    containerd_pidfile: Path = Path("/var/run/docker/containerd/containerd.pid")


def plan(facts: Facts) -> Use | Start | Refuse:
    """What to do about the engine."""
    for found in facts.probes:
        if found.state == "answers":
            return Use(found.place)
    for found in facts.probes:
        if found.state == "denied":
            return Refuse(
                f"an engine's socket is there ({found.place.address}) but this user may not use it: run "
                f"`sudo usermod -aG docker $USER` and log in again, or set up a rootless engine"
            )
        if found.place.chosen:
            return Refuse(
                f"{found.place.named_by} points to {found.place.address}, where no engine answers "
                f"({found.detail}): start that engine, or choose another one with DOCKER_HOST or `docker context use`"
            )
        if found.state == "broken":
            return Refuse(
                f"something listens at {found.place.address} but doesn't answer as an engine does "
                f"({found.detail}): restart it"
            )
    if not facts.linux:
        return Refuse("no container engine answers: install and start Docker Desktop, or any engine that docker finds")
    if not facts.root:
        return Refuse(
            "no container engine answers, and as a plain user none can be installed: install Docker "
            "(on Debian and Ubuntu `sudo apt-get install docker.io`) and start it, or run this as root"
        )
    if facts.has_dockerd:
        return Start(install=False, by_systemd=facts.systemd)
    if facts.has_apt:
        return Start(install=True, by_systemd=facts.systemd)
    return Refuse("no container engine answers, and there is no apt-get to install one with: install and start Docker")


def look() -> Facts:
    """Read the facts off this machine."""
    return Facts(
        probes=probe_all(),
        root=os.geteuid() == 0,
        linux=sys.platform.startswith("linux"),
        systemd=Path("/run/systemd/system").is_dir(),
        has_dockerd=shutil.which("dockerd") is not None,
        has_apt=shutil.which("apt-get") is not None,
    )


def main() -> None:
    """Make an engine answer."""
    step = plan(look())
    if isinstance(step, Start):
        with alone("engine"):
            step = plan(look())  # whoever held the lock may have started it
            if isinstance(step, Start):
                carry_out(step)
                return
    if isinstance(step, Refuse):
        raise SetupError(step.sentence)
    say("engine", f"{step.place.address} answers ({step.place.named_by})")


def carry_out(step: Start) -> None:
    """Install what is missing, start what doesn't run, and wait until it answers."""
    if step.install:
        with _service_starts_held_back(not step.by_systemd):
            install()
    if step.by_systemd:
        say("engine", "starting docker.service")
        run_logged("systemctl", ["systemctl", "start", "docker.service"])
        wait_for_answer(DEFAULT, None)
    else:
        start_by_hand()
    say("engine", "answers")


def install() -> None:
    """Debian's engine, and no more than it needs."""
    say("engine", "installing docker.io (about a minute)")
    command = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with contextlib.suppress(SetupError):  # a third party's broken list must not keep Debian's from being used
        run_logged("apt-update", [*command, "update"], env=quiet)
    run_logged("apt-install", [*command, "install", "--no-install-recommends", "docker.io", "iptables"], env=quiet)


def start_by_hand(options: Sequence[str] = (), address: str = DEFAULT, paths: DaemonPaths | None = None) -> None:
    """Start a dockerd that outlives this process, and note which one it is."""
    paths = paths or DaemonPaths()
    forget_the_dead(paths)
    NOTES.mkdir(exist_ok=True)
    running = living(paths.pidfile, "dockerd")
    if running is None:
        say("engine", f"starting dockerd (its log is {relative(LOG)})")
        _raise_open_files()
        with LOG.open("wb") as log:
            process = subprocess.Popen(
                ["dockerd", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,  # neither this terminal's hang-up nor its Ctrl-C is meant for the engine
            )
        note(process.pid, paths)
        wait_for_answer(address, process)
        process.returncode = 0  # it is meant to outlive this program; otherwise Popen warns that it does
    else:
        say("engine", f"waiting for the dockerd that somebody else is starting (process {running})")
        wait_for_answer(address, None)


def wait_for_answer(address: str, process: subprocess.Popen[bytes] | None) -> None:
    """Until the engine answers, or it is clear that it won't."""
    place = Place(address, "set-up", False)
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        if probe(place).state == "answers":
            return
        if process is not None and process.poll() is not None:
            STARTED.unlink(missing_ok=True)
            raise SetupError(
                f"dockerd ended with status {process.returncode} instead of answering; "
                f"its log is {relative(LOG)}, which ends:\n{tail(LOG)}"
            )
        time.sleep(0.2)
    raise SetupError(
        f"no engine answered at {address} within {PATIENCE:.0f} s; its log is {relative(LOG)}, which ends:\n{tail(LOG)}"
    )


def forget_the_dead(paths: DaemonPaths) -> None:
    """Remove pid files that name no engine.

    dockerd only asks whether /proc has a process of that number. It may be some other program's by now, or a zombie
    where PID 1 reaps nothing; then dockerd would refuse to start, or wait for a containerd that isn't one.
    """
    for file, name in ((paths.pidfile, "dockerd"), (paths.containerd_pidfile, "containerd")):
        if file.exists() and living(file, name) is None:
            say("engine", f"removing {file}, which an engine that is gone left behind")
            file.unlink(missing_ok=True)


def living(pidfile: Path, name: str) -> int | None:
    """The process that ``pidfile`` names, if it lives and is a ``name``."""
    try:
        pid = int(pidfile.read_text())
        command, _, state = _stat(pid)
        return pid if command == name and state != "Z" else None
    except (OSError, ValueError):
        return None


def note(pid: int, paths: DaemonPaths) -> None:
    """Write down which process was started; its start time tells it from a later one of the same number."""
    STARTED.write_text(
        json.dumps({"pid": pid, "born": _stat(pid)[1], "containerd": str(paths.containerd_pidfile)}) + "\n"
    )


def stop() -> None:
    """End the engine that this tree's set-up started, and no other."""
    with alone("engine"):
        try:
            noted = json.loads(STARTED.read_text())
        except FileNotFoundError:
            say("engine", "this tree's set-up started none that could be stopped")
            return
        pid = noted["pid"]
        if _is(pid, noted["born"]):
            say("engine", f"stopping the dockerd that set-up started (process {pid})")
            end(pid, noted["born"])
        STARTED.unlink(missing_ok=True)


def end(pid: int, born: str, patience: float = 60.0) -> None:
    """SIGTERM, which also ends the containers; SIGKILL if that doesn't help. Returns when the process is gone."""
    for kind, wait in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, kind)
        give_up = time.monotonic() + wait
        while time.monotonic() < give_up:
            if not _is(pid, born):
                return
            time.sleep(0.1)
    raise SetupError(f"the dockerd with process number {pid} does not end; look at {relative(LOG)}")


def _is(pid: int, born: str) -> bool:
    try:
        _, when, state = _stat(pid)
    except (OSError, ValueError):
        return False
    return when == born and state != "Z"


def _stat(pid: int) -> tuple[str, str, str]:
    """Name, start time and state of a process."""
    text = Path(f"/proc/{pid}/stat").read_text()
    head, _, rest = text.rpartition(")")  # the name itself may hold spaces and brackets
    fields = rest.split()
    return head.partition("(")[2], fields[19], fields[0]


def _raise_open_files() -> None:
    # Containers inherit the engine's limit, and a shell's soft limit is meant for a shell.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _service_starts_held_back(wanted: bool) -> Iterator[None]:
    """Keep the package from starting an engine through SysV scripts: it would be nobody's to stop."""
    policy = Path("/usr/sbin/policy-rc.d")
    if not wanted or policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(command_line("engine", stop if sys.argv[1:] == ["stop"] else main))
