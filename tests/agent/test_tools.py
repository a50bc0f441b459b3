from __future__ import annotations

import json
from typing import Any

import pytest

from agent.executor import SandboxExecutor
from agent.parse import parse_message
from agent.prompt import AGENT_SYSTEM_PROMPT, system_prompt
from agent.shell_tools import ShellSettings
from agent.tools import Tool, ToolCall, ToolRegistry, ToolResult, ToolSchema
from sandbox import ExecResult, NotAFile, Output, SandboxLost, UserUnknown

pytestmark = pytest.mark.anyio


class Adder(Tool):
    @property
    def schema(self) -> ToolSchema:
        number = {"type": "number"}
        return ToolSchema("add", "Add two numbers.", {"a": number, "b": number}, ["a", "b"])

    async def execute(self, **arguments: Any) -> ToolResult:
        return ToolResult(True, str(arguments["a"] + arguments["b"]))


def terminal(command: str = "true", **more: Any) -> ToolCall:
    return ToolCall("terminal", {"command": command, **more})


def test_a_schema_has_the_openai_function_form():
    assert Adder().schema.to_dict() == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
                "required": ["a", "b"],
            },
        },
    }


def test_a_response_shows_error_metadata_and_id_only_where_they_are_set():
    plain = ToolResult(True, "/tmp\n").to_xml()
    assert plain == '<tool_response>{"success": true, "output": "/tmp\\n"}</tool_response>'
    full = ToolResult(False, "", "exit code 1", {"background": True}, "c1").to_xml()
    assert list(json.loads(full[15:-16])) == ["success", "output", "error", "metadata", "uniq_id"]


async def test_a_registry_finds_lists_and_runs_its_tools():
    registry = ToolRegistry(Adder())
    assert registry.get("add") is registry.list_tools()[0]
    assert registry.get("sub") is None
    assert json.loads(registry.get_prompt_tool_definitions_json()) == [Adder().schema.to_dict()]
    assert (await registry.execute(ToolCall("add", {"a": 1, "b": 2}))).output == "3"


@pytest.mark.parametrize(
    "name, arguments, complaint",
    [
        ("sub", {}, "unknown tool 'sub'; there are: add"),
        ("add", {"a": 1}, "needs the argument b"),
        ("add", {"a": 1, "b": 2, "c": 3}, "no argument c"),
        ("add", {"a": 1, "b": "2"}, "must be of type number"),
        ("add", {"a": 1, "b": True}, "must be of type number"),
    ],
)
async def test_wrong_names_and_arguments_are_results(name, arguments, complaint):
    result = await ToolRegistry(Adder()).execute(ToolCall(name, arguments))
    assert not result.success
    assert complaint in result.error


async def test_an_exception_in_a_tool_is_a_result():
    class Broken(Adder):
        async def execute(self, **arguments: Any) -> ToolResult:
            raise RuntimeError("out of paper")

    result = await ToolRegistry(Broken()).execute(ToolCall("add", {"a": 1, "b": 2}))
    assert (result.success, result.error) == (False, "RuntimeError: out of paper")


async def test_only_an_id_that_the_model_gave_is_repeated(fake_box):
    execute = SandboxExecutor(fake_box)
    (given,) = ToolCall.parse_from_text(
        '<tool_call>{"name": "terminal", "arguments": {"command": "true"}, "uniq_id": "7"}</tool_call>'
    )
    assert (await execute(given)).uniq_id == "7"
    assert (await execute(terminal())).uniq_id is None


@pytest.mark.parametrize(
    "result, success, error",
    [
        (ExecResult("exited", 0), True, ""),
        (ExecResult("exited", 2), False, "exit code 2"),
        (ExecResult("signaled", 139, signal=11), False, "killed by SIGSEGV"),
        (ExecResult("timed_out", 124), False, "timed out after 5 s; all its processes were killed"),
        (ExecResult("out_of_memory", 137), False, "out of memory, exit code 137"),
        (ExecResult("refused", 125, reason="no process left"), False, "not run: no process left"),
        (ExecResult("killed", 137), False, "the call's supervisor was killed from inside the sandbox"),
    ],
)
async def test_each_way_to_end_is_told_in_few_words(fake_box, result, success, error):
    fake_box.play = lambda command: result
    seen = await SandboxExecutor(fake_box)(terminal(timeout=5))
    assert (seen.success, seen.error, seen.metadata) == (success, error, {})
    assert seen.detail is result


