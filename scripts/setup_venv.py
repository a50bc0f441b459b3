"""``make venv``: a virtual environment with everything that development, the tests and the selftest need.

Its stamp is written last and removed first, so an environment without one is half-made and made again. The stamp
names what the environment was made from; when that changes, pip brings it up to date in place.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from typing import Literal

from scripts.console import ROOT, SetupError, alone, command_line, guest_build, run_logged, say

VENV = ROOT / ".venv"
STAMP = VENV / ".complete"
CONSTRAINTS = ROOT / "constraints.txt"
BACKEND = ["hatchling", "editables"]
"""Installed rather than left to a build environment, which pip's constraints don't reach."""

MINIMUM = (3, 11)

Step = Literal["nothing", "update", "create"]


@dataclass(frozen=True)
class Facts:
    """What the plan is made from."""

    wanted: str
    stamp: str | None
    """What the environment says it was made from; None where it doesn't say, or doesn't run."""


def plan(facts: Facts) -> Step:
    """What must be done; see the head of this file."""
    if facts.stamp is None:
        return "create"
    return "nothing" if facts.stamp == facts.wanted else "update"


def fingerprint(pyproject: str, constraints: str, python: str, root: str) -> str:
    """A digest of all that decides what is installed; the rest of pyproject.toml (linters, pytest) doesn't."""
    table = tomllib.loads(pyproject)
    decisive = [table["project"], table["build-system"], constraints, python, root]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def look() -> Facts:
    """Read the facts off this tree."""
    wanted = fingerprint((ROOT / "pyproject.toml").read_text(), CONSTRAINTS.read_text(), sys.version, str(ROOT))
    runs = STAMP.is_file() and _runs([str(VENV / "bin/python"), "-c", ""])
    return Facts(wanted, STAMP.read_text() if runs else None)


def main() -> None:
    """Bring the environment to what is wanted."""
    if sys.version_info < MINIMUM:
        raise SetupError(
            f"Python {'.'.join(map(str, MINIMUM))} or newer is needed and {sys.executable} is "
            f"{sys.version.split()[0]}; name another one with `make PYTHON=python3.11`"
        )
    with alone("venv"):
        facts = look()
        step = plan(facts)
        if step == "nothing":
            return
        STAMP.unlink(missing_ok=True)
        if step == "create":
            create()
        install()
        STAMP.write_text(facts.wanted)
    say("venv", "ready")


def create() -> None:
    """An empty environment in place of whatever is there."""
    need_ensurepip()
    say("venv", "creating .venv")
    shutil.rmtree(VENV, ignore_errors=True)
    run_logged("venv", [sys.executable, "-m", "venv", str(VENV)])


def need_ensurepip() -> None:
    """Debian ships Python without what makes environments."""
    if importlib.util.find_spec("ensurepip") is not None:
        return
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SetupError(f"this Python makes no virtual environments; install the package {package}")
    say("venv", f"installing {package}")
    run_logged("apt", ["apt-get", "update", "-q"])
    run_logged(
        "apt",
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", package],
        env={"DEBIAN_FRONTEND": "noninteractive"},
    )


def install() -> None:
    """The build backend first, since the project itself is built without isolation, then the project."""
    say("venv", "installing what constraints.txt pins (some two minutes the first time)")
    pip("install", *BACKEND, *_guest_requirements())
    pip("install", "--no-build-isolation", "--editable", f"{ROOT}[agent,test]")


def pip(*arguments: str) -> None:
    """Run the environment's pip under the constraints."""
    command = [str(VENV / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    run_logged(
        "pip",
        [*command, "--progress-bar=off", "--constraint", str(CONSTRAINTS)],
        env={"SHELL_AGENT_SANDBOX_ARCHS": "none"},  # the Makefile builds the guest, whenever its sources change
    )


def _guest_requirements() -> list[str]:
    build = guest_build()
    try:
        return [str(requirement) for requirement in build.requirements()]
    except build.BuildError as error:
        raise SetupError(str(error)) from error


def _runs(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(command_line("venv", main))
