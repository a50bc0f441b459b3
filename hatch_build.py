"""The build hook: puts the guest into the wheel, or beside its sources where the install is editable.

An ordinary build compiles for this machine. ``SHELL_AGENT_SANDBOX_ARCHS="x86_64 aarch64"``, as `make wheel` sets it,
compiles with zig for each architecture named; ``none``, as `make venv` sets it, leaves the guest to the Makefile.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def load_build(root: str) -> ModuleType:
    """``sandbox/guest/build.py``, by path: the package's own dependencies aren't installed yet."""
    spec = importlib.util.spec_from_file_location("guest_build", Path(root, "sandbox/guest/build.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class GuestHook(BuildHookInterface[Any]):
    """Compiles the guest and tags the wheel by what it holds."""

    _out: tempfile.TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        """``ziglang``, but only where no compiler of this machine will do."""
        if _archs() == ["none"]:
            return []
        return [str(requirement) for requirement in load_build(self.root).requirements(_archs())]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, before hatchling collects the files."""
        archs = _archs()
        if archs == ["none"]:
            return
        build = load_build(self.root)
        if version == "editable":
            for arch in archs or [build.machine()]:
                build.build(arch, build.default_out(arch))
            return
        # Not beside the sources: a release's binaries don't take the place of a developer's.
        self._out = tempfile.TemporaryDirectory(prefix="guest-")
        for arch in archs or [build.machine()]:
            built = build.build(arch, Path(self._out.name, f"guest-{arch}"), release=bool(archs))
            build_data["force_include"][str(built)] = f"sandbox/guest/bin/guest-{arch}"
        build_data["tag"] = "py3-none-any" if set(archs) == set(build.ARCHS) else f"py3-none-{_platform()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled for the wheel only."""
        if self._out is not None:
            self._out.cleanup()


def _archs() -> list[str]:
    return os.environ.get("SHELL_AGENT_SANDBOX_ARCHS", "").split()


def _platform() -> str:
    # The guest runs in containers of Linux, but which architecture it is for follows from the machine that built it.
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
