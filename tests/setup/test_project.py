"""What the project's own files promise."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest

from sandbox.guest import build
from scripts.console import ROOT

PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pinned if not PIN.fullmatch(line)] == []
    return {name.lower().replace("_", "-"): release for name, _, release in (pin.partition("==") for pin in pinned)}


def test_constraints_are_names_and_versions_and_nothing_else():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "--" not in text
    assert "@" not in text
    assert pins()["atroposlib"] == "0.4.0"


def test_everything_that_make_venv_installs_is_pinned():
    needs = [need for need in requires("shell-agent-sandbox") or [] if 'extra == "cpu"' not in need.replace("'", '"')]
    names = {re.split(r"[^A-Za-z0-9._-]", need)[0].lower() for need in needs}
    assert names - set(pins()) == set()


def test_the_zig_that_builds_releases_is_the_pinned_one():
    assert f"ziglang=={pins()['ziglang']}" == build.ZIG


def test_this_environment_has_the_pinned_versions():
    assert version("atroposlib") == pins()["atroposlib"]
    assert version("docker") == pins()["docker"]


def test_the_package_alone_does_without_the_agents_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [need for need in project["dependencies"] if need.startswith(("atroposlib", "transformers", "torch"))]


def test_no_binary_is_committed():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert [path for path in files if path.is_file() and b"\0" in path.read_bytes()[:8192]] == []


def test_every_make_target_is_listed_by_make_help():
    makefile = Path(ROOT, "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (\S+)$", makefile, re.MULTILINE))
    listed = subprocess.check_output(["make", "-s", "-C", str(ROOT), "help"], text=True)
    assert {line.split()[0] for line in listed.splitlines()} == phony
