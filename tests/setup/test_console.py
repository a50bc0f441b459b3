"""How set-up runs what takes long: alone, heard from, and with its log at hand when it fails."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import console
from scripts.console import ROOT, SetupError, alone, command_line, run_logged


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(console, "NOTES", tmp_path)
    return tmp_path


def test_a_failing_command_shows_the_end_of_its_log():
    with pytest.raises(SetupError, match=r"status 3; its log is .*thing\.log, which ends:\n    the reason"):
        run_logged("thing", ["sh", "-c", "echo the reason; exit 3"])


def test_a_long_command_is_heard_from(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(console, "HEARTBEAT", 0.05)
    run_logged("thing", ["sleep", "0.3"])
    assert "thing: ... 0 s" in capsys.readouterr().out


def test_an_error_is_a_sentence_and_a_status(capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        raise SetupError("install it")

    assert command_line("thing", fail) == 1
    assert capsys.readouterr().err == "thing: install it\n"


def test_an_orphaned_command_still_keeps_others_out(notes: Path):
    """A killed set-up may leave pip running; the next one must not make the environment anew under its hands."""
    program = (
        "import pathlib, sys; from scripts import console; console.NOTES = pathlib.Path(sys.argv[1])\n"
        "with console.alone('x'): console.run_logged('x', ['sh', '-c', 'echo $$ && exec sleep 1'])"
    )
    first = subprocess.Popen([sys.executable, "-c", program, str(notes)], cwd=ROOT)
    log = notes / "x.log"
    while not (log.exists() and log.read_text()):
        time.sleep(0.01)
    orphan = int(log.read_text())
    first.kill()
    first.wait()
    assert running(orphan)
    with alone("x"):
        assert not running(orphan)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
