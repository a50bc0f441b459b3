"""When the environment is made, brought up to date, or left alone."""

from __future__ import annotations

import pytest

from scripts.setup_venv import Facts, fingerprint, plan

PYPROJECT = '[project]\nname = "x"\n[build-system]\nrequires = []\n[tool.ruff]\nline-length = 1\n'


@pytest.mark.parametrize(
    "stamp, step",
    [("as wanted", "nothing"), ("otherwise", "update"), (None, "create")],
    ids=["whole", "old", "half-made"],
)
def test_a_stamp_decides(stamp: str | None, step: str):
    assert plan(Facts(wanted="as wanted", stamp=stamp)) == step


def test_what_decides_the_packages_decides_the_stamp():
    whole = fingerprint(PYPROJECT, "a==1", "3.11", "/here")
    assert fingerprint(PYPROJECT, "a==2", "3.11", "/here") != whole
    assert fingerprint(PYPROJECT, "a==1", "3.12", "/here") != whole
    assert fingerprint(PYPROJECT, "a==1", "3.11", "/moved") != whole
    assert fingerprint(PYPROJECT.replace('"x"', '"y"'), "a==1", "3.11", "/here") != whole


def test_a_linter_setting_installs_nothing():
    changed = PYPROJECT.replace("line-length = 1", "line-length = 2")
    assert fingerprint(changed, "", "", "") == fingerprint(PYPROJECT, "", "", "")
