"""Tools as the model sees them and as the loop calls them: schema, call, result, registry.

What a tool's outcome means is fixed here. Anything that the model can cause (an unknown tool, wrong arguments, a
failing command, an exception in a tool) is a :class:`ToolResult` with ``success=False``; what the host's side did wrong
is a :class:`sandbox.SandboxError` and leaves :meth:`ToolRegistry.execute` as the exception that it is.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from agent.parse import ParsedCall, parse_message
from sandbox import FileTooLarge, NotAFile, SandboxError, SandboxExhausted, UserUnknown

logger = logging.getLogger(__name__)

CAUSED_BY_THE_AGENT = (UserUnknown, FileTooLarge, NotAFile, SandboxExhausted)
"""The sandbox errors that a tool's arguments can bring about: the model is told, the episode goes on."""

_TAG_LIKE = re.compile(r"<(?=\s*/?\s*(?:tools?\b|tool_|think|(?:bos|eos|pad|unk|s)>|(?:start|end)_of)|[|｜])", re.I)  # noqa: RUF001
"""A ``<`` that could open or close a tag of the conversation's own, or a model's control token.

Others (``a < b``, ``#include <stdio.h>``, ``<div>``) stay readable: an escape costs the model five tokens.
"""

_NOT_ON_ONE_LINE = re.compile("[\x7f\x85\u2028\u2029\ud800-\udfff]")
"""What :mod:`json` leaves as it is, and yet breaks lines, or (half a surrogate pair) can't be encoded."""


@dataclass
class ToolSchema:
    """What the model is told of a tool. ``parameters`` maps names to JSON schemas."""

    name: str
    description: str
    parameters: dict[str, Any] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)
    external: bool = False
    """Run by somebody else than this process's registry; the model sees no difference."""

    def to_dict(self) -> dict[str, Any]:
        """The OpenAI function form."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {"type": "object", "properties": self.parameters, "required": self.required},
            },
        }


@dataclass
class ToolCall:
    """One call that the model asked for."""

    name: str
    arguments: dict[str, Any]
    raw_text: str = ""
    uniq_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    echo_id: bool = False
    """Whether the model gave ``uniq_id`` itself, so that the response must repeat it."""
    working_dir: str | None = None
    """The directory in which the tool runs; set by the loop from ``AgentConfig.working_dir``."""

    @classmethod
    def from_parsed(cls, call: ParsedCall) -> ToolCall:
        """Make one of what the parser found."""
        if call.uniq_id is None:
            return cls(call.name, call.arguments, call.raw_text)
        return cls(call.name, call.arguments, call.raw_text, call.uniq_id, echo_id=True)

    @classmethod
    def parse_from_text(cls, text: str) -> list[ToolCall]:
        """The well-formed calls of an assistant message, in order; :mod:`agent.parse` tells of the others too."""
        return [cls.from_parsed(call) for call in parse_message(text).calls]


@dataclass
class ToolResult:
    """What came of a call. ``metadata`` is shown to the model where it isn't empty; ``detail`` never is."""

    success: bool
    output: str = ""
    error: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    uniq_id: str | None = None
    detail: Any = field(default=None, repr=False, compare=False)
    """For the calling program only; a terminal call leaves its :class:`sandbox.ExecResult` here."""

    def to_xml(self) -> str:
        """One line: ``<tool_response>{"success": ..., "output": ...}</tool_response>``.

        Whatever the tool printed, nothing between the two tags reads as a tag of the conversation.
        """
        body: dict[str, Any] = {"success": self.success, "output": self.output}
        if self.error:
            body["error"] = self.error
        if self.metadata:
            body["metadata"] = self.metadata
        if self.uniq_id is not None:
            body["uniq_id"] = self.uniq_id
        text = json.dumps(body, ensure_ascii=False, default=str)
        text = _NOT_ON_ONE_LINE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
        return f"<tool_response>{_TAG_LIKE.sub(_ESCAPED, text)}</tool_response>"


_ESCAPED = r"\\u003c"  # a template of re.sub, which halves the backslashes


