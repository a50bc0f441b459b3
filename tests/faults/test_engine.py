"""The engine itself dies, stops or is restarted, with sandboxes open: a second dockerd of the tests' own."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import anyio
import pytest

from sandbox import EngineUnavailable, SandboxError, SandboxLost, SandboxStartError, open_sandbox
from sandbox import start as start_module
from sandbox.docker import DockerEngine
from sandbox.owner import OWNER, Owner
from sandbox.sweep import sweep
from tests.dockerd import eventually, wait_until
from tests.real_engine import MARKS, assert_one_sentence, minimal

pytest_plugins = ["tests.engine_fixtures"]
pytestmark = MARKS

PROMPT = 30.0


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def guest_pid(own_engine, box):
    return own_engine.docker.inspect(box.container_id)["State"]["Pid"]


def mine(own_engine):
    return [each["Names"][0] for each in own_engine.docker.containers(f"{OWNER}={Owner.current().owner}")]


async def assert_nothing_left(own_engine):
    """After a sweep, at the latest."""
    async with DockerEngine(own_engine.address) as engine:
        await sweep(engine)
    wait_until(lambda: not mine(own_engine), PROMPT, "the sandboxes of before are gone")
    volumes = own_engine.docker.volumes()
    assert all("guest" in name for name in volumes), volumes


async def assert_serves(own_engine):
    async with DockerEngine(own_engine.address) as engine:
        async with open_sandbox(minimal(), engine=engine) as box:
            assert (await box.run("echo well")).stdout.text == "well\n"


class TestKilled:
    async def test_with_calls_open(self, own_engine):
        """Each open call is told at once, nothing new opens, and the guests end by their lease without an engine."""
        failures = []
        pids = []

        async def use(engine):
            try:
                async with open_sandbox(minimal(lease=3), engine=engine) as box:
                    pids.append(guest_pid(own_engine, box))
                    try:
                        await box.run("sleep 1000", timeout=None)
                    except SandboxError as error:
                        failures.append(error)
                        with pytest.raises(SandboxLost):
                            await box.write_file("/tmp/file", b"")
            except EngineUnavailable as error:  # it could not be closed in good order
                assert_one_sentence(error)

        async with DockerEngine(own_engine.address) as engine:
            with anyio.fail_after(120):
                async with anyio.create_task_group() as tasks:
                    for _ in range(3):
                        tasks.start_soon(use, engine)
                    await eventually(lambda: len(pids) == 3, 60, "three sandboxes serve")
                    await anyio.sleep(0.5)
                    own_engine.kill()
                    await eventually(lambda: len(failures) == 3, PROMPT, "each open call is told")
                for failure in failures:
                    assert isinstance(failure, SandboxLost)
                    assert_one_sentence(failure, "The sandbox was lost", "Open a new one")
                with pytest.raises(EngineUnavailable) as caught:
                    async with open_sandbox(minimal(), engine=engine):
                        pytest.fail("it opened")
                assert_one_sentence(caught.value, "No container engine answers", "start one")
        with pytest.raises(EngineUnavailable):
            async with DockerEngine(own_engine.address):
                pytest.fail("it opened")
        wait_until(lambda: not any(map(alive, pids)), PROMPT, "the guests ended by their lease")
        own_engine.start()
        await assert_serves(own_engine)
        await assert_nothing_left(own_engine)

    async def test_and_restarted_at_once(self, own_engine):
        """The sandboxes of before don't survive that, though their lease is long and their owner alive."""
        pids = []
        async with DockerEngine(own_engine.address) as engine:
            with anyio.fail_after(120):
                async with open_sandbox(minimal(), engine=engine) as box:
                    pids.append(guest_pid(own_engine, box))
                    own_engine.kill()
                    own_engine.start()
                    with pytest.raises(SandboxLost):
                        await box.run("true")
            async with open_sandbox(minimal(), engine=engine) as box:
                assert (await box.run("echo well")).stdout.text == "well\n"
        await assert_nothing_left(own_engine)
        wait_until(lambda: not any(map(alive, pids)), PROMPT, "the guests are gone")

    async def test_during_a_start(self, own_engine):
        outcomes = []

        async def attempt(engine):
            try:
                async with open_sandbox(minimal(lease=3), engine=engine) as box:
                    await box.run("sleep 1000", timeout=None)
            except SandboxError as error:
                outcomes.append(error)

        async with DockerEngine(own_engine.address) as engine:
            with anyio.fail_after(120):
                async with anyio.create_task_group() as tasks:
                    for _ in range(4):
                        tasks.start_soon(attempt, engine)
                    await anyio.sleep(0.15)
                    own_engine.kill()
        assert len(outcomes) == 4
        for outcome in outcomes:
            assert_one_sentence(outcome)
        await anyio.sleep(4)  # the lease
        own_engine.start()
        await assert_nothing_left(own_engine)

    async def test_while_a_sandbox_closes(self, own_engine):
        pids = []

        async def use(engine):
            async with open_sandbox(minimal(lease=2), engine=engine) as box:
                pids.append(guest_pid(own_engine, box))
                own_engine.kill()

        async with DockerEngine(own_engine.address) as engine:
            with anyio.fail_after(60), pytest.raises(EngineUnavailable) as caught:
                await use(engine)
            assert_one_sentence(caught.value)
        wait_until(lambda: not alive(pids[0]), PROMPT, "the guest ended by its lease")
        own_engine.start()
        await assert_nothing_left(own_engine)


