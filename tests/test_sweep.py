"""Who owns a container, and what a sweep takes: the dead's, never the living's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import pytest

from sandbox.docker import DockerEngine
from sandbox.engine import ContainerInfo, Engine
from sandbox.errors import SandboxError
from sandbox.owner import Owner
from sandbox.sweep import STUCK_AGE, UNJUDGEABLE_AGE, is_orphan, sweep

pytestmark = pytest.mark.anyio

NOW = 1_000_000.0


def owner_of(program="import time; time.sleep(60)"):
    """A second, living process and the owner that it is."""
    tell = "import json; from sandbox.owner import Owner; print(json.dumps(Owner.current().labels()), flush=True)"
    script = f"{tell}; {program}"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        return process, Owner.from_labels(json.loads(process.stdout.readline()))


@pytest.fixture
def other():
    process, owner = owner_of()
    yield process, owner
    process.kill()
    process.wait()


def container(state="created", owner=None, age=0.0, name="n"):
    labels = (owner or Owner.current()).labels()
    return ContainerInfo(id=name, name=name, state=state, image="i", created=NOW - age, labels=labels)


class TestOwner:
    def test_labels_carry_an_owner_whole(self):
        here = Owner.current()
        assert Owner.from_labels(here.labels()) == here
        assert here.pid == str(os.getpid())

    def test_this_process_lives(self):
        assert Owner.current().liveness() == "alive"

    def test_another_process_lives_until_it_ends(self, other):
        process, owner = other
        assert owner.liveness() == "alive"
        process.kill()
        process.wait()
        assert owner.liveness() == "dead"

    def test_a_zombie_owns_nothing(self, other):
        process, owner = other
        process.kill()
        deadline = time.monotonic() + 10
        while owner.liveness() == "alive" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert owner.liveness() == "dead"

    def test_a_pid_that_was_reused_is_another_process(self):
        here = Owner.current()
        assert replace(here, owner="x", started=str(int(here.started) - 1)).liveness() == "dead"

    @pytest.mark.parametrize("field", ["boot", "namespace"])
    def test_an_owner_from_elsewhere_cannot_be_judged(self, field):
        stranger = replace(Owner.current(), owner="x", pid="999999999", **{field: "elsewhere"})
        assert stranger.liveness() == "unknown"

    @pytest.mark.parametrize("field", ["boot", "namespace", "pid", "started"])
    def test_an_owner_with_a_gap_cannot_be_judged(self, field):
        assert replace(Owner.current(), owner="x", **{field: ""}).liveness() == "unknown"

    def test_a_container_without_our_labels_cannot_be_judged(self):
        assert Owner.from_labels({}).liveness() == "unknown"

    def test_a_forked_child_is_another_owner(self):
        here = Owner.current()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, Owner.current().owner.encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writer)
        assert os.read(reader, 1000).decode() != here.owner
        os.close(reader)


class TestOrphan:
    @pytest.mark.parametrize("state", ["created", "running", "paused", "exited", "dead", "removing"])
    def test_the_livings_are_left_alone_whatever_their_state_and_age(self, state):
        assert not is_orphan(container(state, age=10**9), "alive", NOW)

    @pytest.mark.parametrize("state", ["created", "running", "paused", "exited", "dead"])
    def test_the_deads_go(self, state):
        assert is_orphan(container(state), "dead", NOW)

    def test_what_goes_already_is_let_go(self):
        assert not is_orphan(container("removing"), "dead", NOW)

    def test_a_removal_that_is_stuck_is_tried_again(self):
        assert is_orphan(container("removing", age=STUCK_AGE + 1), "dead", NOW)
        assert not is_orphan(container("removing", age=STUCK_AGE + 1), "alive", NOW)

    @pytest.mark.parametrize("state", ["created", "exited", "dead"])
    def test_the_unjudgeables_go_when_they_are_old(self, state):
        assert not is_orphan(container(state, age=UNJUDGEABLE_AGE - 1), "unknown", NOW)
        assert is_orphan(container(state, age=UNJUDGEABLE_AGE + 1), "unknown", NOW)

    @pytest.mark.parametrize("state", ["running", "paused"])
    def test_an_unjudgeables_running_one_is_its_dead_mans_switchs_affair(self, state):
        assert not is_orphan(container(state, age=10**9), "unknown", NOW)


class FakeEngine:
    """Just what a sweep asks of an engine."""

    def __init__(self, *containers: ContainerInfo, stuck: Iterable[str] = ()) -> None:
        self.all = {each.name: each for each in containers}
        self.stuck = set(stuck)

    async def containers(self):
        return list(self.all.values())

    async def remove(self, name, *, deadline=30.0):
        if name in self.stuck:
            raise SandboxError(f"The container {name} is stuck.")
        del self.all[name]


class TestSweep:
    async def test_it_takes_the_deads_and_nothing_else(self, other):
        _, owner = other
        gone = replace(Owner.current(), owner="x", pid="999999999")
        engine = FakeEngine(
            container(name="mine"), container(name="theirs", owner=owner), container(name="orphan", owner=gone)
        )
        swept = await sweep(cast(Engine, engine))
        assert swept.removed == ("orphan",)
        assert set(engine.all) == {"mine", "theirs"}

    async def test_one_that_cannot_be_removed_does_not_save_the_others(self):
        gone = replace(Owner.current(), owner="x", pid="999999999")
        engine = FakeEngine(container(name="a", owner=gone), container(name="b", owner=gone), stuck={"a"})
        swept = await sweep(cast(Engine, engine))
        assert swept.removed == ("b",)
        assert swept.failed == ("The container a is stuck.",)


IMAGE = "shell-agent-sandbox/minimal:latest"

_HOLDER = """
import sys, time, anyio
from sandbox.docker import DockerEngine
from sandbox.plan import plan_container
from sandbox.spec import SandboxSpec

async def main():
    async with DockerEngine(sweeping=False) as engine:
        image = await engine.image(sys.argv[1])
        running = plan_container(SandboxSpec(image=sys.argv[1]), image, engine.info)
        attachment = await engine.launch(running)
        created = plan_container(SandboxSpec(image=sys.argv[1]), image, engine.info)
        api = engine._opened.connection.api
        api.create(created.name, {"Image": image.id, "Entrypoint": ["/x"], "Labels": dict(created.labels)})
        print(running.name, created.name, flush=True)
        await anyio.sleep(60)
        await attachment.stream.aclose()

anyio.run(main)
"""


@pytest.fixture
def holder():
    """A second process with a running and a created container: itself, and their names."""
    process = subprocess.Popen([sys.executable, "-c", _HOLDER, IMAGE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        running, created = process.stdout.readline().split()
    yield process, running, created
    process.kill()
    process.wait()


@pytest.mark.engine
async def test_a_second_living_processs_containers_stay_and_go_after_its_death(holder):
    process, running, created = holder
    async with DockerEngine() as engine:
        await sweep(engine)
        states = {each.name: each.state for each in await engine.containers()}
        assert (states[running], states[created]) == ("running", "created")
        process.kill()
        process.wait()
        await sweep(engine)
        assert not {running, created} & {each.name for each in await engine.containers()}
