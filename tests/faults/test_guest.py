"""A guest that misbehaves, and a guest's volume that was pruned or tampered with."""

from __future__ import annotations

import os

import anyio
import pytest

from sandbox import Sandbox, SandboxLost, SandboxStartError, open_sandbox
from sandbox.docker import DockerEngine
from sandbox.plan import GUEST_DIR
from tests.dockerd import Entry, make_tar
from tests.real_engine import MARKS, MINIMAL, assert_one_sentence, minimal

pytest_plugins = ["tests.engine_fixtures"]
pytestmark = MARKS


class TestAtTheStart:
    @pytest.mark.parametrize(
        "mode, words",
        [
            ("garbage", ("did not come up", "broke the protocol")),
            ("huge", ("did not come up", "broke the protocol", "4294967295 bytes")),
            ("magic", ("did not come up", "broke the protocol")),
            ("version", ("did not come up", "version 2", "this library 1")),
            ("exit", ("did not come up", "status 3")),
            ("crash", ("did not come up",)),
            ("fatal", ("did not come up", "I refuse.")),
            ("pid", ("process id 7", "use no init")),
            ("network", ("eth0", "check the engine's")),
            ("shell", ("no executable /bin/sh", "use an image with a shell")),
        ],
    )
    async def test_it_is_refused_in_one_sentence(self, docker, bad_guest, mode, words):
        async with DockerEngine(docker.address, guest=bad_guest(mode), sweeping=False) as engine:
            with anyio.fail_after(30), pytest.raises(SandboxStartError) as caught:
                async with open_sandbox(minimal(), engine=engine):
                    pytest.fail("it opened")
            assert_one_sentence(caught.value, *words)

    @pytest.mark.parametrize("mode", ["silence", "chatter"])
    async def test_one_that_never_says_hello_is_given_up(self, docker, bad_guest, mode):
        async with DockerEngine(docker.address, guest=bad_guest(mode), sweeping=False) as engine:
            with anyio.fail_after(30), pytest.raises(SandboxStartError) as caught:
                async with Sandbox.open(engine, minimal(), start_timeout=1):
                    pytest.fail("it opened")
            assert_one_sentence(caught.value, "was not ready within 1 s")

    async def test_its_memory_of_what_it_said_is_bounded(self, docker, bad_guest):
        """Its stderr is kept for the reason of its end, some of it."""
        async with DockerEngine(docker.address, guest=bad_guest("chatter"), sweeping=False) as engine:
            with pytest.raises(SandboxStartError) as caught:
                async with Sandbox.open(engine, minimal(), start_timeout=2):
                    pytest.fail("it opened")
            assert len(str(caught.value)) < 1000


class TestInACall:
    @pytest.mark.parametrize(
        "mode, word",
        [
            ("late-garbage", "broke the protocol"),
            ("late-huge", "broke the protocol"),
            ("late-flood", "kept more"),
            ("late-output", "not asked for"),
            ("late-stranger", "isn't open"),
            ("late-status", "unknown status 99"),
            ("late-hello", "second HELLO"),
            ("late-lie", "kept more output than the command wrote"),
            ("late-exit", "status 3"),
            ("late-fatal", "I quit."),
        ],
    )
    async def test_the_sandbox_is_lost_with_the_reason(self, docker, bad_guest, mode, word):
        async with DockerEngine(docker.address, guest=bad_guest(mode), sweeping=False) as engine:
            async with open_sandbox(minimal(), engine=engine) as box:
                with anyio.fail_after(30), pytest.raises(SandboxLost) as caught:
                    await box.run("true")
                assert_one_sentence(caught.value, "The sandbox was lost", word, "Open a new one")
                assert "\x1b" not in str(caught.value)
                assert box.closed
                with pytest.raises(SandboxLost, match="Open a new one"):
                    await box.run("true")
                with pytest.raises(SandboxLost):
                    await box.reset()

    async def test_every_open_call_is_told(self, docker, bad_guest):
        failures = []

        async def call(box):
            try:
                await box.run("true", stdin=b"x" * 1_000_000)
            except SandboxLost as error:
                failures.append(str(error))

        async with DockerEngine(docker.address, guest=bad_guest("late-half"), sweeping=False) as engine:
            async with open_sandbox(minimal(lease=4), engine=engine) as box:
                with anyio.fail_after(60):
                    async with anyio.create_task_group() as tasks:
                        for _ in range(5):
                            tasks.start_soon(call, box)
                        await anyio.sleep(0.5)
                        docker.do(box.container_id, "kill")
        assert len(failures) == 5
        assert all("killed from outside" in failure for failure in failures)

    async def test_one_that_falls_silent_is_noticed(self, docker, bad_guest):
        """It answers no ping: by the time that its lease would have run out it counts as lost."""
        async with DockerEngine(docker.address, guest=bad_guest("late-half"), sweeping=False) as engine:
            async with open_sandbox(minimal(lease=2), engine=engine) as box:
                with anyio.fail_after(30), pytest.raises(SandboxLost) as caught:
                    await box.run("true", timeout=None)
                assert_one_sentence(caught.value, "does not answer any more")


