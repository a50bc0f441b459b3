from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from agent import AgentConfig, AgentResult, AtroposAgent, SandboxExecutor, ToolCall, ToolRegistry, ToolResult
from sandbox import SandboxLost, UserUnknown

pytestmark = pytest.mark.anyio

Next = str | Exception | SimpleNamespace | Callable[[], Awaitable[Any]]


def call(command: str = "ls") -> str:
    return f"<tool_call>{json.dumps({'name': 'terminal', 'arguments': {'command': command}})}</tool_call>"


class Manager:
    """Of a ``ServerManager``'s shape: plays what it is told and tracks, if asked to, a node of one id a turn."""

    def __init__(self, *script: Next, track: bool = True) -> None:
        self.script = list(script)
        self.track = track
        self.requests: list[dict[str, Any]] = []
        self.nodes: list[Any] = []
        self.closed = 0

    @asynccontextmanager
    async def managed_server(self, tokenizer: Any = None) -> AsyncIterator[Any]:
        try:
            yield self
        finally:
            self.closed += 1

    async def chat_completion(self, **kwargs: Any) -> Any:
        self.requests.append({**kwargs, "messages": [dict(one) for one in kwargs["messages"]]})
        turn = self.script[len(self.requests) - 1]
        if isinstance(turn, Exception):
            raise turn
        if callable(turn):
            return await turn()
        message = turn if isinstance(turn, SimpleNamespace) else SimpleNamespace(content=turn)
        if self.track:
            ids = list(range(len(self.requests) + 1))
            masks, logprobs = [-100, *ids[1:]], [1.0, *[-0.5] * len(ids[1:])]
            self.nodes = [SimpleNamespace(full_text=str(ids), tokens=ids, masked_tokens=masks, logprobs=logprobs)]
        return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason="stop")])

    def get_state(self) -> dict[str, Any]:
        return {"nodes": self.nodes}


class Bash:
    """An ``execute_tool`` that remembers its calls."""

    def __init__(self, *answers: ToolResult | Exception) -> None:
        self.answers = list(answers)
        self.calls: list[ToolCall] = []

    async def __call__(self, call: ToolCall) -> ToolResult:
        self.calls.append(call)
        answer = self.answers[len(self.calls) - 1] if self.answers else ToolResult(True, call.arguments["command"])
        if isinstance(answer, Exception):
            raise answer
        return answer


async def hang() -> Any:
    await asyncio.Event().wait()


async def run(manager: Manager, bash: Any = None, task: str = "Go.", **config: Any) -> Any:
    return await AtroposAgent(manager, config=AgentConfig(**config), execute_tool=bash or Bash()).run(task)


async def test_a_message_without_calls_is_the_final_answer():
    manager = Manager("It is done.")
    result = await run(manager)
    assert (result.success, result.stop_reason, result.error) == (True, "final_answer", None)
    assert (result.final_response, result.num_steps, result.total_tool_calls) == ("It is done.", 1, 0)
    assert manager.closed == 1


async def test_the_request_holds_system_initial_messages_task_and_only_what_is_set():
    manager = Manager("x", "y")
    agent = AtroposAgent(manager, config=AgentConfig(system_prompt="be {tools_json}"))
    await agent.run("task", [{"role": "user", "content": "before"}])
    assert manager.requests[0] == {
        "messages": [
            {"role": "system", "content": "be {tools_json}"},
            {"role": "user", "content": "before"},
            {"role": "user", "content": "task"},
        ],
        "n": 1,
        "temperature": 0.7,
    }
    await run(manager, temperature=None, max_tokens=5)
    assert {name for name in manager.requests[1] if name != "messages"} == {"n", "max_tokens"}
    assert manager.requests[1]["max_tokens"] == 5


async def test_calls_run_in_order_and_their_results_come_back_in_one_message():
    manager, bash = Manager(call("a") + call("b"), "done"), Bash()
    result = await run(manager, bash)
    assert [one.arguments["command"] for one in bash.calls] == ["a", "b"]
    assert manager.requests[1]["messages"][-2:] == [
        {"role": "assistant", "content": call("a") + call("b")},
        {"role": "user", "content": f"{ToolResult(True, 'a').to_xml()}\n{ToolResult(True, 'b').to_xml()}"},
    ]
    assert result.to_messages() == [*manager.requests[1]["messages"][-2:], {"role": "assistant", "content": "done"}]
    assert result.to_messages(include_prompt=True)[:2] == manager.requests[0]["messages"]
    assert [step.step_number for step in result.steps] == [1, 2]
    assert [step.has_tool_calls for step in result.steps] == [True, False]


async def test_reasoning_stands_in_for_empty_content():
    result = await run(Manager(SimpleNamespace(content="", reasoning="because")))
    assert result.final_response == "because"


async def test_a_tracked_node_is_the_trajectory():
    result = await run(Manager(call(), "done"))
    assert result.trajectory_data.tokens == [0, 1, 2]
    assert result.total_tokens == 3
    assert result.steps[0].sequence_data.tokens == [0, 1]
    item = result.to_scored_data(1.0)
    assert (item["tokens"], item["masks"], item["scores"]) == ([0, 1, 2], [-100, 1, 2], 1.0)
    assert item["logprobs"] == item["inference_logprobs"] == [1.0, -0.5, -0.5]


