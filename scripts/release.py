"""``make wheel``: one wheel for every machine, with the guest for every architecture, the same bytes each time."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from scripts.console import ROOT, command_line, guest_build, run_logged, say
from scripts.setup_venv import VENV, pip

DIST = ROOT / "dist"


def main() -> None:
    """Build into ``dist/``, with the environment's own pinned backend and compiler."""
    build = guest_build()
    say("wheel", f"building with {build.ZIG} for {' and '.join(build.ARCHS)} (about two minutes the first time)")
    pip("install", build.ZIG)
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        run_logged(
            "wheel",
            [
                str(VENV / "bin/python"),
                "-m",
                "pip",
                "wheel",
                "--no-deps",
                "--no-build-isolation",
                "-w",
                folder,
                str(ROOT),
            ],
            env={"SHELL_AGENT_SANDBOX_ARCHS": " ".join(build.ARCHS)},
        )
        (made,) = Path(folder).glob("*.whl")
        DIST.mkdir(exist_ok=True)
        wheel = Path(shutil.move(made, DIST / made.name))
    say("wheel", f"{wheel.relative_to(ROOT)}  sha256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    sys.exit(command_line("wheel", main))
