"""The Docker engine against a real one: what it starts, what it refuses, and that nothing is ever left."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import anyio
import anyio.to_thread
import docker
import pytest
from pydantic import ByteSize

from sandbox import Sandbox
from sandbox.docker import DockerEngine
from sandbox.errors import EngineUnavailable, ImageUnavailable, SandboxLost, SandboxStartError
from sandbox.guest import guest_binary
from sandbox.owner import Owner
from sandbox.plan import NAME_PREFIX, plan_container
from sandbox.spec import MIB, Limits, Mount, Network, SandboxSpec
from sandbox.sweep import sweep

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

IMAGE = "shell-agent-sandbox/minimal:latest"
HELLO = b"SBX1"


@pytest.fixture
async def engine():
    async with DockerEngine(sweeping=False) as opened:
        yield opened


@pytest.fixture
def sdk(address):
    client = docker.APIClient(address, version="auto")
    yield client
    client.close()


@pytest.fixture
async def address(engine):
    return engine.info.address


@pytest.fixture
def odd_guest(tmp_path, sdk):
    """A guest of a hash that no engine knows, so that its volume is made in this test, and gone after it."""
    path = tmp_path / "guest"
    path.write_bytes(guest_binary(os.uname().machine).read_bytes() + uuid4().bytes)
    yield path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for name in volumes(sdk):
        if digest[:16] in name:
            sdk.remove_volume(name)


def volumes(sdk):
    return [volume["Name"] for volume in sdk.volumes()["Volumes"] or ()]


def networks(sdk):
    return [network for network in sdk.networks() if network["Name"].startswith(NAME_PREFIX)]


def dead_owner():
    return replace(Owner.current(), owner="x", pid="999999999")


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def of_name(sdk, name):
    return sdk.containers(all=True, filters={"name": name})


async def planned(engine, **spec):
    image = await engine.image(spec.setdefault("image", IMAGE))
    return plan_container(SandboxSpec(**spec), image, engine.info)


async def mine(engine):
    here = Owner.current()
    return [each for each in await engine.containers() if Owner.from_labels(each.labels) == here]


async def read_to_the_end(stream):
    with anyio.fail_after(20):
        while True:
            await stream.receive()


async def assert_gone(sdk, name, within=10.0):
    deadline = time.monotonic() + within
    while of_name(sdk, name):
        assert time.monotonic() < deadline, f"{name} is still there"
        await anyio.sleep(0.02)


class TestLaunch:
    async def test_the_guest_says_hello_and_its_container_is_ours(self, engine, sdk):
        plan = await planned(engine, labels={"task": "7"})
        attachment = await engine.launch(plan)
        async with attachment.stream:
            assert HELLO in await attachment.stream.receive()
            listed = {each.name: each for each in await engine.containers()}[plan.name]
            assert (listed.id, listed.state, listed.image) == (attachment.container_id, "running", IMAGE)
            assert listed.labels["task"] == "7"
            assert abs(listed.created - time.time()) < 60
            assert sdk.inspect_container(plan.name)["HostConfig"]["Memory"] == 512 * MIB
        await engine.remove(plan.name)
        assert not of_name(sdk, plan.name)

    async def test_closing_the_stream_ends_the_container(self, engine, sdk):
        plan = await planned(engine)
        attachment = await engine.launch(plan)
        await attachment.stream.aclose()
        await assert_gone(sdk, plan.name)
        assert (await engine.cause_of_death(attachment.container_id)).cause == "the link to its controller was closed"

    async def test_many_at_once_use_few_threads_and_leak_no_descriptor(self, engine, sdk):
        async def one():
            plan = await planned(engine)
            attachment = await engine.launch(plan)
            await attachment.stream.receive()
            most.append(threading.active_count())
            await attachment.stream.aclose()
            await engine.remove(plan.name)

        most: list[int] = []
        await one()
        before = descriptors()
        async with anyio.create_task_group() as tasks:
            for _ in range(12):
                tasks.start_soon(one)
        assert max(most) < 30
        # Pooled connections stay open, at most one a thread.
        assert descriptors() - before <= 2 * engine.info.cpus + 8 + 4

    async def test_the_users_proxies_and_environment_stay_out(self, engine, sdk, tmp_path, monkeypatch):
        (tmp_path / "config.json").write_text(json.dumps({"proxies": {"default": {"httpProxy": "http://secret"}}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        monkeypatch.setenv("HTTP_PROXY", "http://secret")
        async with DockerEngine(engine.info.address, sweeping=False) as other:
            plan = await planned(other, env={"SPEC": "secret"})
            attachment = await other.launch(plan)
            inspected = sdk.inspect_container(plan.name)
            await attachment.stream.aclose()
            await other.remove(plan.name)
        assert "secret" not in json.dumps(inspected)

    async def test_a_read_only_root_has_a_tmp_and_knows_localhost(self, engine):
        async with Sandbox.open(engine, SandboxSpec(image=IMAGE, read_only=True)) as box:
            result = await box.run("echo a > /tmp/a && cat /tmp/a && ! touch /etc/b && grep -c localhost /etc/hosts")
            assert result.stdout.text.split()[0] == "a"
            assert result.ok

    async def test_anonymous_volumes_of_the_image_go_with_the_container(self, engine, sdk):
        before = set(volumes(sdk))
        made = sdk.create_container(IMAGE, volumes=["/v"])
        tag = f"sandbox-test-{uuid4().hex}"
        sdk.commit(made["Id"], tag)
        sdk.remove_container(made["Id"], v=True)
        try:
            async with Sandbox.open(engine, SandboxSpec(image=tag)):
                assert len(set(volumes(sdk)) - before - {engine.guest_volume}) == 1
        finally:
            sdk.remove_image(tag)
        assert set(volumes(sdk)) - before <= {engine.guest_volume}

    async def test_a_named_volume_is_read_only_in_the_sandbox(self, engine, sdk):
        name = f"sandbox-test-{uuid4().hex}"
        sdk.create_volume(name)
        try:
            spec = SandboxSpec(image=IMAGE, user="0:0", mounts=(Mount(volume=name, target="/data"),))
            async with Sandbox.open(engine, spec) as box:
                assert (await box.run("touch /data/x")).exit_code != 0
            assert name in volumes(sdk)
        finally:
            sdk.remove_volume(name)


class TestRefusals:
    async def test_a_missing_volume_is_told_and_not_made(self, engine, sdk):
        name = f"sandbox-test-{uuid4().hex}"
        plan = await planned(engine, mounts=(Mount(volume=name, target="/data"),))
        with pytest.raises(SandboxStartError, match="no volume"):
            await engine.launch(plan)
        assert name not in volumes(sdk)
        assert not of_name(sdk, plan.name)

    async def test_a_guest_that_does_not_run_is_told_and_nothing_is_left(self, engine, sdk, odd_guest):
        odd_guest.write_bytes(b"no program " + uuid4().bytes)
        async with DockerEngine(engine.info.address, guest=odd_guest, sweeping=False) as other:
            with pytest.raises(SandboxStartError, match="format error"):
                await Sandbox.open(other, SandboxSpec(image=IMAGE)).__aenter__()
            assert not await mine(other)

    async def test_an_image_that_went_away_is_told(self, engine, sdk):
        tag = f"sandbox-test-{uuid4().hex}"
        made = sdk.create_container(IMAGE, labels={"once": tag})
        sdk.commit(made["Id"], tag)
        sdk.remove_container(made["Id"], v=True)
        plan = await planned(engine, image=tag)
        sdk.remove_image(tag)
        with pytest.raises(ImageUnavailable, match="no longer"):
            await engine.launch(plan)
        assert not of_name(sdk, plan.name)

    async def test_an_unknown_id_is_not_looked_for_in_a_registry(self, engine):
        with pytest.raises(ImageUnavailable, match="no image with the id"):
            await engine.image("sha256:" + "0" * 64)

    async def test_a_bad_reference_is_told(self, engine):
        with pytest.raises(ImageUnavailable, match="check its name"):
            await engine.image("UPPER::case")

    async def test_an_engine_that_is_not_open(self):
        with pytest.raises(EngineUnavailable, match="async with"):
            _ = DockerEngine().info

    @pytest.mark.parametrize("place", ["unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1"])
    async def test_no_engine(self, place):
        with pytest.raises(EngineUnavailable, match="No container engine answers"):
            async with DockerEngine(place):
                pass

    async def test_the_least_that_a_spec_can_ask_for_starts(self, engine):
        limits = Limits(memory=ByteSize(16 * MIB), pids=16)
        async with Sandbox.open(engine, SandboxSpec(image=IMAGE, limits=limits)) as box:
            assert (await box.run("echo $((6 * 7))")).stdout.text == "42\n"


class TestRemoval:
    async def test_none_of_that_name_is_no_error(self, engine):
        await engine.remove(NAME_PREFIX + "never")

    async def test_at_once_with_its_own_removal_and_twice(self, engine, sdk):
        for _ in range(5):
            plan = await planned(engine)
            attachment = await engine.launch(plan)
            await attachment.stream.aclose()
            await anyio.sleep(random.uniform(0, 0.1))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.remove, plan.name)
                tasks.start_soon(engine.remove, plan.name)
            assert not of_name(sdk, plan.name)

    async def test_a_cancelled_launch_leaves_nothing_after_its_removal(self, engine, sdk):
        for delay in (0, 0.005, 0.02, 0.05, 0.1, 0.15):
            plan = await planned(engine)
            with anyio.move_on_after(delay) as scope:
                attachment = await engine.launch(plan)
                await attachment.stream.aclose()
            await engine.remove(plan.name)
            assert not of_name(sdk, plan.name), (delay, scope.cancelled_caught)

    async def test_a_cancelled_launch_ends_itself_though_nobody_removes_it(self, engine, sdk):
        plan = await planned(engine)
        with anyio.move_on_after(0.03):
            attachment = await engine.launch(plan)
            await attachment.stream.aclose()
        await anyio.sleep(0.3)
        await assert_gone(sdk, plan.name)

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_native_cancels_of_launch_and_removal_leave_nothing(self, engine, sdk, anyio_backend):
        for delay in (0, 0.01, 0.04, 0.08, 0.12):
            plan = await planned(engine)
            launch = asyncio.create_task(engine.launch(plan))
            await asyncio.sleep(delay)
            launch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await launch
            removal = asyncio.create_task(engine.remove(plan.name))
            await asyncio.sleep(0.001)
            removal.cancel()
            with pytest.raises(asyncio.CancelledError):
                await removal
            assert not of_name(sdk, plan.name), delay

    async def test_closing_the_engine_waits_for_what_was_begun(self, engine, sdk):
        async with DockerEngine(engine.info.address, sweeping=False) as other:
            plan = await planned(other)
            with anyio.move_on_after(0.02):
                attachment = await other.launch(plan)
                await attachment.stream.aclose()
        await assert_gone(sdk, plan.name, within=2.0)


class Forwarder:
    """A plain TCP address for the engine's unix socket, which can be cut."""

    def __init__(self, path):
        self.path = path
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.sockets = []
        self.refusing = False
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if self.refusing:
                    near.close()
                    continue
                far = socket.socket(socket.AF_UNIX)
                far.connect(self.path)
                self.sockets += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self.copy, args=(source, target), daemon=True).start()

    @staticmethod
    def copy(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self):
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.cut()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        for each in (self.listener, *self.sockets):
            each.close()


