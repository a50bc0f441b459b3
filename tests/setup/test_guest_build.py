"""The guest's build: that its products run anywhere, and what it says when it can't make one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.guest import build, guest_binary, normalize_arch

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guest is a Linux program")


@linux
def test_the_guest_for_this_machine_is_static_and_runs(tmp_path: Path):
    out = build.build(build.machine(), tmp_path / "guest", werror=True)
    assert build.elf_problem(out, build.machine()) is None
    result = subprocess.run([str(out)], stdin=subprocess.DEVNULL, capture_output=True)
    assert result.returncode == 71, "it runs, and refuses to be any process but PID 1"


@linux
@pytest.mark.slow
def test_the_guest_can_be_built_for_tests_with_sanitizers(tmp_path: Path):
    try:
        out = build.build_sanitized(tmp_path / "guest")
    except build.BuildError as error:
        pytest.skip(str(error))
    assert b"__asan_init" in out.read_bytes()


@linux
@pytest.mark.slow
@pytest.mark.parametrize("arch", list(build.ARCHS))
def test_zig_makes_the_same_bytes_wherever_the_sources_lie(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = build.build(arch, tmp_path / "first", release=True).read_bytes()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(build.HERE, elsewhere, ignore=shutil.ignore_patterns("bin", "__pycache__"))
    monkeypatch.setattr(build, "HERE", elsewhere)
    assert build.build(arch, tmp_path / "second", release=True).read_bytes() == first


def test_a_broken_source_leaves_the_old_guest_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if build.native_compiler() is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "main.c").write_text("int main(void) { return nonsense; }\n")
    monkeypatch.setattr(build, "HERE", tmp_path)
    out = tmp_path / "guest"
    out.write_text("the old one")
    with pytest.raises(build.BuildError, match=r"does not compile(.|\n)*nonsense"):
        build.build(build.machine(), out)
    assert out.read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guest", "main.c"]


def test_a_compiler_whose_programs_do_not_run_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    liar = tmp_path / "cc"
    liar.write_text("#!/bin/sh\nexit 0\n")
    liar.chmod(0o755)
    monkeypatch.setenv("CC", str(liar))
    build.native_compiler.cache_clear()
    try:
        assert build.native_compiler() != [str(liar)]
    finally:
        build.native_compiler.cache_clear()


def test_zig_is_asked_for_only_where_no_compiler_will_do(tmp_path: Path):
    program = [sys.executable, str(build.HERE / "build.py"), "--requires"]
    bare = {"PATH": str(tmp_path)}
    assert subprocess.check_output(program, env=bare, text=True).split() == [build.ZIG]
    assert build.requirements(["x86_64"]) == [build.ZIG]
    if build.native_compiler() is not None:
        assert build.requirements() == []


def test_the_build_needs_nothing_but_the_standard_library(tmp_path: Path):
    # -S leaves site-packages out, -I the tree itself.
    script = [sys.executable, "-S", "-I", str(build.HERE / "build.py"), "--help"]
    assert subprocess.run(script, cwd=tmp_path, capture_output=True).returncode == 0


def test_an_unknown_architecture_is_refused_in_a_sentence(capsys: pytest.CaptureFixture[str]):
    assert build.main(["--arch", "riscv64"]) == 1
    assert "x86_64 and aarch64, not for riscv64" in capsys.readouterr().err


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01" + bytes(60)])
def test_what_is_no_elf_program_is_told(tmp_path: Path, data: bytes):
    (tmp_path / "p").write_bytes(data)
    assert build.elf_problem(tmp_path / "p", "x86_64") is not None


@linux
def test_a_dynamic_program_is_told():
    python = Path(os.path.realpath(sys.executable))
    problem = build.elf_problem(python, build.machine())
    assert problem is None or "dynamically" in problem
    other = next(arch for arch in build.ARCHS if arch != build.machine())
    assert build.elf_problem(python, other) == f"it is not for {other}"


@pytest.mark.parametrize("spelled, name", [("amd64", "x86_64"), ("ARM64", "aarch64"), ("x86_64", "x86_64")])
def test_architectures_are_known_under_every_spelling(spelled: str, name: str):
    assert normalize_arch(spelled) == name


def test_a_missing_guest_says_how_to_make_one():
    with pytest.raises(FileNotFoundError, match=r"no guest for s390x .*python -m sandbox\.guest\.build --arch s390x"):
        guest_binary("s390x")