async def test_truncation_is_told_with_the_exact_count(fake_box):
    fake_box.play = lambda command: ExecResult("exited", 0, Output(b"head", b"tail", 1008))
    seen = await SandboxExecutor(fake_box)(terminal())
    assert "1000 bytes omitted" in seen.output


async def test_children_that_still_run_are_told(fake_box):
    fake_box.play = lambda command: ExecResult("exited", 0, background=True)
    assert (await SandboxExecutor(fake_box)(terminal())).metadata == {"background": True}


@pytest.mark.parametrize("asked, given", [(None, 20), (0, 2), (7.5, 7.5), (1e9, 30)])
async def test_the_models_timeout_is_clamped(fake_box, asked, given):
    execute = SandboxExecutor(fake_box, ShellSettings(timeout=20, min_timeout=2, max_timeout=30))
    await execute(terminal() if asked is None else terminal(timeout=asked))
    assert fake_box.runs[0]["timeout"] == given


async def test_a_background_command_is_passed_as_data_and_not_quoted(fake_box):
    await SandboxExecutor(fake_box)(terminal("sleep 9; echo '", background=True))
    argv = fake_box.runs[0]["command"]
    assert argv[4:] == ["sleep 9; echo '", "/tmp/background-1.log"]


async def test_the_working_directory_reaches_commands_and_relative_paths(fake_box):
    execute = SandboxExecutor(fake_box)
    call = terminal()
    call.working_dir = "/srv"
    await execute(call)
    await execute(ToolCall("write_file", {"path": "a", "content": "x"}, working_dir="/srv"))
    await execute(ToolCall("write_file", {"path": "/b", "content": "y"}, working_dir="/srv"))
    assert fake_box.runs[0]["cwd"] == "/srv"
    assert fake_box.files == {"/srv/a": b"x", "/b": b"y"}


async def test_files_are_read_and_written(fake_box):
    execute = SandboxExecutor(fake_box)
    assert (await execute(ToolCall("write_file", {"path": "/a", "content": "é"}))).output == "2 bytes written"
    assert (await execute(ToolCall("read_file", {"path": "/a"}))).output == "é"


@pytest.mark.parametrize(
    "error, text",
    [
        (FileNotFoundError(2, "No such file or directory", "/nowhere"), "No such file or directory: /nowhere"),
        (PermissionError(13, "Permission denied", "/root"), "Permission denied: /root"),
        (InterruptedError(4, "Interrupted system call"), "Interrupted system call"),
        (UserUnknown("there is no user 'bob'"), "there is no user 'bob'"),
        (NotAFile("/dev/null is no file"), "/dev/null is no file"),
        (ValueError("the command has a NUL byte"), "ValueError: the command has a NUL byte"),
    ],
)
async def test_what_the_agent_brought_about_is_a_result(fake_box, error, text):
    def play(command: Any) -> ExecResult:
        raise error

    fake_box.play = play
    result = await SandboxExecutor(fake_box)(terminal())
    assert (result.success, result.error) == (False, text)


async def test_what_the_host_did_is_raised_and_never_a_result(fake_box):
    def play(command: Any) -> ExecResult:
        raise SandboxLost("the container died")

    fake_box.play = play
    with pytest.raises(SandboxLost):
        await SandboxExecutor(fake_box)(terminal())


def test_the_prompt_has_one_placeholder_and_keeps_its_braces():
    assert AGENT_SYSTEM_PROMPT.count("{tools_json}") == 1
    prompt = system_prompt('[{"x": 1}]')
    assert '<tools>\n[{"x": 1}]\n</tools>' in prompt
    assert '"title": "FunctionCall"' in prompt


def test_the_prompts_examples_are_what_the_code_reads_and_writes():
    examples = AGENT_SYSTEM_PROMPT.split("## Examples")[1]
    turns = [turn.split("User: ")[0] for turn in examples.split("Assistant: ")[1:]]
    calls = [parse_message(turn) for turn in turns]
    assert [len(parsed.calls) for parsed in calls] == [1, 0, 1, 0, 2, 0]
    assert all(parsed.format_errors == () and parsed.errors == [] for parsed in calls)
    for output in ("/srv\n", "3\n"):
        assert ToolResult(True, output).to_xml() in examples
    both = [ToolResult(True, output).to_xml() for output in ("/srv\n", "ready\n")]
    assert "\n".join(both) in examples