@pytest.fixture
def forwarder(address):
    if not address.startswith("unix://"):
        pytest.skip("the engine has no unix socket")
    made = Forwarder(address.removeprefix("unix://"))
    yield made
    made.close()


class TestPlainTcp:
    async def test_a_sandbox_works_and_goes(self, forwarder, sdk):
        async with DockerEngine(forwarder.address, sweeping=False) as remote:
            async with Sandbox.open(remote, SandboxSpec(image=IMAGE)) as box:
                assert (await box.run("cat", stdin=b"x" * 100_000)).stdout.total_bytes == 100_000
                name = box.info.name
            assert not of_name(sdk, name)

    async def test_a_cut_link_is_told_and_ends_the_sandbox(self, forwarder, sdk):
        async with DockerEngine(forwarder.address, sweeping=False) as remote:
            async with Sandbox.open(remote, SandboxSpec(image=IMAGE)) as box:
                forwarder.cut()
                with pytest.raises(SandboxLost):
                    await box.run("sleep 5")
                await assert_gone(sdk, box.info.name)

    async def test_what_could_not_be_removed_is_removed_when_the_engine_answers_again(self, forwarder, sdk):
        async with DockerEngine(forwarder.address, sweeping=False) as remote:
            plan = await planned(remote)
            sdk.create_container_from_config({"Image": IMAGE, "Labels": dict(plan.labels)}, plan.name)
            forwarder.refusing = True
            forwarder.cut()
            with pytest.raises(EngineUnavailable):
                await remote.remove(plan.name)
            assert of_name(sdk, plan.name)
            forwarder.refusing = False
            await remote.remove(NAME_PREFIX + "another")
            assert not of_name(sdk, plan.name)


