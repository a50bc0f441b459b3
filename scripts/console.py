"""What every set-up script shares: how it speaks, how it runs a long command, where it keeps its notes."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
NOTES = ROOT / ".setup"
"""Logs, locks, and what this tree's set-up started; git-ignored."""

HEARTBEAT = 15.0
"""Seconds after which a silent command is said to be still running."""


_locks: list[int] = []


class SetupError(Exception):
    """Set-up can't go on; the message is one sentence that says what to do."""


def say(topic: str, message: str) -> None:
    """One line of progress."""
    print(f"{topic}: {message}", flush=True)


def run_logged(topic: str, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
    """Run ``command`` with its output in ``.setup/TOPIC.log``; show that it lives, and the log's end if it fails."""
    NOTES.mkdir(exist_ok=True)
    log = NOTES / f"{topic}.log"
    started = time.monotonic()
    with log.open("w") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            pass_fds=_locks,  # if this process is killed, the command still runs, and others must wait for its end
        )
        try:
            while (status := _wait(process)) is None:
                say(topic, f"... {time.monotonic() - started:.0f} s")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if status:
        raise SetupError(
            f"`{' '.join(command[:4])} ...` ended with status {status}; its log is {relative(log)}, "
            f"which ends:\n{tail(log)}"
        )


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(HEARTBEAT)
    except subprocess.TimeoutExpired:
        return None


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, indented."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return "    (no log)"
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


def relative(path: Path) -> str:
    """``path`` as a person in this tree would type it."""
    return os.path.relpath(path, Path.cwd())


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold a lock, so that two set-ups in one tree take turns; the kernel frees it however the holders end."""
    NOTES.mkdir(exist_ok=True)
    with (NOTES / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(name, "another set-up is at it; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        _locks.append(lock.fileno())
        try:
            yield
        finally:
            _locks.remove(lock.fileno())


def guest_build() -> ModuleType:
    """``sandbox/guest/build.py``, by path: importing the package needs what isn't installed yet."""
    spec = importlib.util.spec_from_file_location("guest_build", ROOT / "sandbox/guest/build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command_line(topic: str, main: Callable[[], None]) -> int:
    """Run ``main``; what went wrong is one sentence on stderr and a status, never a traceback."""
    try:
        main()
    except SetupError as error:
        print(f"{topic}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{topic}: interrupted; run it again, it takes up where this left off", file=sys.stderr)
        return 130
    return 0
