"""The last check: a whole agent episode. The only place of the package that knows of `agent`."""

from __future__ import annotations

from sandbox.selftest.check import REPORT, Context, Skipped, expect

INSTALL = "pip install 'shell-agent-sandbox[agent]'"


async def episode(context: Context) -> str:
    """AtroposAgent, a scripted model behind a real ManagedServer, tool calls, a grade, tokens and masks."""
    try:
        import atroposlib  # noqa: F401
    except ModuleNotFoundError:
        raise Skipped(f"atroposlib is not installed; {INSTALL}") from None
    from agent.scripted_episode import scripted_episode

    async with context.sandbox() as box:
        outcome = await scripted_episode(box)
    expect("the episode's end", outcome.stop_reason, "final_answer", remedy=REPORT)
    expect("the grade", outcome.score, 1.0, remedy=REPORT)
    expect("problems of the exported sequence", outcome.problems, (), remedy=REPORT)
    return (
        f"{outcome.steps} steps, {outcome.tool_calls} tool calls, score {outcome.score:g}, "
        f"{outcome.tokens} tokens, {outcome.unmasked} of them trained"
    )