async def test_without_a_node_or_tokenizer_there_is_no_training_data():
    result = await run(Manager("done", track=False))
    assert result.trajectory_data is None
    assert result.to_scored_data(1.0) is None


async def test_without_a_node_the_trajectory_is_rebuilt_and_marked_as_unfit():
    class Letters:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [ord(letter) for letter in text]

    agent = AtroposAgent(Manager("done", track=False), tokenizer=Letters(), config=AgentConfig(system_prompt="s"))
    result = await agent.run("t")
    data: Any = result.trajectory_data
    assert data.full_text == "system: s\nuser: tdone"
    assert [mask for mask in data.masked_tokens if mask != -100] == [ord(letter) for letter in "done"]
    assert not data.trainable
    item: Any = result.to_scored_data(1.0)
    assert item["inference_logprobs"] is None
    assert item["overrides"] == {"set_advantage_to_zero": True}


async def test_a_conversation_that_its_tracker_split_is_marked_as_unfit(caplog):
    manager = Manager("done")
    manager.get_state = lambda: {"nodes": manager.nodes * 2}  # type: ignore[method-assign]
    result = await run(manager)
    assert not result.trajectory_data.trainable
    assert "split into 2 sequences" in caplog.text


async def test_dummy_tokens_are_marked_as_unfit():
    manager = Manager("done")
    result = await run(manager)
    node = manager.nodes[0]
    node.metadata = {"dummy_tokens": True}
    data = type(result.trajectory_data).from_sequence_node(node)
    assert not data.trainable
    assert "placeholders" in data.reason


async def test_malformed_calls_are_answered_in_their_place():
    manager, bash = Manager(f"{call('a')}<tool_call>{{oops</tool_call>{call('b')}", "done"), Bash()
    result = await run(manager, bash)
    assert [answer.success for answer in result.steps[0].tool_results] == [True, False, True]
    assert "can't be read" in result.steps[0].tool_results[1].error
    assert result.total_tool_calls == 2
    assert result.metadata["format_errors"] == 1
    assert manager.requests[1]["messages"][-1]["content"].count("<tool_response>") == 3


async def test_a_message_with_only_a_malformed_call_is_no_final_answer():
    result = await run(Manager("<tool_call>", "done"))
    assert (result.num_steps, result.final_response) == (2, "done")


async def test_an_unknown_tool_is_answered():
    result = await AtroposAgent(Manager(call(), "done"), ToolRegistry()).run("Go.")
    assert "unknown tool 'terminal'" in result.steps[0].tool_results[0].error


async def test_too_many_useless_messages_end_the_episode():
    result = await run(Manager(*["<tool_call>"] * 9), max_format_errors=3)
    assert (result.stop_reason, result.success, result.num_steps) == ("format_error", False, 3)
    result = await run(Manager("<tool_call>", call(), "<tool_call>", call(), "done"), max_format_errors=2)
    assert result.stop_reason == "final_answer"
    result = await run(Manager(*["<tool_call>"] * 9, "done"), max_format_errors=None)
    assert result.num_steps == 10


async def test_strict_runs_no_call_beside_loose_text():
    bash = Bash()
    result = await run(Manager(f"Now: {call()}", call(), "done"), bash, strict=True)
    assert len(bash.calls) == 1
    assert "text stands outside" in result.steps[0].tool_results[0].error


async def test_exhausted_steps_keep_the_last_completion_and_its_trajectory():
    result = await run(Manager(call("a"), call("b"), call("c")), max_steps=2)
    assert (result.success, result.stop_reason) == (False, "max_steps")
    assert result.error == "Reached maximum steps (2)"
    assert result.final_response == call("b")
    assert result.trajectory_data.tokens == [0, 1, 2]


async def test_a_generation_error_keeps_the_turns_before():
    result = await run(Manager(call(), RuntimeError("no more paper")))
    assert (result.success, result.stop_reason, result.num_steps) == (False, "generation_error", 1)
    assert result.error == "Generation error: no more paper"
    assert result.final_response == ""
    assert result.trajectory_data.tokens == [0, 1]


@pytest.mark.parametrize("wrap", [lambda error: error, lambda error: ExceptionGroup("tasks", [ValueError("x"), error])])
async def test_a_lost_sandbox_ends_the_episode_and_is_shown_to_nobody(wrap):
    manager = Manager(call("a") + call("b"), "never asked for")
    result = await run(manager, Bash(ToolResult(True, "fine"), wrap(SandboxLost("the container died"))))
    assert (result.stop_reason, result.success, result.error) == ("sandbox_lost", False, "the container died")
    assert len(manager.requests) == 1
    assert [answer.output for answer in result.steps[0].tool_results] == ["fine"]
    assert result.trajectory_data.tokens == [0, 1]


