"""The one bridge between the controlling process and a sandbox: the ``execute_tool`` callback."""

from __future__ import annotations

from agent.shell_tools import Box, ReadFileTool, ShellSettings, TerminalTool, WriteFileTool
from agent.tools import Tool, ToolCall, ToolRegistry, ToolResult


class SandboxExecutor:
    """Runs the model's calls in one sandbox: ``AtroposAgent(server, execute_tool=SandboxExecutor(box))``.

    ``tools`` is the registry that it serves, and what an agent shows to the model unless it is given another. More
    tools can be registered there, or passed as ``extra``; a tool that runs in the controlling process is outside the
    sandbox and its author's own responsibility.

    What the model can cause (an unknown user, a missing file, a failing command) is a result. A
    :class:`sandbox.SandboxError` is the host's side and is raised: the loop ends the episode with ``sandbox_lost``, and
    nothing of it reaches the model or a reward.
    """

    def __init__(self, box: Box, settings: ShellSettings | None = None, *, extra: tuple[Tool, ...] = ()) -> None:
        self.box = box
        self.tools = ToolRegistry(
            TerminalTool(box, settings), ReadFileTool(box, settings), WriteFileTool(box, settings), *extra
        )

    async def __call__(self, call: ToolCall) -> ToolResult:
        """Run one call."""
        return await self.tools.execute(call)