class TestDeath:
    async def test_killed_from_outside(self, engine, sdk):
        plan = await planned(engine)
        attachment = await engine.launch(plan)
        sdk.kill(attachment.container_id)
        with pytest.raises(anyio.EndOfStream):
            await read_to_the_end(attachment.stream)
        assert (await engine.cause_of_death(attachment.container_id)).cause == "it was killed from outside (SIGKILL)"
        await attachment.stream.aclose()

    @pytest.mark.parametrize("limit", ["lease", "lifetime"])
    async def test_its_time_ran_out(self, engine, limit):
        plan = await planned(engine, **{limit: 1.0})
        attachment = await engine.launch(plan)
        with pytest.raises(anyio.EndOfStream):
            await read_to_the_end(attachment.stream)
        assert limit in (await engine.cause_of_death(attachment.container_id)).cause
        await attachment.stream.aclose()

    async def test_a_container_that_never_was(self, engine):
        assert (await engine.cause_of_death("f" * 64)).cause == ""


class TestGuestVolume:
    async def test_it_is_seeded_once_however_many_start_at_once(self, engine, sdk, odd_guest):
        async def one():
            async with DockerEngine(engine.info.address, guest=odd_guest, sweeping=False) as other:
                async with Sandbox.open(other, SandboxSpec(image=IMAGE)) as box:
                    assert (await box.run("true")).ok

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(one)
        assert not of_name(sdk, f"{NAME_PREFIX}(seed|check)")

    async def test_a_pruned_volume_is_seeded_again(self, engine, sdk, odd_guest):
        async with DockerEngine(engine.info.address, guest=odd_guest, sweeping=False) as other:
            for _ in range(2):
                async with Sandbox.open(other, SandboxSpec(image=IMAGE)) as box:
                    assert (await box.run("true")).ok
                sdk.remove_volume(other.guest_volume)
            assert not await other.guest_is_present()

    async def test_a_volume_with_something_else_in_it_is_seeded_again(self, engine, sdk, odd_guest):
        async with DockerEngine(engine.info.address, guest=odd_guest, sweeping=False) as other:
            sdk.create_volume(other.guest_volume)
            async with Sandbox.open(other, SandboxSpec(image=IMAGE)) as box:
                assert (await box.run("true")).ok

    async def test_a_dead_seeders_container_hinders_nobody(self, engine, sdk, odd_guest):
        async with DockerEngine(engine.info.address, guest=odd_guest, sweeping=False) as other:
            name = other.guest_volume.replace("-guest-", "-seed-")
            sdk.create_container_from_config({"Image": IMAGE, "Labels": dead_owner().labels()}, name)
            async with Sandbox.open(other, SandboxSpec(image=IMAGE)) as box:
                assert (await box.run("true")).ok
            assert not of_name(sdk, name)


