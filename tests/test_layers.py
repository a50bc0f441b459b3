"""The layers can be told from the imports, and the public names stay where others bind to them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandbox

ROOT = Path(__file__).parent.parent

CORE = (
    "errors",
    "spec",
    "engine",
    "wire",
    "tree",
    "connection",
    "shield",
    "sockets",
    "exchange",
    "channel",
    "owner",
    "plan",
    "sweep",
    "request",
    "outcome",
    "calls",
    "localtree",
    "files",
    "start",
    "sandbox",
)
"""Each imports only what stands before it. What is not named here (entry points, the pool) stands above."""

CHOOSES_DOCKER = {"__init__", "__main__", "bench", "cli", "doctor", "selftest"}


def modules(package: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name, ast.parse(path.read_text(), str(path))


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every imported name, dotted, and whether it is imported inside a function."""
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inner
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in inner


def part(name: str) -> str:
    """The module of the sandbox package that a dotted name lies in."""
    parts = name.split(".")
    if len(parts) == 1:
        return "__init__"
    return (
        parts[1]
        if (ROOT / "sandbox" / parts[1]).is_dir() or (ROOT / "sandbox" / f"{parts[1]}.py").exists()
        else "__init__"
    )


SANDBOX = dict(modules("sandbox"))
AGENT = dict(modules("agent"))


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_only_what_stands_below(module):
    below = {"__future__", *CORE[: CORE.index(module)]}
    for name, _ in imports(SANDBOX[f"sandbox.{module}"]):
        if name.split(".")[0] == "sandbox":
            assert part(name) in below, f"{module} imports {name}"


@pytest.mark.parametrize("module", [name for name in SANDBOX if name.startswith("sandbox.docker")])
def test_the_docker_engine_knows_no_sandbox(module):
    allowed = {"docker", "engine", "errors", "guest", "owner", "plan", "shield", "sockets", "spec", "sweep"}
    for name, _ in imports(SANDBOX[module]):
        if name.split(".")[0] == "sandbox":
            assert part(name) in allowed, f"{module} imports {name}"


def test_one_package_imports_the_docker_sdk():
    found = {
        module
        for module, tree in (SANDBOX | AGENT).items()
        for name, _ in imports(tree)
        if name.split(".")[0] in ("docker", "requests")
    }
    assert {module.rpartition(".")[0] for module in found} <= {"sandbox.docker"}


def test_only_entry_points_choose_the_docker_engine():
    for module, tree in SANDBOX.items():
        if module.startswith("sandbox.docker"):
            continue
        for name, inside in imports(tree):
            if name.startswith("sandbox.docker"):
                assert module.split(".")[1] in CHOOSES_DOCKER, f"{module} imports {name}"
                assert inside or module != "sandbox.__init__", "importing the package must not import the SDK"


def test_the_sandbox_knows_no_agent():
    for module, tree in SANDBOX.items():
        for name, inside in imports(tree):
            if name.split(".")[0] in ("agent", "atroposlib"):
                assert module.startswith("sandbox.selftest"), f"{module} imports {name}"
                assert inside, f"{module} imports {name} although only one check needs it"


def test_the_loop_knows_neither_docker_nor_atropos():
    for name, _ in imports(AGENT["agent.loop"]):
        assert name.split(".")[0] not in ("docker", "atroposlib")
        assert not name.startswith("sandbox.docker")


def test_one_module_imports_the_base_environment():
    found = {
        module for module, tree in AGENT.items() for name, _ in imports(tree) if name.startswith("atroposlib.envs.base")
    }
    assert found <= {"agent.env"}


def test_the_public_names_are_there():
    names = {
        "EngineUnavailable",
        "ExecResult",
        "FileTooLarge",
        "ImageUnavailable",
        "Limits",
        "Network",
        "NotAFile",
        "Sandbox",
        "SandboxClosed",
        "SandboxError",
        "SandboxLost",
        "SandboxSpec",
        "SandboxStartError",
        "UserUnknown",
        "open_sandbox",
    }
    assert names <= set(sandbox.__all__)
    for name in sandbox.__all__:
        assert getattr(sandbox, name) is not None
    assert sandbox.__all__ == sorted(sandbox.__all__)


def test_every_module_says_why_it_exists():
    for module, tree in (SANDBOX | AGENT).items():
        assert ast.get_docstring(tree), f"{module} has no docstring"
