"""What an episode is configured by, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agent.tokens import SequenceData
from agent.tools import ToolCall, ToolResult

StopReason = Literal[
    "final_answer", "max_steps", "context_length", "format_error", "generation_error", "sandbox_lost", "deadline"
]


@dataclass
class AgentConfig:
    """How an agent runs."""

    temperature: float | None = 0.7
    """Passed on unless None. The trainer must be told if it isn't 1.0."""
    max_tokens: int | None = None
    """Of one completion. None: as many as the model's context has room for, where its length is known."""
    max_steps: int = 50
    """Completions of one episode."""
    system_prompt: str | None = None
    """Instead of ``AGENT_SYSTEM_PROMPT``; used as it is."""
    tool_delay_s: float = 0.0
    """Seconds between the calls of one message."""
    working_dir: str | None = None
    """The directory in which tools run."""
    max_context_tokens: int | None = None
    """Of prompt and completion together. None: what the server tells."""
    max_format_errors: int | None = 5
    """The episode ends after so many messages in a row of which nothing could be run. None: never."""
    strict: bool = False
    """Run no call of a message that also breaks the format."""
    deadline_s: float | None = None
    """Seconds for the whole episode."""


@dataclass
class AgentStep:
    """One completion and what was answered to it."""

    step_number: int
    """From 1."""
    assistant_message: str
    tool_calls: list[ToolCall] = field(default_factory=list)
    """The well-formed calls."""
    tool_results: list[ToolResult] = field(default_factory=list)
    """One for each attempt at a call, the malformed ones included, in the order in which they stand."""
    sequence_data: SequenceData | None = None
    """The conversation up to here, as tokens."""
    finish_reason: str | None = None
    format_errors: list[str] = field(default_factory=list)

    @property
    def has_tool_calls(self) -> bool:
        """Whether the model called anything that could be run."""
        return bool(self.tool_calls)


@dataclass
class AgentResult:
    """One episode."""

    success: bool
    """Whether the model came to a final answer; whether that answer is right is for the grader."""
    final_response: str
    steps: list[AgentStep] = field(default_factory=list)
    total_tokens: int = 0
    """Of the whole conversation, prompts and observations included."""
    error: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    """``format_errors`` and ``tool_exceptions``: counts."""
    trajectory_data: SequenceData | None = None
    stop_reason: StopReason | None = None
    """None where the episode was cancelled."""
    prompt_messages: list[dict[str, Any]] = field(default_factory=list)
    """What stood before the first completion: system, initial messages, task."""
    temperature: float | None = None

    @property
    def num_steps(self) -> int:
        """How many completions there were."""
        return len(self.steps)

    @property
    def total_tool_calls(self) -> int:
        """How many well-formed calls there were."""
        return sum(len(step.tool_calls) for step in self.steps)

    def to_messages(self, *, include_prompt: bool = False) -> list[dict[str, Any]]:
        """The turns as chat messages; ``include_prompt`` puts system, initial messages and task before them."""
        messages = [dict(message) for message in self.prompt_messages] if include_prompt else []
        for step in self.steps:
            messages.append({"role": "assistant", "content": step.assistant_message})
            if step.tool_results:
                messages.append({"role": "user", "content": "\n".join(one.to_xml() for one in step.tool_results)})
        return messages

    def to_scored_data(self, score: float) -> dict[str, Any] | None:
        """One item of an Atropos ``ScoredDataGroup``, or None without data.

        Data that isn't fit for training has no ``inference_logprobs`` and asks the trainer, in Atropos' own terms, to
        set its advantage to zero.
        """
        data = self.trajectory_data
        if data is None:
            return None
        item: dict[str, Any] = {
            "tokens": list(data.tokens),
            "masks": list(data.masked_tokens),
            "scores": score,
            "logprobs": list(data.logprobs),
            "inference_logprobs": list(data.logprobs) if data.trainable else None,
            "temperature": self.temperature,
            "trainable": data.trainable,
        }
        if not data.trainable:
            item["overrides"] = {"set_advantage_to_zero": True}
        return item


def add(metadata: dict[str, Any], counts: Mapping[str, int]) -> None:
    """Add counts to those in ``metadata``."""
    for name, count in counts.items():
        metadata[name] = metadata.get(name, 0) + count
