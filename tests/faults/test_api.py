"""An engine that refuses, loses its answers, hangs up or hangs: at each step of a sandbox's life nothing is left."""

from __future__ import annotations

import time

import anyio
import pytest

from sandbox import EngineUnavailable, SandboxError, SandboxStartError, open_sandbox
from sandbox import start as start_module
from sandbox.docker import DockerEngine
from tests.real_engine import MARKS, assert_one_sentence, minimal

pytest_plugins = ["tests.engine_fixtures"]
pytestmark = MARKS

STEPS = {
    "image": r"^GET /images/",
    "create": r"^POST /containers/create\?.*name=shell-agent-sandbox-[0-9a-f]{32}",
    "attach": r"^POST /containers/[0-9a-f]+/attach",
    "start": r"^POST /containers/[0-9a-f]+/start",
}
REMOVAL = r"^DELETE /containers/"
END = rf"{REMOVAL}|^GET /containers/shell-agent-sandbox-[0-9a-f]{{32}}/json"
"""A removal, and the look at what became of it."""


async def open_and_run(engine):
    async with open_sandbox(minimal(), engine=engine) as box:
        assert (await box.run("echo well")).stdout.text == "well\n"


class TestAtTheStart:
    @pytest.mark.parametrize("fault", ["500", "garbage", "hang-up", "answer-lost"])
    @pytest.mark.parametrize("step", STEPS)
    async def test_one_step_fails(self, proxy, step, fault):
        """With "answer-lost" the engine did what was asked: the container exists, or runs, and nobody was told."""
        async with DockerEngine(proxy.address, sweeping=False) as engine:
            await open_and_run(engine)
            proxy.fail(STEPS[step], fault, times=1)
            with anyio.fail_after(60), pytest.raises(SandboxError) as caught:
                await open_and_run(engine)
            assert_one_sentence(caught.value)
            if fault == "500" and step != "image":
                assert isinstance(caught.value, SandboxStartError)
                assert "the engine is out of sorts" in str(caught.value)
            if fault != "500":
                assert isinstance(caught.value, EngineUnavailable)
            await open_and_run(engine)

    @pytest.mark.parametrize("step", STEPS)
    async def test_one_step_hangs_and_the_caller_gives_up(self, proxy, monkeypatch, step):
        monkeypatch.setattr(start_module, "_REMOVE", 1.0)
        monkeypatch.setattr(start_module, "_CLOSE", 2.0)
        async with DockerEngine(proxy.address, sweeping=False) as engine:
            await open_and_run(engine)
            proxy.fail(STEPS[step], "hang", times=1)
            began = time.monotonic()
            with pytest.raises(TimeoutError), anyio.fail_after(0.5):
                await open_and_run(engine)
            assert time.monotonic() - began < 20
            proxy.let_go()  # the thread of the hanging request goes on, and ends what it has begun
            await open_and_run(engine)

    async def test_the_engine_cannot_be_opened(self, proxy):
        for pattern in (r"^GET /version", r"^GET /info"):
            for fault in ("500", "garbage", "hang-up"):
                proxy.fail(pattern, fault, times=1)
                with pytest.raises(SandboxError) as caught:
                    async with DockerEngine(proxy.address, sweeping=False):
                        pytest.fail("it opened")
                assert_one_sentence(caught.value)
                proxy.mend()

    async def test_a_sweep_that_fails_does_not_hinder_the_opening(self, proxy):
        proxy.fail(r"^GET /containers/json", "500", times=1)
        async with DockerEngine(proxy.address) as engine:
            await open_and_run(engine)


class TestAtTheEnd:
    async def test_a_removal_is_asked_for_again(self, proxy):
        async with DockerEngine(proxy.address, sweeping=False) as engine:
            proxy.fail(REMOVAL, "500", times=3)  # the first is of a container that only looks at the guest's volume
            await open_and_run(engine)
            proxy.fail(REMOVAL, "500", times=3)
            await open_and_run(engine)

    @pytest.mark.parametrize("fault", ["hang-up", "garbage", "answer-lost"])
    async def test_a_removal_whose_answer_is_lost(self, proxy, fault):
        """The stream is closed first, so the guest has ended: the container goes by itself, told or not."""
        async with DockerEngine(proxy.address, sweeping=False) as engine:
            await open_and_run(engine)
            proxy.fail(REMOVAL, fault, times=1)
            try:
                await open_and_run(engine)
            except EngineUnavailable as error:
                assert_one_sentence(error)

    async def test_a_removal_that_is_always_refused(self, proxy, monkeypatch):
        """The guest has ended with its stream, so the container went by itself: that is what was asked for."""
        monkeypatch.setattr(start_module, "_REMOVE", 1.0)
        async with DockerEngine(proxy.address, sweeping=False) as engine:
            await open_and_run(engine)
            proxy.fail(REMOVAL, "500")
            await open_and_run(engine)

    async def test_a_removal_that_is_refused_and_nobody_says_what_became_of_it(self, proxy, monkeypatch):
        monkeypatch.setattr(start_module, "_REMOVE", 1.0)
        async with DockerEngine(proxy.address, sweeping=False) as engine:
            await open_and_run(engine)
            proxy.fail(END, "500")
            with anyio.fail_after(30), pytest.raises(SandboxError) as caught:
                await open_and_run(engine)
            assert_one_sentence(caught.value, "could not be removed", "docker rm -f -v shell-agent-sandbox-")

    async def test_the_blocks_own_exception_comes_first(self, proxy, monkeypatch):
        monkeypatch.setattr(start_module, "_REMOVE", 1.0)
        async with DockerEngine(proxy.address, sweeping=False) as engine:
            await open_and_run(engine)
            proxy.fail(END, "500")
            with pytest.raises(KeyError) as caught:
                async with open_sandbox(minimal(), engine=engine):
                    raise KeyError("the user's own")
            assert any("could not be removed" in note for note in caught.value.__notes__)

    async def test_why_it_was_lost_may_be_unknown(self, proxy, docker):
        """The engine doesn't say; the loss itself is told all the same."""
        async with DockerEngine(proxy.address, sweeping=False) as engine:
            async with open_sandbox(minimal(), engine=engine) as box:
                proxy.fail(r"^GET /(events|containers/[^/]+/json)", "500")
                docker.do(box.container_id, "kill")
                with anyio.fail_after(30), pytest.raises(SandboxError, match="The sandbox was lost"):
                    await box.run("sleep 1000")
