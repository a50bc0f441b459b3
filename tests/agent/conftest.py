"""What the agent's tests share: the event loop, and a box that plays what it is told."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox import ExecResult, FileTooLarge, Output


@pytest.fixture
def anyio_backend() -> str:
    # atroposlib is written for asyncio, and so is the agent's loop.
    return "asyncio"


@dataclass
class FakeBox:
    """A sandbox without processes: ``play`` answers commands, files live in a dictionary."""

    play: Callable[[Any], ExecResult] = lambda command: ExecResult("exited", 0)
    files: dict[str, bytes] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)

    async def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        merge_stderr: bool = False,
        output_limit: int | None = None,
    ) -> ExecResult:
        self.runs.append({"command": command, "timeout": timeout, "cwd": cwd, "merge_stderr": merge_stderr})
        return self.play(command)

    async def read_file(self, path: str, *, max_bytes: int = 1 << 20, user: str | None = None) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory", path)
        if len(self.files[path]) > max_bytes:
            raise FileTooLarge(f"{path} is larger than {max_bytes} bytes")
        return self.files[path]

    async def write_file(self, path: str, data: bytes, *, user: str | None = None) -> None:
        self.files[path] = data


@pytest.fixture
def fake_box() -> FakeBox:
    return FakeBox()


@pytest.fixture
def printed() -> Callable[..., ExecResult]:
    """A result that printed ``text``."""

    def make(text: str = "", exit_code: int = 0, **more: Any) -> ExecResult:
        data = text.encode()
        return ExecResult(more.pop("status", "exited"), exit_code, Output(data, b"", len(data)), **more)

    return make


@dataclass
class HostBox(FakeBox):
    """The host's own shell in a directory of the test's: for the loop, which needs no isolation."""

    root: Path = Path()

    async def run(self, command: str | Sequence[str], **more: Any) -> ExecResult:
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        argv = [part.replace("/tmp/", f"{self.root}/") for part in argv]
        done = await anyio.run_process(argv, stderr=subprocess.STDOUT, cwd=self.root, check=False)
        return ExecResult("exited", done.returncode, Output(done.stdout, b"", len(done.stdout)))

    async def read_file(self, path: str, **more: Any) -> bytes:
        return (self.root / Path(path).name).read_bytes()

    async def write_file(self, path: str, data: bytes, **more: Any) -> None:
        (self.root / Path(path).name).write_bytes(data.replace(b"/tmp/", f"{self.root}/".encode()))


@pytest.fixture
def host_box(tmp_path) -> HostBox:
    return HostBox(root=tmp_path)
