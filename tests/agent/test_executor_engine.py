"""The bridge over a real sandbox."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
import pytest

pytest.importorskip("atroposlib")

from agent import AtroposAgent, SandboxExecutor, ShellSettings, ToolCall, ToolResult
from agent.scripted import ScriptedServer
from agent.scripted_episode import scripted_episode
from sandbox import Sandbox
from sandbox.docker import DockerEngine
from tests.real_engine import MARKS, minimal

pytest_plugins = ["tests.engine_fixtures"]
pytestmark = MARKS


@pytest.fixture
async def box(docker, nothing_left) -> AsyncIterator[Sandbox]:
    async with DockerEngine(docker.address, sweeping=False) as engine, Sandbox.open(engine, minimal()) as opened:
        yield opened


async def terminal(box: Sandbox, command: str, settings: ShellSettings | None = None, **more: Any) -> ToolResult:
    return await SandboxExecutor(box, settings)(ToolCall("terminal", {"command": command, **more}))


async def test_a_scripted_episode_is_played_graded_and_exported(box):
    episode = await scripted_episode(box)
    assert episode.ok, episode


@pytest.mark.parametrize(
    "command, success, output, error",
    [
        ("echo out; echo err >&2", True, "out\nerr\n", ""),
        ("echo half; exit 3", False, "half\n", "exit code 3"),
        ("kill -9 $$", False, "", "killed by SIGKILL"),
        ("echo; nosuchcommand", False, None, "exit code 127"),
    ],
)
async def test_each_way_to_end_is_told(box, command, success, output, error):
    result = await terminal(box, command)
    assert (result.success, result.error) == (success, error)
    assert output is None or result.output == output


async def test_a_timeout_is_told_and_the_sandbox_serves_the_next_call(box):
    result = await terminal(box, "echo started; sleep 100", ShellSettings(min_timeout=0.1), timeout=0.3)
    assert (result.success, result.output) == (False, "started\n")
    assert result.error == "timed out after 0.3 s; all its processes were killed"
    assert (await terminal(box, "echo next")).output == "next\n"


async def test_a_flood_is_cut_with_the_exact_count(box):
    result = await terminal(box, "head -c 100000 /dev/zero | tr '\\0' x", ShellSettings(output_limit=1000))
    assert "99000 bytes omitted" in result.output
    assert len(result.output) < 1100


async def test_a_background_command_goes_on_and_its_output_can_be_read(box):
    started = await terminal(box, "echo begun; exec sleep 100", background=True)
    assert started.success
    assert started.metadata == {"background": True}
    file = started.output.rpartition(" ")[2].strip()
    seen = await terminal(box, f"while ! grep . {file}; do :; done", timeout=10)
    assert seen.output == "begun\n"


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("read_file", {"path": "/nowhere"}, "No such file"),
        ("read_file", {"path": "/dev/null"}, "/dev/null"),
        ("read_file", {"path": "/tmp"}, "/tmp"),
        ("write_file", {"path": "/proc/version", "content": "x"}, "/proc/version"),
        ("terminal", {"command": "echo a\0b"}, "NUL"),
    ],
)
async def test_what_the_agent_brings_about_is_an_answer(box, name, arguments, words):
    result = await SandboxExecutor(box)(ToolCall(name, arguments))
    assert not result.success
    assert words in result.error


async def test_an_unknown_user_and_a_missing_directory_are_answers(box):
    assert "nobody-here" in (await terminal(box, "true", ShellSettings(user="nobody-here"))).error
    missing = ToolCall("terminal", {"command": "true"}, working_dir="/nowhere")
    assert "/nowhere" in (await SandboxExecutor(box)(missing)).error


async def test_files_go_both_ways_relative_to_the_working_directory(box):
    execute = SandboxExecutor(box)
    await execute(ToolCall("write_file", {"path": "notes/a.txt", "content": "é\n"}, working_dir="/tmp"))
    assert (await execute(ToolCall("read_file", {"path": "/tmp/notes/a.txt"}))).output == "é\n"
    assert (await execute(ToolCall("terminal", {"command": "pwd"}, working_dir="/tmp"))).output == "/tmp\n"


async def test_a_container_killed_from_outside_ends_the_episode_unscored(box, docker):
    def call(command: str) -> str:
        return f"<tool_call>{json.dumps({'name': 'terminal', 'arguments': {'command': command}})}</tool_call>"

    class Killer(SandboxExecutor):
        async def __call__(self, call: ToolCall) -> ToolResult:
            if call.arguments["command"] == "second":
                await anyio.to_thread.run_sync(docker.do, box.container_id, "kill")
            return await super().__call__(call)

    server = ScriptedServer([call("echo first"), call("second"), "never"])
    result = await AtroposAgent(server, execute_tool=Killer(box)).run("Go.")
    assert (result.stop_reason, result.success, result.num_steps) == ("sandbox_lost", False, 2)
    assert len(server.requests) == 2
    assert result.trajectory_data is not None
    assert result.trajectory_data.trainable