class TestVolume:
    async def test_pruned_between_two_starts_it_is_seeded_again(self, docker, own_guest):
        async with DockerEngine(docker.address, guest=own_guest, sweeping=False) as engine:
            for _ in range(2):
                async with open_sandbox(minimal(), engine=engine) as box:
                    assert (await box.run("echo well")).stdout.text == "well\n"
                docker.remove_volume(engine.guest_volume)
            async with open_sandbox(minimal(), engine=engine) as box:
                assert (await box.run("echo well")).stdout.text == "well\n"

    async def test_emptied_between_two_starts_it_is_seeded_again(self, docker, own_guest):
        """As an engine leaves it that makes a missing volume by itself, for somebody else's container."""
        async with DockerEngine(docker.address, guest=own_guest, sweeping=False) as engine:
            async with open_sandbox(minimal(), engine=engine):
                pass
            docker.remove_volume(engine.guest_volume)
            docker.request("POST", "/volumes/create", {"Name": engine.guest_volume})
            async with open_sandbox(minimal(), engine=engine) as box:
                assert (await box.run("echo well")).stdout.text == "well\n"
            docker.remove_volume(engine.guest_volume)

    async def test_several_starts_at_once_seed_it_once(self, docker, own_guest):
        results = []

        async def start(engine):
            async with open_sandbox(minimal(), engine=engine) as box:
                results.append((await box.run("echo well")).stdout.text)

        async with (
            DockerEngine(docker.address, guest=own_guest, sweeping=False) as one,
            DockerEngine(docker.address, guest=own_guest, sweeping=False) as other,
        ):
            async with anyio.create_task_group() as tasks:
                for engine in (one, other, one, other):
                    tasks.start_soon(start, engine)
        assert results == ["well\n"] * 4

    @pytest.mark.parametrize(
        "entries",
        [
            {"guest": Entry(b"#!/bin/sh\nexit 0\n")},
            {"guest": Entry(b"")},
            {"guest": Entry(kind=b"2", link="/bin/sh")},
        ],
        ids=["other-bytes", "empty", "a-link"],
    )
    async def test_tampered_with_it_is_noticed_and_mended(self, docker, own_guest, entries):
        async with DockerEngine(docker.address, guest=own_guest, sweeping=False) as engine:
            async with open_sandbox(minimal(), engine=engine):
                pass
            volume = engine.guest_volume
        door = docker.create(
            f"sandbox-test-door-{os.getpid()}",
            {
                "Image": MINIMAL,
                "HostConfig": {"Mounts": [{"Type": "volume", "Source": volume, "Target": GUEST_DIR}]},
            },
        )
        try:
            docker.put(door, GUEST_DIR, make_tar(entries))
        finally:
            docker.remove(door)
        async with DockerEngine(docker.address, guest=own_guest, sweeping=False) as engine:
            async with open_sandbox(minimal(), engine=engine) as box:
                assert (await box.run("echo well")).stdout.text == "well\n"

    async def test_a_seeding_that_died_halfway_does_not_stand_in_the_way(self, docker, own_guest):
        """Its container is the mutex; one of a dead owner is taken away."""
        async with DockerEngine(docker.address, guest=own_guest, sweeping=False) as engine:
            name = engine.guest_volume.replace("-guest-", "-seed-")
            labels = {"shell-agent-sandbox.role": "seed", "shell-agent-sandbox.owner": "dead"}
            labels |= _dead_owner()
            docker.create(name, {"Image": MINIMAL, "Labels": labels})
            try:
                with anyio.fail_after(30):
                    async with open_sandbox(minimal(), engine=engine) as box:
                        assert (await box.run("echo well")).stdout.text == "well\n"
            finally:
                docker.remove(name)


def _dead_owner():
    from dataclasses import replace

    from sandbox.owner import Owner

    return replace(Owner.current(), owner="dead", pid="4194305", started="1").labels()
