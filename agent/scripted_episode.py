"""One whole episode with a scripted model in a given sandbox: what the selftest runs, and the shortest full example."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from agent.checks import MASKED, problems
from agent.executor import SandboxExecutor
from agent.loop import AtroposAgent
from agent.results import AgentConfig, AgentResult
from agent.scripted import ScriptedServer
from agent.shell_tools import Box

TASK = "Write a script that adds the numbers from 1 to 100, run it, and leave the sum in /tmp/sum.txt."

PROGRAM = """\
i=0 sum=0
while [ "$i" -lt 100 ]; do i=$((i + 1)); sum=$((sum + i)); done
echo "$sum" >/tmp/sum.txt
"""

CHECK = '[ "$(cat /tmp/sum.txt)" = 5050 ]'


def _call(thought: str, *calls: tuple[str, dict[str, Any]]) -> str:
    blocks = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls]
    return f"<think>{thought}</think>\n" + "\n".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks)


SCRIPT = (
    _call("A loop in sh does it.", ("write_file", {"path": "/tmp/sum.sh", "content": PROGRAM})),
    _call(
        "Now I run it and look.", ("terminal", {"command": "sh /tmp/sum.sh"}), ("read_file", {"path": "/tmp/sum.txt"})
    ),
    "The sum is 5050; it stands in /tmp/sum.txt.",
)


@dataclass(frozen=True, slots=True)
class ScriptedEpisode:
    """What came of it."""

    stop_reason: str | None
    error: str | None
    steps: int
    tool_calls: int
    failed_calls: int
    score: float
    """1.0 if the check, run in the sandbox after the episode, exited with status 0."""
    tokens: int
    unmasked: int
    problems: tuple[str, ...]
    """What is wrong with the exported sequence; nothing, if all is well."""
    result: AgentResult
    item: dict[str, Any]
    """The episode as ``to_scored_data`` exports it."""

    @property
    def ok(self) -> bool:
        """Whether everything went as it must."""
        return self.stop_reason == "final_answer" and self.score == 1.0 and not self.failed_calls and not self.problems


async def scripted_episode(box: Box) -> ScriptedEpisode:
    """Run the episode in ``box``; ``/tmp`` must be writable there, and ``/bin/sh`` and ``cat`` suffice.

    Raises :class:`sandbox.SandboxError` only from the check; within the episode it is told by ``stop_reason``.
    """
    server = ScriptedServer(SCRIPT)
    agent = AtroposAgent(server, config=AgentConfig(max_steps=len(SCRIPT)), execute_tool=SandboxExecutor(box))
    result = await agent.run(TASK)
    check = await box.run(CHECK, timeout=30)
    score = 1.0 if check.status == "exited" and check.exit_code == 0 else 0.0
    item = result.to_scored_data(score)
    if item is None:
        item = {"tokens": [], "masks": [], "logprobs": [], "scores": score}
    return ScriptedEpisode(
        stop_reason=result.stop_reason,
        error=result.error,
        steps=result.num_steps,
        tool_calls=result.total_tool_calls,
        failed_calls=sum(not answer.success for step in result.steps for answer in step.tool_results),
        score=score,
        tokens=len(item["tokens"]),
        unmasked=sum(mask != MASKED for mask in item["masks"]),
        problems=tuple(problems(item["tokens"], item["masks"], item["logprobs"])),
        result=result,
        item=item,
    )
