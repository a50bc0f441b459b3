"""A container that is killed, stopped or paused from outside, and a controller whose event loop stands still."""

from __future__ import annotations

import os
import signal
import time

import anyio
import pytest

from sandbox import SandboxLost, open_sandbox
from tests.dockerd import wait_until
from tests.real_engine import MARKS, assert_one_sentence, minimal

pytest_plugins = ["tests.engine_fixtures"]
pytestmark = MARKS


async def lost_in_a_call(box, breaking, *words, bound=30):
    """Several calls are open when the sandbox breaks: each is told, promptly, and every later one."""
    failures = []

    async def call(attempt):
        try:
            await attempt
        except SandboxLost as error:
            failures.append(error)

    with anyio.fail_after(bound):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, box.run("sleep 1000", timeout=None))
            tasks.start_soon(call, box.run("cat; sleep 1000", stdin=bytes(1_000_000)))
            tasks.start_soon(call, box.write_file("/tmp/fifo/../x", bytes(50_000_000)))
            await anyio.sleep(0.3)
            breaking()
            tasks.start_soon(call, box.run("sleep 1000"))
    assert len(failures) >= 3  # the file may have been written before
    for failure in failures:
        assert_one_sentence(failure, "The sandbox was lost", "Open a new one", *words)
    assert box.closed
    with pytest.raises(SandboxLost):
        await box.run("true")


class TestKilled:
    async def test_through_the_engine(self, real_engine, docker):
        async with open_sandbox(minimal(), engine=real_engine) as box:
            await lost_in_a_call(box, lambda: docker.do(box.container_id, "kill"), "killed from outside (SIGKILL)")
            wait_until(lambda: not docker.exists(box.container_id), what="the killed container is gone")

    async def test_removed_through_the_engine(self, real_engine, docker):
        async with open_sandbox(minimal(), engine=real_engine) as box:
            await lost_in_a_call(box, lambda: docker.remove(box.container_id), "killed")

    async def test_its_guest_alone(self, real_engine, docker):
        async with open_sandbox(minimal(), engine=real_engine) as box:
            pid = docker.inspect(box.container_id)["State"]["Pid"]
            try:
                os.kill(pid, 0)
            except (ProcessLookupError, PermissionError):
                pytest.skip("this engine's processes can't be reached from here")
            await lost_in_a_call(
                box, lambda: os.kill(pid, signal.SIGKILL), "killed by SIGKILL", "not through the engine"
            )

    async def test_while_a_callers_output_callback_works(self, real_engine, docker):
        async with open_sandbox(minimal(), engine=real_engine) as box:

            async def watch(stream, data):
                docker.do(box.container_id, "kill")
                await anyio.sleep(0.5)

            with anyio.fail_after(30), pytest.raises(SandboxLost, match="killed from outside"):
                await box.run("while :; do echo line; sleep 0.1; done", on_output=watch)

    async def test_while_a_stream_is_iterated(self, real_engine, docker):
        async with open_sandbox(minimal(), engine=real_engine) as box:

            async def iterate():
                async with box.stream("while :; do echo line; sleep 0.1; done") as running:
                    async for _ in running:
                        if docker.exists(box.container_id):
                            docker.do(box.container_id, "kill")

            with anyio.fail_after(30), pytest.raises(SandboxLost, match="killed from outside"):
                await iterate()

    async def test_during_a_transfer(self, real_engine, docker, tmp_path):
        """No half of a file stays, here as little as there."""
        async with open_sandbox(minimal(), engine=real_engine) as box:
            await box.run("head -c 300000000 /dev/zero >/tmp/large")

            async def kill():
                await anyio.sleep(0.1)
                docker.do(box.container_id, "kill")

            async def copy():
                with pytest.raises(SandboxLost):
                    await box.download("/tmp/large", tmp_path / "large")

            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(kill)
                    tasks.start_soon(copy)
        assert list(tmp_path.iterdir()) == []


class TestPaused:
    async def test_shorter_than_the_lease(self, real_engine, docker):
        async with open_sandbox(minimal(lease=20), engine=real_engine) as box:
            docker.do(box.container_id, "pause")
            await anyio.sleep(1)
            docker.do(box.container_id, "unpause")
            assert (await box.run("echo well")).stdout.text == "well\n"

    async def test_longer_than_the_lease(self, real_engine, docker):
        """It first hears the pings that it missed."""
        async with open_sandbox(minimal(lease=2), engine=real_engine) as box:
            docker.do(box.container_id, "pause")
            try:
                await anyio.sleep(2.4)  # less than what the controller takes for a guest that is dumb
            finally:
                docker.do(box.container_id, "unpause")
            assert (await box.run("echo well")).stdout.text == "well\n"

    async def test_for_so_long_that_it_is_given_up(self, real_engine, docker):
        """Paused for ever: the open call is told in bounded time, and closing removes it."""
        async with open_sandbox(minimal(lease=1), engine=real_engine) as box:
            docker.do(box.container_id, "pause")
            with anyio.fail_after(30), pytest.raises(SandboxLost) as caught:
                await box.run("echo well", timeout=None)
            assert_one_sentence(caught.value, "does not answer any more")

    async def test_closed_while_it_is_paused(self, real_engine, docker):
        with anyio.fail_after(30):
            async with open_sandbox(minimal(), engine=real_engine) as box:
                docker.do(box.container_id, "pause")


class TestStandingStill:
    """The controller pings from its event loop; what blocks that must not cost a sandbox before the lease is over."""

    async def test_for_a_sixth_of_the_lease(self, real_engine):
        """20 s of the default 120 s, in proportion."""
        async with open_sandbox(minimal(lease=12), engine=real_engine) as box:
            await box.run("sleep 1000 & echo $! >/tmp/pid")
            time.sleep(2)  # noqa: ASYNC251  this is the fault
            assert (await box.run("kill -0 $(cat /tmp/pid) && echo lives")).stdout.text == "lives\n"

    async def test_a_call_that_ended_meanwhile_is_not_late(self, real_engine):
        async with open_sandbox(minimal(lease=12), engine=real_engine) as box:
            async with anyio.create_task_group() as tasks:
                results = []

                async def call():
                    results.append(await box.run("sleep 0.5; echo well", timeout=1))

                tasks.start_soon(call)
                await anyio.sleep(0.1)
                time.sleep(3)  # noqa: ASYNC251
            assert results[0].stdout.text == "well\n"

    async def test_beyond_the_lease(self, real_engine, docker):
        async with open_sandbox(minimal(lease=1), engine=real_engine) as box:
            time.sleep(3)  # noqa: ASYNC251
            with anyio.fail_after(30), pytest.raises(SandboxLost) as caught:
                await box.run("echo well")
            assert_one_sentence(caught.value, "no word came from the controller", "Open a new one")

    @pytest.mark.slow
    async def test_for_20_seconds_of_the_default_lease(self, real_engine):
        async with open_sandbox(minimal(), engine=real_engine) as box:
            time.sleep(20)  # noqa: ASYNC251
            assert (await box.run("echo well")).stdout.text == "well\n"


class TestLifetime:
    async def test_it_ends_whatever_its_owner_does(self, real_engine):
        async with open_sandbox(minimal(lifetime=1.5), engine=real_engine) as box:
            with anyio.fail_after(30), pytest.raises(SandboxLost) as caught:
                await box.run("sleep 1000")
            assert_one_sentence(caught.value, "lifetime")
