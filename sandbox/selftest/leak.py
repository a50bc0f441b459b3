"""Nothing is left when the controlling process dies without a chance to clean up."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from uuid import uuid4

import anyio
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from sandbox.engine import ContainerInfo, Engine
from sandbox.selftest.check import Context, Failed
from sandbox.sweep import sweep

GONE_BOUND = 10.0
KILLS_DURING_START = 3
_REMEDY = "Remove what is left with `python -m sandbox sweep`, and report this with `python -m sandbox doctor --json`."


async def leak(context: Context) -> str:
    """After SIGKILL of the controller its containers are gone, and a sweep finds the ones that never started."""
    took = await _kill_while_serving(context)
    for _ in range(KILLS_DURING_START):
        await _kill_while_starting(context)
    return f"gone {took:.2f} s after SIGKILL; {KILLS_DURING_START} kills during the start left nothing"


def victim_command(address: str, image: str, token: str) -> list[str]:
    """A controlling process to be killed; its containers carry the token as the label ``selftest``."""
    return [sys.executable, "-m", "sandbox.selftest.victim", address, image, token]


async def labelled(engine: Engine, token: str, states: Collection[str] | None = None) -> list[ContainerInfo]:
    """The containers of the victim with this token; None: of any state."""
    return [
        container
        for container in await engine.containers()
        if container.labels.get("selftest") == token and (states is None or container.state in states)
    ]


async def _kill_while_serving(context: Context) -> float:
    token = uuid4().hex
    async with await _victim(context, token) as victim:
        try:
            container = await _second_line(victim)
            if not await labelled(context.engine, token, {"running"}):
                raise Failed("the victim's container", seen="none", expected=container, remedy=_REMEDY)
        finally:
            _kill(victim)
        killed = time.perf_counter()
        await _until_none(context, token, {"running"})
        took = time.perf_counter() - killed
        await _until_none(context, token, None)
    return took


async def _kill_while_starting(context: Context) -> None:
    token = uuid4().hex
    async with await _victim(context, token) as victim:
        try:
            await _lines(victim).receive()
            await anyio.sleep(random.uniform(0, 0.15))
        finally:
            _kill(victim)
    # What was on its way to the engine may still arrive.
    await anyio.sleep(0.5)
    await _until_none(context, token, {"running"})
    await sweep(context.engine)
    await _until_none(context, token, None)


async def _victim(context: Context, token: str) -> Process:
    command = victim_command(context.engine.info.address, context.image, token)
    return await anyio.open_process(command, stderr=subprocess.PIPE)


def _kill(victim: Process) -> None:
    with suppress(ProcessLookupError):  # it may have ended by itself, which the check is about to tell
        victim.kill()


def _lines(victim: Process) -> TextReceiveStream:
    assert victim.stdout is not None
    return TextReceiveStream(victim.stdout)


async def _second_line(victim: Process) -> str:
    text, stream = "", _lines(victim)
    try:
        while text.count("\n") < 2:
            text += await stream.receive()
    except anyio.EndOfStream:
        assert victim.stderr is not None
        why = (await victim.stderr.receive()).decode("utf-8", "replace").strip().splitlines()[-1:]
        raise Failed("the victim", seen=f"it ended ({why})", expected="an open sandbox", remedy=_REMEDY) from None
    return text.splitlines()[1]


async def _until_none(context: Context, token: str, states: Collection[str] | None) -> None:
    with anyio.move_on_after(GONE_BOUND):
        while await labelled(context.engine, token, states):
            await anyio.sleep(0.02)
    left = [f"{container.name} ({container.state})" for container in await labelled(context.engine, token, states)]
    if left:
        raise Failed(
            f"containers of a killed process after {GONE_BOUND:.0f} s", seen=left, expected="none", remedy=_REMEDY
        )
