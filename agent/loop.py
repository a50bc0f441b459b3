"""The loop: complete, read, execute, answer, until there is a final answer or a reason to stop.

It knows neither Docker nor an Atropos class: a model is what :func:`agent.ledger.open_model` opens, a tool is whatever
``execute_tool`` does with a call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agent.completion import complete, show_logs_if_asked
from agent.failures import cause_of, secrets_of, without_secrets
from agent.ledger import ChatModel, ContextExceeded, open_model, rebuilt
from agent.parse import ParsedMessage, ParseError, parse_message
from agent.prompt import system_prompt
from agent.results import AgentConfig, AgentResult, AgentStep, StopReason, add
from agent.tokens import SequenceData
from agent.tools import CAUSED_BY_THE_AGENT, ToolCall, ToolRegistry, ToolResult, describe, host_failure
from sandbox import SandboxError

__all__ = ["AgentConfig", "AgentResult", "AgentStep", "AtroposAgent", "ExecuteTool", "StopReason"]

logger = logging.getLogger(__name__)

ExecuteTool = Callable[[ToolCall], Awaitable[ToolResult]]
Messages = list[dict[str, Any]]

_CUT = "Your message was cut off at the token limit before it was complete; write a shorter one."


class AtroposAgent:
    """A language model with tools.

    ``server`` is an Atropos ``ServerManager`` or a single ``APIServer``. ``tools`` are what the model is told of; if
    they aren't given, those of ``execute_tool`` (a :class:`agent.SandboxExecutor` has some). ``execute_tool`` runs a
    call; without it ``tools.execute`` does. ``record`` is given each episode's result, a cancelled one's too.
    """

    def __init__(
        self,
        server: Any,
        tools: ToolRegistry | None = None,
        config: AgentConfig | None = None,
        tokenizer: Any = None,
        execute_tool: ExecuteTool | None = None,
        *,
        record: Callable[[AgentResult], None] | None = None,
    ) -> None:
        self.server = server
        served = getattr(execute_tool, "tools", None)
        fallback = served if isinstance(served, ToolRegistry) else ToolRegistry()
        self.tools = fallback if tools is None else tools
        self.config = config or AgentConfig()
        self.tokenizer = getattr(server, "tokenizer", None) if tokenizer is None else tokenizer
        self.execute_tool: ExecuteTool = execute_tool or self.tools.execute
        self._sink = record
        self._secrets = secrets_of(server)
        show_logs_if_asked()

    async def run(self, task: str, initial_messages: Sequence[dict[str, Any]] | None = None) -> AgentResult:
        """Run one episode.

        Whatever the model, its server or the sandbox does is told in the result (``stop_reason``, ``error``), with the
        turns and tokens up to there. Cancellation is raised again.
        """
        prompt = self.config.system_prompt or system_prompt(self.tools.get_prompt_tool_definitions_json())
        messages: Messages = [{"role": "system", "content": prompt}, *(dict(one) for one in initial_messages or ())]
        messages.append({"role": "user", "content": task})
        result = AgentResult(
            False,
            "",
            metadata={"format_errors": 0, "tool_exceptions": 0},
            prompt_messages=list(messages),
            temperature=self.config.temperature,
        )
        run = _Run(messages, result)
        clock = asyncio.timeout(self.config.deadline_s)
        try:
            async with clock, open_model(self.server, self.tokenizer, self.config.max_context_tokens) as model:
                await self._play(model, run)
        except TimeoutError:
            if not clock.expired():
                raise
            run.stop("deadline", f"Reached the deadline ({self.config.deadline_s:g} s)")
        except asyncio.CancelledError:
            self._close(run)
            raise
        self._close(run)
        return result

    async def _play(self, model: ChatModel, run: _Run) -> None:
        result, messages, useless = run.result, run.messages, 0
        for number in range(1, self.config.max_steps + 1):
            try:
                step = await self._generate(model, messages, number)
            except ContextExceeded as error:
                return run.stop("context_length", f"Reached the context length: {error}")
            except Exception as error:  # noqa: BLE001 - any failure of a server ends the episode and keeps its data
                text = without_secrets(str(cause_of(error)) or type(error).__name__, self._secrets)
                return run.stop("generation_error", f"Generation error: {text}")
            result.steps.append(step)
            result.trajectory_data = step.sequence_data
            run.last = list(messages), step.assistant_message
            if step.finish_reason == "abort":
                return run.stop("generation_error", "Generation error: the server aborted the completion")
            parsed = self._parse(model, step)
            add(result.metadata, {"format_errors": len(step.format_errors)})
            if parsed.is_final:
                result.success = True
                return run.stop("final_answer", None)
            messages.append({"role": "assistant", "content": step.assistant_message})
            try:
                await self._answer(parsed, step, result)
            except SandboxError as error:
                logger.error("the sandbox was lost in step %d: %s", number, error)
                return run.stop("sandbox_lost", str(error))
            useless = 0 if step.tool_calls else useless + 1
            if self.config.max_format_errors is not None and useless >= self.config.max_format_errors:
                return run.stop("format_error", f"{useless} messages in a row held no call that could be run")
            messages.append({"role": "user", "content": "\n".join(one.to_xml() for one in step.tool_results)})
        return run.stop("max_steps", f"Reached maximum steps ({self.config.max_steps})")

    async def _generate(self, model: ChatModel, messages: Messages, number: int) -> AgentStep:
        kwargs: dict[str, Any] = {"messages": messages, "n": 1}
        if self.config.max_tokens is not None:
            kwargs["max_tokens"] = self.config.max_tokens
        if self.config.temperature is not None:
            kwargs["temperature"] = self.config.temperature
        response = await complete(model, number, kwargs, self._secrets)
        choice = response.choices[0]
        text = choice.message.content or getattr(choice.message, "reasoning", None) or ""
        reasons = (getattr(model, "finish_reason", None), getattr(choice, "finish_reason", None))
        reason = next((one for one in reasons if isinstance(one, str)), None)
        return AgentStep(number, text, sequence_data=_tracked(model), finish_reason=reason)

    def _parse(self, model: ChatModel, step: AgentStep) -> ParsedMessage:
        thinking = getattr(model, "opened_think", None) is True
        parsed = parse_message(step.assistant_message, thinking=thinking, strict=self.config.strict)
        if parsed.is_final and step.finish_reason == "length":
            parsed = ParsedMessage((ParseError(_CUT, ""),), parsed.format_errors)
        step.tool_calls = [ToolCall.from_parsed(call) for call in parsed.calls]
        step.format_errors = [*(error.message for error in parsed.errors), *parsed.format_errors]
        return parsed

    async def _answer(self, parsed: ParsedMessage, step: AgentStep, result: AgentResult) -> None:
        """Answer every attempt at a call, in the order in which they stand. Raises ``SandboxError`` only."""
        calls = iter(step.tool_calls)
        started = 0
        for item in parsed.items:
            if isinstance(item, ParseError):
                step.tool_results.append(ToolResult(False, error=item.message))
                continue
            if started and self.config.tool_delay_s > 0:
                await asyncio.sleep(self.config.tool_delay_s)
            started += 1
            call = next(calls)
            call.working_dir = self.config.working_dir
            answer = await self._execute(call)
            add(result.metadata, {"tool_exceptions": int(isinstance(answer.detail, Exception))})
            step.tool_results.append(answer)

    async def _execute(self, call: ToolCall) -> ToolResult:
        """Run one call; whatever goes wrong in it but the sandbox is an answer to the model."""
        try:
            answer = await self.execute_tool(call)
            answer.to_xml()  # what can't be shown is the tool's mistake too
        except Exception as error:
            if (lost := host_failure(error)) is not None:
                raise lost from (None if lost is error else error)
            if isinstance(error, CAUSED_BY_THE_AGENT):
                return ToolResult(False, error=describe(error))
            logger.exception("execute_tool raised for a call of %s", call.name)
            return ToolResult(False, error=describe(error), detail=error)
        return answer

    async def run_single_turn(
        self, messages: Sequence[dict[str, Any]], execute_tools: bool = True
    ) -> tuple[str, list[ToolResult], SequenceData | None]:
        """One completion of ``messages`` and, if asked for, its calls. What fails is raised."""
        async with open_model(self.server, self.tokenizer, self.config.max_context_tokens) as model:
            step = await self._generate(model, [dict(one) for one in messages], 1)
            parsed = self._parse(model, step)
        if execute_tools and not parsed.is_final:
            await self._answer(parsed, step, AgentResult(False, ""))
        return step.assistant_message, step.tool_results, step.sequence_data

    def _close(self, run: _Run) -> None:
        result = run.result
        if result.steps and result.stop_reason != "generation_error":
            result.final_response = result.steps[-1].assistant_message
        if result.trajectory_data is None and run.last is not None and self.tokenizer is not None:
            try:
                result.trajectory_data = rebuilt(self.tokenizer, *run.last)
            except Exception:
                logger.warning("the trajectory can't be rebuilt from the chat template", exc_info=True)
        if result.trajectory_data is not None:
            result.total_tokens = len(result.trajectory_data.tokens)
            if not result.trajectory_data.trainable:
                logger.warning("this trajectory is not fit for training: %s", result.trajectory_data.reason)
        if self._sink is not None:
            try:
                self._sink(result)
            except Exception:
                logger.exception("the record sink raised; the episode goes on")


@dataclass
class _Run:
    """One episode under way."""

    messages: Messages
    result: AgentResult
    last: tuple[Messages, str] | None = None
    """The last completion and what it was asked with, for a trajectory that no server tracked."""

    def stop(self, reason: StopReason, error: str | None) -> None:
        self.result.stop_reason = reason
        self.result.error = error


def _tracked(model: ChatModel) -> SequenceData | None:
    """The conversation as the server tracks it: the last of its nodes."""
    state = getattr(model, "get_state", None)
    nodes = state().get("nodes", []) if state is not None else []
    if not nodes:
        return None
    data = SequenceData.from_sequence_node(nodes[-1])
    if len(nodes) > 1:
        data.trainable, data.reason = False, f"the conversation was split into {len(nodes)} sequences"
    return data
