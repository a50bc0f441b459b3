"""The tools that ship: ``terminal``, ``read_file`` and ``write_file``, in one sandbox.

Their words are few, since the model pays for each of them at every later turn. A plain success is just its output;
what went wrong stands in ``error``; that children still run stands in ``metadata``.
"""

from __future__ import annotations

import itertools
import math
import posixpath
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agent.tools import Tool, ToolCall, ToolResult, ToolSchema
from sandbox import ExecResult


class Box(Protocol):
    """What the tools need of a :class:`sandbox.Sandbox`."""

    async def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = ...,
        cwd: str | None = ...,
        env: Mapping[str, str] | None = ...,
        user: str | None = ...,
        merge_stderr: bool = ...,
        output_limit: int | None = ...,
    ) -> ExecResult:
        """Run one command; see :meth:`sandbox.Sandbox.run`."""

    async def read_file(self, path: str, *, max_bytes: int = ..., user: str | None = ...) -> bytes:
        """Read one file."""

    async def write_file(self, path: str, data: bytes, *, user: str | None = ...) -> None:
        """Write one file."""


@dataclass(frozen=True, slots=True)
class ShellSettings:
    """How the shipped tools run. Times are seconds, sizes bytes."""

    timeout: float = 60.0
    """For a call that asks for none."""
    min_timeout: float = 1.0
    max_timeout: float = 600.0
    """What the model asks for is brought into this range."""
    output_limit: int = 16 * 1024
    """Kept of a call's output: head and tail, with the exact count of what was left out."""
    file_limit: int = 64 * 1024
    """The largest file that ``read_file`` shows."""
    user: str | None = None
    env: Mapping[str, str] | None = None
    background_dir: str = "/tmp"
    """Where the output of background commands goes."""

    def __post_init__(self) -> None:
        if not 0 < self.min_timeout <= self.max_timeout < math.inf:
            given = f"from {self.min_timeout} to {self.max_timeout} s"
            raise ValueError(f"timeouts {given} are no range; give 0 < min_timeout <= max_timeout")

    def clamp(self, timeout: float | None) -> float:
        """The seconds that a call gets which asked for ``timeout``."""
        return min(max(self.timeout if timeout is None else timeout, self.min_timeout), self.max_timeout)


class _BoxTool(Tool):
    def __init__(self, box: Box, settings: ShellSettings | None = None) -> None:
        self._box = box
        self._settings = settings or ShellSettings()

    async def execute(self, **arguments: Any) -> ToolResult:
        return await self.execute_call(ToolCall(self.name, arguments))


_BACKGROUND = '/bin/sh -c "$1" >"$2" 2>&1 </dev/null & echo "process $!, output in $2"'
"""``$1`` is the command, ``$2`` the file: neither is quoted into a command line, so neither can break out of it."""


class TerminalTool(_BoxTool):
    """One command in a fresh ``/bin/sh``."""

    @property
    def schema(self) -> ToolSchema:
        limits = self._settings
        return ToolSchema(
            "terminal",
            "Run a command with POSIX /bin/sh in a fresh shell and return its output (stdout and stderr together).",
            {
                "command": {"type": "string", "description": "the command"},
                "timeout": {
                    "type": "number",
                    "description": f"seconds, at most {limits.max_timeout:g}; {limits.timeout:g} if not given",
                },
                "background": {
                    "type": "boolean",
                    "description": "return at once and leave it running, with its output in a file",
                },
            },
            ["command"],
        )

    def __init__(self, box: Box, settings: ShellSettings | None = None) -> None:
        super().__init__(box, settings)
        self._numbers = itertools.count(1)

    async def execute_call(self, call: ToolCall) -> ToolResult:
        """Run it; a :class:`sandbox.SandboxError` is the host's side and is raised."""
        settings = self._settings
        command: str | list[str] = call.arguments["command"]
        timeout = settings.clamp(call.arguments.get("timeout"))
        if call.arguments.get("background"):
            log = posixpath.join(settings.background_dir, f"background-{next(self._numbers)}.log")
            command = ["/bin/sh", "-c", _BACKGROUND, "sh", str(command), log]
        result = await self._box.run(
            command,
            timeout=timeout,
            cwd=call.working_dir,
            env=settings.env,
            user=settings.user,
            merge_stderr=True,
            output_limit=settings.output_limit,
        )
        return observation(result, timeout)


def observation(result: ExecResult, timeout: float) -> ToolResult:
    """What the model sees of a command's end."""
    return ToolResult(
        result.ok,
        result.stdout.text + result.stderr.text,
        "" if result.ok else _failure(result, timeout),
        {"background": True} if result.background else {},
        detail=result,
    )


def _failure(result: ExecResult, timeout: float) -> str:
    match result.status:
        case "exited":
            return f"exit code {result.exit_code}"
        case "signaled":
            return f"killed by {_signal_name(result)}"
        case "timed_out":
            return f"timed out after {timeout:g} s; all its processes were killed"
        case "out_of_memory":
            return f"out of memory, exit code {result.exit_code}"
        case "refused":
            return f"not run: {result.reason or 'no process or disk left in the sandbox'}"
        case _:
            return result.reason or "the call's supervisor was killed from inside the sandbox"


def _signal_name(result: ExecResult) -> str:
    number = result.exit_code - 128 if result.signal is None else result.signal
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class ReadFileTool(_BoxTool):
    """One text file, whole."""

    @property
    def schema(self) -> ToolSchema:
        return ToolSchema(
            "read_file",
            f"Return a text file of at most {self._settings.file_limit} bytes.",
            {"path": {"type": "string", "description": "the file"}},
            ["path"],
        )

    async def execute_call(self, call: ToolCall) -> ToolResult:
        """Read it as the call's user."""
        path = _path(call)
        data = await self._box.read_file(path, max_bytes=self._settings.file_limit, user=self._settings.user)
        return ToolResult(True, data.decode("utf-8", "replace"))


class WriteFileTool(_BoxTool):
    """One text file, replaced as a whole."""

    @property
    def schema(self) -> ToolSchema:
        return ToolSchema(
            "write_file",
            "Write a text file; one that exists is replaced.",
            {
                "path": {"type": "string", "description": "the file"},
                "content": {"type": "string", "description": "all of its text"},
            },
            ["path", "content"],
        )

    async def execute_call(self, call: ToolCall) -> ToolResult:
        """Write it as the call's user."""
        data = str(call.arguments["content"]).encode()
        await self._box.write_file(_path(call), data, user=self._settings.user)
        return ToolResult(True, f"{len(data)} bytes written")


def _path(call: ToolCall) -> str:
    path = str(call.arguments["path"])
    return posixpath.join(call.working_dir, path) if call.working_dir else path
