"""The documents' examples run, and their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def _examples() -> list[tuple[str, str]]:
    return [
        (f"{document.relative_to(ROOT)}:{number}", code)
        for document in DOCUMENTS
        for number, code in enumerate(FENCE.findall(document.read_text()), 1)
    ]


@pytest.mark.engine
@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in _examples()])
def test_an_example_runs_and_prints_what_its_comments_say(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for promised in re.findall(r"print\(.*\)  # (.*)", code):
        assert promised.split(",")[0] in " ".join(done.stdout.split())


@pytest.mark.parametrize("document", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in DOCUMENTS])
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), target