async def test_a_sandbox_error_leaves_a_registry_as_it_is(fake_box):
    def die(command: Any) -> Any:
        raise SandboxLost("gone")

    fake_box.play = die
    assert (await run(Manager(call()), SandboxExecutor(fake_box))).stop_reason == "sandbox_lost"


async def test_what_the_agent_brought_about_is_an_answer():
    result = await run(Manager(call(), "done"), Bash(UserUnknown("there is no user 'bob'")))
    assert result.steps[0].tool_results[0].error == "there is no user 'bob'"
    assert result.metadata["tool_exceptions"] == 0


async def test_any_other_exception_of_a_tool_is_an_answer_and_counted(caplog):
    result = await run(Manager(call(), call(), "done"), Bash(ZeroDivisionError("oh"), ToolResult(True)))
    assert result.steps[0].tool_results[0].error == "ZeroDivisionError: oh"
    assert result.metadata["tool_exceptions"] == 1
    assert "Traceback" in caplog.text


async def test_a_tool_that_returns_no_result_is_an_answer():
    async def nothing(call: ToolCall) -> Any:
        return None

    result = await run(Manager(call(), "done"), nothing)
    assert not result.steps[0].tool_results[0].success


async def test_the_working_directory_reaches_every_call():
    bash = Bash()
    await run(Manager(call() + call(), "done"), bash, working_dir="/srv")
    assert [one.working_dir for one in bash.calls] == ["/srv", "/srv"]


async def test_the_delay_is_kept_between_the_calls_of_a_message(monkeypatch):
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", nap)
    await run(Manager(call() * 3, call(), "done"), tool_delay_s=2.5)
    assert naps == [2.5, 2.5]


async def test_the_executors_tools_are_what_the_model_is_told_of(fake_box):
    manager = Manager("done")
    await run(manager, SandboxExecutor(fake_box))
    system = manager.requests[0]["messages"][0]["content"]
    assert all(f'"name": "{name}"' in system for name in ("terminal", "read_file", "write_file"))


async def test_the_deadline_ends_the_episode_and_keeps_its_data():
    async def stuck(call: ToolCall) -> ToolResult:
        raise await hang()

    for manager, execute in [(Manager(call(), hang), Bash()), (Manager(call()), stuck)]:
        result = await run(manager, execute, deadline_s=0.05)
        assert (result.stop_reason, result.success, result.num_steps) == ("deadline", False, 1)
        assert result.trajectory_data.tokens == [0, 1]
        assert manager.closed == 1


async def test_a_timeout_of_a_tools_own_is_an_answer():
    result = await run(Manager(call(), "done"), Bash(TimeoutError("too slow")), deadline_s=60)
    assert result.stop_reason == "final_answer"


@pytest.mark.parametrize(
    "where", ["the first completion", "a tool call", "the delay between calls", "a later completion"]
)
async def test_cancellation_is_raised_again_and_what_there_is_goes_to_the_sink(where):
    reached, before = asyncio.Event(), asyncio.all_tasks()

    async def stop_here(*_: Any) -> Any:
        reached.set()
        await hang()

    first: Next = stop_here if where == "the first completion" else call() + call()
    manager = Manager(first, stop_here)
    bash: Any = stop_here if where == "a tool call" else Bash()
    config = AgentConfig(tool_delay_s=3600 if where == "the delay between calls" else 0)
    records: list[AgentResult] = []
    task = asyncio.create_task(AtroposAgent(manager, None, config, None, bash, record=records.append).run("Go."))
    if where == "the delay between calls":
        while not bash.calls:  # noqa: ASYNC110 - the delay is the await point, and it tells nobody
            await asyncio.sleep(0)
    else:
        await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (record,) = records
    assert record.stop_reason is None
    assert record.num_steps == (0 if where == "the first completion" else 1)
    assert manager.closed == 1
    assert asyncio.all_tasks() == before


async def test_the_sink_gets_every_episode_and_cant_break_one(caplog):
    def sink(result: AgentResult) -> None:
        raise OSError("disk full")

    result = await AtroposAgent(Manager("done"), record=sink).run("Go.")
    assert result.success
    assert "disk full" in caplog.text


async def test_a_single_turn_returns_text_results_and_data():
    agent = AtroposAgent(Manager(call("a"), call("a")), execute_tool=Bash())
    messages = [{"role": "user", "content": "Go."}]
    text, results, data = await agent.run_single_turn(messages)
    assert text == call("a")
    assert [one.output for one in results] == ["a"]
    assert data is not None
    assert (await agent.run_single_turn(messages, execute_tools=False))[1] == []


async def test_a_single_turn_raises_what_fails():
    with pytest.raises(RuntimeError, match="broken"):
        await AtroposAgent(Manager(RuntimeError("broken"))).run_single_turn([{"role": "user", "content": "Go."}])


async def test_the_context_is_kept_without_a_ledger_too():
    class Letters:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [ord(letter) for letter in text]

    manager = Manager(call(), "never asked for")
    config = AgentConfig(system_prompt="s", max_context_tokens=90)
    result = await AtroposAgent(manager, None, config, Letters(), Bash()).run("t")
    assert (result.stop_reason, result.num_steps, len(manager.requests)) == ("context_length", 1, 1)
