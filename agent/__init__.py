"""A shell agent whose every tool call runs in a sandbox, and whose exported tokens are the ones the model saw.

``AtroposAgent(server=server, execute_tool=SandboxExecutor(box))`` is an agent, ``await agent.run(task)`` an episode and
``result.to_scored_data(score)`` its training data. ``docs/agent.md`` tells the rest.
"""

from agent.completion import show_logs
from agent.executor import SandboxExecutor
from agent.loop import AtroposAgent
from agent.prompt import AGENT_SYSTEM_PROMPT
from agent.results import AgentConfig, AgentResult, AgentStep
from agent.shell_tools import ShellSettings
from agent.tokens import SequenceData
from agent.tools import Tool, ToolCall, ToolRegistry, ToolResult, ToolSchema

__all__ = [
    "AGENT_SYSTEM_PROMPT",
    "AgentConfig",
    "AgentResult",
    "AgentStep",
    "AtroposAgent",
    "SandboxExecutor",
    "SequenceData",
    "ShellSettings",
    "Tool",
    "ToolCall",
    "ToolRegistry",
    "ToolResult",
    "ToolSchema",
    "show_logs",
]