class TestStopped:
    async def test_by_the_host(self, own_engine):
        """SIGTERM: the engine stops its containers, and each call is told."""
        async with DockerEngine(own_engine.address) as engine:
            with anyio.fail_after(90):
                try:
                    async with open_sandbox(minimal(), engine=engine) as box:
                        stopping = threading.Thread(target=own_engine.stop)
                        stopping.start()
                        with pytest.raises(SandboxLost) as caught:
                            await box.run("sleep 1000", timeout=None)
                        assert_one_sentence(caught.value, "The sandbox was lost")
                except EngineUnavailable as error:
                    assert_one_sentence(error)
                await eventually(lambda: not stopping.is_alive(), 60, "the engine has stopped")
        own_engine.start()
        await assert_nothing_left(own_engine)
        await assert_serves(own_engine)

    async def test_frozen_during_a_start_that_is_then_cancelled(self, own_engine):
        """The engine takes the request up when it thaws; the container that then comes to be is ended."""
        async with DockerEngine(own_engine.address) as engine:
            async with open_sandbox(minimal(), engine=engine):
                pass
            own_engine.signal(signal.SIGSTOP)
            thaw = threading.Timer(2.5, own_engine.signal, [signal.SIGCONT])
            thaw.start()
            with anyio.fail_after(60), pytest.raises(TimeoutError), anyio.fail_after(1):
                async with open_sandbox(minimal(), engine=engine):
                    pytest.fail("it opened")
            thaw.join()
            assert not mine(own_engine)
            async with open_sandbox(minimal(), engine=engine) as box:
                assert (await box.run("echo well")).stdout.text == "well\n"
        await assert_nothing_left(own_engine)

    async def test_frozen_for_longer_than_closing_waits(self, own_engine, monkeypatch):
        monkeypatch.setattr(start_module, "_REMOVE", 1.0)
        monkeypatch.setattr(start_module, "_CLOSE", 3.0)
        thaw = threading.Timer(8, own_engine.signal, [signal.SIGCONT])

        async def use(engine):
            async with open_sandbox(minimal(lease=4), engine=engine):
                own_engine.signal(signal.SIGSTOP)
                thaw.start()

        async with DockerEngine(own_engine.address) as engine:
            began = time.monotonic()
            with anyio.fail_after(60), pytest.raises(SandboxError) as caught:
                await use(engine)
            assert_one_sentence(caught.value)
            assert time.monotonic() - began < 8
        thaw.join()
        await assert_nothing_left(own_engine)

    async def test_a_frozen_engine_leaves_open_calls_alone(self, own_engine):
        """They wait for it no longer than for a slow link, and go on when it thaws."""
        async with DockerEngine(own_engine.address) as engine:
            async with open_sandbox(minimal(lease=30), engine=engine) as box:
                own_engine.signal(signal.SIGSTOP)
                thaw = threading.Timer(1.5, own_engine.signal, [signal.SIGCONT])
                thaw.start()
                with anyio.fail_after(30):
                    assert (await box.run("echo well")).stdout.text == "well\n"
                thaw.join()


class TestRefusedStart:
    async def test_a_runtime_that_fails(self, own_engine):
        """The container was made, its start was refused: it is removed again."""
        async with DockerEngine(own_engine.address) as engine:
            assert "broken" in engine.info.runtimes
            for _ in range(2):
                with anyio.fail_after(60), pytest.raises(SandboxStartError) as caught:
                    async with open_sandbox(minimal(runtime="broken"), engine=engine):
                        pytest.fail("it opened")
                assert_one_sentence(caught.value, "could not start the sandbox")
                assert not mine(own_engine)
            async with open_sandbox(minimal(), engine=engine) as box:
                assert (await box.run("echo well")).stdout.text == "well\n"
        await assert_nothing_left(own_engine)