class TestOpenNetwork:
    async def test_it_is_there_while_it_is_used_and_lets_no_container_reach_another(self, engine, sdk):
        async with DockerEngine(engine.info.address, sweeping=False) as other:
            spec = SandboxSpec(image=IMAGE, network=Network.OPEN)
            async with Sandbox.open(other, spec) as one, Sandbox.open(other, spec) as two:
                (network,) = networks(sdk)
                assert network["Options"]["com.docker.network.bridge.enable_icc"] == "false"
                assert not await other.remove_unused()
                address = (await one.run("hostname -i")).stdout.text.strip()
                assert (await one.run(f"ping -c 1 -w 1 {address}")).status in ("exited", "timed_out")
                assert not (await two.run(f"nc -w 1 {address} 9 < /dev/null", timeout=5)).ok
        assert not networks(sdk)

    async def test_engines_that_make_it_at_once_agree_on_one(self, engine, sdk):
        async def one():
            async with DockerEngine(engine.info.address, sweeping=False) as other:
                async with Sandbox.open(other, SandboxSpec(image=IMAGE, network=Network.OPEN)):
                    seen.append(1)
                    if len(seen) == 3:
                        all_there.set()
                    await all_there.wait()
                    assert len(networks(sdk)) == 1

        seen: list[int] = []
        all_there = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(one)
        assert not networks(sdk)

    async def test_one_that_was_removed_meanwhile_is_made_again(self, engine, sdk):
        async with DockerEngine(engine.info.address, sweeping=False) as other:
            spec = SandboxSpec(image=IMAGE, network=Network.OPEN)
            for _ in range(2):
                async with Sandbox.open(other, spec) as box:
                    assert (await box.run("true")).ok
                for network in networks(sdk):
                    sdk.remove_network(network["Id"])


