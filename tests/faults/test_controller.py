"""The controlling process itself is the fault: killed at random instants, or its tasks natively cancelled."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from contextlib import contextmanager
from uuid import uuid4

import anyio
import anyio.to_thread
import pytest

from sandbox import open_sandbox
from sandbox.docker import DockerEngine
from sandbox.selftest.leak import victim_command
from sandbox.sweep import sweep
from tests.dockerd import wait_until
from tests.real_engine import MARKS, MINIMAL, minimal

pytest_plugins = ["tests.engine_fixtures"]
pytestmark = MARKS

GONE = 10.0


@contextmanager
def victim(docker, token):
    """A controlling process of its own, which opens a sandbox and waits; killed by the block's end at the latest."""
    command = victim_command(docker.address, MINIMAL, token)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


async def says(process, lines):
    """The first line: its engine is open; the second: its sandbox serves."""
    with anyio.fail_after(60):
        for _ in range(lines):
            assert await anyio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)


def containers(docker, token, *states):
    found = docker.containers(f"selftest={token}")
    return [container["Names"][0] for container in found if not states or container["State"] in states]


class TestKilled:
    async def test_while_its_sandbox_serves(self, docker):
        token = uuid4().hex
        with victim(docker, token) as process:
            await says(process, 2)
            assert containers(docker, token, "running")
            process.kill()
        wait_until(lambda: not containers(docker, token), GONE, "the container of a killed controller is gone")

    @pytest.mark.parametrize("instants", [4, pytest.param(100, marks=pytest.mark.slow)])
    async def test_at_random_instants_of_a_start(self, docker, instants):
        token = uuid4().hex
        for _ in range(instants):
            with victim(docker, token) as process:
                await says(process, 1)
                await anyio.sleep(random.uniform(0, 0.4))
                process.kill()
        await anyio.sleep(0.5)  # what was on its way to the engine may still arrive
        wait_until(lambda: not containers(docker, token, "running"), GONE, "nothing of them runs")
        async with DockerEngine(docker.address, sweeping=False) as engine:
            await sweep(engine)
        wait_until(lambda: not containers(docker, token), GONE, "nothing of them is left after a sweep")

    async def test_stopped_and_then_killed(self, docker):
        """A stopped controller still holds its stream; only its death ends it."""
        token = uuid4().hex
        with victim(docker, token) as process:
            await says(process, 2)
            os.kill(process.pid, signal.SIGSTOP)
            await anyio.sleep(0.5)
            assert containers(docker, token, "running")
            process.kill()
        wait_until(lambda: not containers(docker, token), GONE, "the container of a killed controller is gone")

    async def test_another_living_owner_loses_nothing_by_the_sweep(self, docker, real_engine):
        token = uuid4().hex
        async with open_sandbox(minimal(), engine=real_engine) as box:
            with victim(docker, token) as process:
                await says(process, 2)
                await sweep(real_engine)
                assert containers(docker, token, "running")
                process.kill()
            await sweep(real_engine)
            assert (await box.run("echo well")).stdout.text == "well\n"
        wait_until(lambda: not containers(docker, token), GONE, "the victim's container is gone")

    async def test_interrupted_by_the_keyboard(self, docker):
        token = uuid4().hex
        with victim(docker, token) as process:
            await says(process, 2)
            process.send_signal(signal.SIGINT)
            await anyio.to_thread.run_sync(process.wait, 30)
        assert not containers(docker, token)


class TestNativelyCancelled:
    """asyncio's own ``Task.cancel()``, which goes through anyio's shields; here at a few instants, on a real engine."""

    @pytest.mark.parametrize("seconds", [0, 0.02, 0.06, 0.12, 0.2, 0.3, 0.6])
    async def test_at_some_instant(self, real_engine, seconds):
        """Sooner it hits the start, later a call."""
        task = asyncio.create_task(self.use(real_engine))
        await asyncio.sleep(seconds)
        await self.assert_cancels(task)

    @pytest.mark.parametrize("pause", [0, 0.03, 0.1])
    async def test_twice(self, real_engine, pause):
        task = asyncio.create_task(self.use(real_engine))
        await asyncio.sleep(0.4)
        task.cancel()
        await asyncio.sleep(pause)
        await self.assert_cancels(task)

    async def test_again_and_again_while_it_closes(self, real_engine):
        task = asyncio.create_task(self.use(real_engine))
        await asyncio.sleep(0.4)
        with anyio.fail_after(30):
            while not task.done():
                task.cancel()
                await asyncio.sleep(0.005)
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_in_a_call_whose_command_ignores_sigterm(self, real_engine):
        """The command is dead before the cancellation goes on; the sandbox serves another task."""
        async with open_sandbox(minimal(), engine=real_engine) as box:
            task = asyncio.create_task(box.run("trap '' TERM; sleep 1000 & while :; do sleep 1; done"))
            await asyncio.sleep(0.3)
            began = time.monotonic()
            await self.assert_cancels(task)
            assert time.monotonic() - began < 10
            alive = await box.run(["ps", "-o", "args"], user="0:0")
            assert "sleep 1000" not in alive.stdout.text

    async def test_during_the_engines_own_opening_and_closing(self, docker):
        async def opening():
            async with DockerEngine(docker.address) as engine:
                await engine.containers()
                await asyncio.sleep(0.02)

        for seconds in (0, 0.01, 0.03, 0.05, 0.08, 0.1):
            task = asyncio.create_task(opening())
            await asyncio.sleep(seconds)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() or task.exception() is None

    async def use(self, engine):
        async with open_sandbox(minimal(), engine=engine) as box:
            while True:
                await box.run("sleep 0.05")
                await box.write_file("/tmp/file", bytes(100_000))

    async def assert_cancels(self, task):
        task.cancel()
        with anyio.fail_after(30), pytest.raises(asyncio.CancelledError):
            await task