class Tool(ABC):
    """One tool: a schema, and what it does. Subclass it, or hand any object of this shape to a registry."""

    @property
    @abstractmethod
    def schema(self) -> ToolSchema:
        """What the model is told."""

    @property
    def name(self) -> str:
        """The name under which the model calls it."""
        return self.schema.name

    @abstractmethod
    async def execute(self, **arguments: Any) -> ToolResult:
        """Do it. The arguments have the schema's names and types."""

    async def execute_call(self, call: ToolCall) -> ToolResult:
        """Do it, for a tool that needs more of the call than its arguments."""
        return await self.execute(**call.arguments)


class ToolRegistry:
    """The tools of one agent, by name."""

    def __init__(self, *tools: Tool) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            self.register(tool)

    def register(self, tool: Tool) -> None:
        """Add a tool; one of the same name is replaced."""
        self._tools[tool.schema.name] = tool

    def get(self, name: str) -> Tool | None:
        """The tool of that name, if there is one."""
        return self._tools.get(name)

    def list_tools(self) -> list[Tool]:
        """All tools, in the order in which they were registered."""
        return list(self._tools.values())

    def get_schemas(self) -> list[ToolSchema]:
        """The schemas of all tools."""
        return [tool.schema for tool in self._tools.values()]

    def get_prompt_tool_definitions_json(self) -> str:
        """The tools as the system prompt states them: a JSON list in the OpenAI function form."""
        return json.dumps([schema.to_dict() for schema in self.get_schemas()], ensure_ascii=False)

    async def execute(self, call: ToolCall) -> ToolResult:
        """Run one call. Raises :class:`sandbox.SandboxError` for the host's side, and nothing else."""
        result = await self._execute(call)
        if call.echo_id and result.uniq_id is None:
            result.uniq_id = call.uniq_id
        return result

    async def _execute(self, call: ToolCall) -> ToolResult:
        tool = self._tools.get(call.name)
        if tool is None:
            return ToolResult(False, error=f"unknown tool {call.name!r}; there are: {', '.join(self._tools) or 'none'}")
        complaint = check_arguments(tool.schema, call.arguments)
        if complaint:
            return ToolResult(False, error=complaint)
        try:
            run = getattr(tool, "execute_call", None)
            return await (tool.execute(**call.arguments) if run is None else run(call))
        except Exception as error:
            if (lost := host_failure(error)) is not None:
                raise lost from (None if lost is error else error)
            # A tool's mistake is for the model to see, not the run's end; a wrong path or argument isn't even one.
            expected = isinstance(error, (*CAUSED_BY_THE_AGENT, OSError, ValueError))
            if not expected:
                logger.warning("the tool %s raised", call.name, exc_info=True)
            return ToolResult(False, error=describe(error), detail=None if expected else error)


def host_failure(error: BaseException) -> SandboxError | None:
    """The failure of the host's side that this exception is, or (a task group raised it) that it holds."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for found in map(host_failure, error.exceptions) if found is not None), None)
    return error if isinstance(error, SandboxError) and not isinstance(error, CAUSED_BY_THE_AGENT) else None


def describe(error: BaseException) -> str:
    """An exception as one line for the model: what the file system said with its path, else type and text."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) if isinstance(error, SandboxError) else f"{type(error).__name__}: {error}"


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def check_arguments(schema: ToolSchema, arguments: dict[str, Any]) -> str:
    """Say in one sentence what is wrong with the arguments, or nothing: names and top-level types are checked."""
    missing = [name for name in schema.required if name not in arguments]
    if missing:
        return f"{schema.name} needs the argument {', '.join(missing)}"
    unknown = [name for name in arguments if name not in schema.parameters]
    if unknown:
        return f"{schema.name} has no argument {', '.join(unknown)}; it has: {', '.join(schema.parameters)}"
    for name, value in arguments.items():
        expected = schema.parameters[name].get("type")
        names = expected if isinstance(expected, list) else [expected]
        if expected is not None and not any(_is_a(value, kind) for kind in names):
            return f"the argument {name} of {schema.name} must be of type {' or '.join(map(str, names))}"
    return ""


def _is_a(value: object, kind: object) -> bool:
    types = _TYPES.get(str(kind))
    if types is None:
        return True
    # To Python true is an int, to JSON it is no number.
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))