async def test_a_container_with_our_labels_and_another_name_is_not_ours(engine, sdk):
    plan = await planned(engine)
    made = sdk.create_container_from_config({"Image": IMAGE, "Labels": dict(plan.labels)}, f"foreign-{uuid4().hex}")
    try:
        assert made["Id"] not in {each.id for each in await engine.containers()}
    finally:
        sdk.remove_container(made["Id"], v=True)


async def test_opening_an_engine_sweeps(engine, sdk):
    plan = await planned(engine)
    labels = {**plan.labels, **dead_owner().labels()}
    sdk.create_container_from_config({"Image": IMAGE, "Labels": labels}, plan.name)
    async with DockerEngine(engine.info.address):
        assert not of_name(sdk, plan.name)


async def test_a_forked_child_does_not_keep_a_sandbox_alive(engine, sdk):
    plan = await planned(engine)
    attachment = await engine.launch(plan)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(writer)
            os.read(reader, 1)
        finally:
            os._exit(0)
    os.close(reader)
    try:
        await attachment.stream.aclose()
        await assert_gone(sdk, plan.name, within=5.0)
    finally:
        os.close(writer)
        await anyio.to_thread.run_sync(os.waitpid, child, 0)
        await engine.remove(plan.name)


_VICTIM = """
import sys, anyio
from sandbox.docker import DockerEngine
from sandbox.plan import plan_container
from sandbox.spec import SandboxSpec

async def main():
    async with DockerEngine(sys.argv[1], sweeping=False) as engine:
        image = await engine.image(sys.argv[2])
        plan = plan_container(SandboxSpec(image=sys.argv[2], labels={"victim": sys.argv[3]}), image, engine.info)
        print("going", flush=True)
        attachment = await engine.launch(plan)
        await anyio.sleep(60)
        await attachment.stream.aclose()

anyio.run(main)
"""


def kill_after(delay, address, token):
    """A controlling process, killed ``delay`` seconds after it began its start."""
    command = [sys.executable, "-c", _VICTIM, address, IMAGE, token]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "going\n"
        time.sleep(delay)
        victim.send_signal(signal.SIGKILL)


@pytest.mark.slow
async def test_sigkill_of_the_controller_at_any_instant_leaves_nothing(engine, sdk):
    for turn in range(int(os.environ.get("SANDBOX_KILLS", "10"))):
        token = uuid4().hex
        delay = random.uniform(0, 0.25)
        await anyio.to_thread.run_sync(kill_after, delay, engine.info.address, token)
        deadline = time.monotonic() + 2.0
        filters = {"label": f"victim={token}", "status": "running"}
        # What was on its way to the engine may still arrive.
        await anyio.sleep(0.4)
        while sdk.containers(filters=filters):
            assert time.monotonic() < deadline, (turn, delay)
            await anyio.sleep(0.02)
        await sweep(engine)
        assert not sdk.containers(all=True, filters={"label": f"victim={token}"}), (turn, delay)
