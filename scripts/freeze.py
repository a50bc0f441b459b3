"""``make constraints``: pin what a fresh environment gets today, by name and version only."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from scripts.console import ROOT, command_line, guest_build, run_logged, say
from scripts.setup_venv import BACKEND, CONSTRAINTS

HEADER = """\
# What `make venv` installs, pinned; made by `make constraints`. Names and versions only: where packages come from is
# the business of the machine's own pip configuration.
"""


def main() -> None:
    """Install without constraints into an environment of its own, and write down what came."""
    with tempfile.TemporaryDirectory(prefix="freeze-") as folder:
        say("constraints", "installing the newest of everything (some minutes)")
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin/python"))
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        run_logged("pip", [*pip, "install", *BACKEND, guest_build().ZIG])
        run_logged("pip", [*pip, "install", "--no-build-isolation", f"{ROOT}[agent,test]"])
        frozen = subprocess.run([*pip, "freeze", "--exclude", "shell-agent-sandbox"], capture_output=True, check=True)
    lines = sorted(frozen.stdout.decode().split("\n"), key=str.lower)
    CONSTRAINTS.write_text(HEADER + "".join(f"{line}\n" for line in lines if "==" in line))
    say("constraints", "written; `git diff constraints.txt` shows what moved")


if __name__ == "__main__":
    sys.exit(command_line("constraints", main))
