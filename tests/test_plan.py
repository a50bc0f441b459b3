"""What a plan fixes, and what it refuses before anything exists."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ByteSize

from sandbox.engine import EngineInfo, ImageInfo
from sandbox.errors import ImageUnavailable, SandboxError, SandboxStartError
from sandbox.owner import Owner
from sandbox.plan import CAPABILITY_NUMBERS, NAME_PREFIX, capability_mask, guest_arguments, plan_container
from sandbox.spec import LABEL_PREFIX, Limits, Mount, SandboxSpec

INFO = EngineInfo(
    address="unix:///var/run/docker.sock",
    name="Docker Engine",
    version="20.10.24",
    api_version="1.41",
    architecture="x86_64",
    storage_driver="overlay2",
    runtimes=("runc", "runsc"),
    cpus=2,
)
IMAGE = ImageInfo(id="sha256:" + "1" * 64, architecture="amd64")
SPEC = SandboxSpec(image="debian:bookworm-slim")


def plan(spec=SPEC, image=IMAGE, info=INFO):
    return plan_container(spec, image, info)


def with_limits(**limits):
    return SandboxSpec(image="i", limits=Limits(**limits))


def test_every_plan_has_a_name_of_its_own():
    names = {plan().name for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith(NAME_PREFIX) for name in names)


def test_labels_name_the_owner_and_keep_the_users_own():
    labels = plan(SandboxSpec(image="i", labels={"task": "7"})).labels
    assert Owner.from_labels(labels) == Owner.current()
    assert labels["task"] == "7"
    assert labels[f"{LABEL_PREFIX}role"] == "sandbox"
    assert labels[f"{LABEL_PREFIX}image"] == "i"


def test_a_user_cannot_forge_our_labels():
    with pytest.raises(ValueError, match="is ours"):
        SandboxSpec(image="i", labels={f"{LABEL_PREFIX}owner": "x"})


def test_the_guests_arguments_say_what_the_spec_says():
    spec = SandboxSpec(
        image="i",
        lease=30.5,
        lifetime=3600,
        capabilities=["CAP_CHOWN", "dac_override"],
        limits=Limits(open_files=1024, file_size=ByteSize(1000), cpu_time=9),
        disk_reserve=ByteSize(5000),
    )
    assert set(guest_arguments(spec)) == {
        "--lease-ms=30500",
        "--lifetime-ms=3600000",
        "--caps=3",
        "--nofile=1024",
        "--fsize=1000",
        "--cpu=9",
        "--disk-reserve=5000",
    }


def test_the_default_spec_keeps_no_capability_and_sets_no_optional_limit():
    assert set(guest_arguments(SPEC)) == {
        "--lease-ms=120000",
        "--caps=0",
        "--nofile=4096",
        "--disk-reserve=268435456",
    }


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(SandboxSpec(image="i", read_only=True), id="the root takes no bytes"),
        pytest.param(with_limits(disk=ByteSize(10**9)), id="a quota is there"),
        pytest.param(SandboxSpec(image="i", disk_reserve=ByteSize(0)), id="switched off"),
    ],
)
def test_no_reserve_is_guarded_where_it_would_only_hinder(spec):
    assert not any(argument.startswith("--disk-reserve") for argument in guest_arguments(spec))


@pytest.mark.parametrize("volume", ["/data", "/data/"])
def test_an_images_volume_is_no_way_around_a_disks_bounds(volume):
    """It is a directory of the host, on a read-only root too, and no quota of the root's holds for it."""
    image, quotas = replace(IMAGE, volumes=(volume,)), replace(INFO, disk_quota=True)
    assert "--disk-reserve=268435456" in plan(SandboxSpec(image="i", read_only=True), image).guest_args
    with pytest.raises(SandboxStartError, match=r"declares volumes \(/data/?\).*leave limits\.disk out"):
        plan(with_limits(disk=ByteSize(10**9)), image, quotas)
    limits = Limits(disk=ByteSize(10**9))
    plan(SandboxSpec(image="i", limits=limits, tmpfs={"/data": ByteSize(2**20)}), image, quotas)


def test_capability_numbers_are_the_kernels():
    known = {"CHOWN": 0, "KILL": 5, "SETGID": 6, "SETUID": 7, "NET_RAW": 13, "SYS_PTRACE": 19, "SYS_ADMIN": 21}
    assert {name: CAPABILITY_NUMBERS[name] for name in known} == known
    assert CAPABILITY_NUMBERS["CHECKPOINT_RESTORE"] == 40
    assert capability_mask(frozenset({"KILL", "MKNOD"})) == 1 << 5 | 1 << 27


@pytest.mark.parametrize(
    "spec, image, info, family, says",
    [
        pytest.param(
            SPEC, replace(IMAGE, architecture="arm64"), INFO, ImageUnavailable, "built for aarch64", id="architecture"
        ),
        pytest.param(SPEC, IMAGE, replace(INFO, architecture="riscv64"), SandboxStartError, "riscv64", id="no guest"),
        pytest.param(
            SandboxSpec(image="i", runtime="kata"), IMAGE, INFO, SandboxStartError, "it has runc, runsc", id="runtime"
        ),
        pytest.param(with_limits(cpus=3), IMAGE, INFO, SandboxStartError, "0.01 to 2", id="cpus"),
        pytest.param(
            with_limits(disk=ByteSize(10**9)), IMAGE, INFO, SandboxStartError, "storage driver 'overlay2'", id="disk"
        ),
        pytest.param(SPEC, IMAGE, replace(INFO, memory_limit=False), SandboxStartError, "memory", id="no memory limit"),
        pytest.param(SPEC, IMAGE, replace(INFO, pids_limit=False), SandboxStartError, "pids", id="no pids limit"),
        pytest.param(
            SPEC,
            IMAGE,
            replace(INFO, cpu_limit=False, pids_limit=False, rootless=True),
            SandboxStartError,
            "pids, cpus, which every sandbox needs; delegate",
            id="rootless without delegation",
        ),
        pytest.param(
            SandboxSpec(image="i", capabilities=frozenset({"FLY"})),
            IMAGE,
            INFO,
            SandboxStartError,
            "No kernel has a capability FLY",
            id="unknown capability",
        ),
        *(
            pytest.param(
                SandboxSpec(image="i", tmpfs={path: ByteSize(4096)}), IMAGE, INFO, SandboxStartError, "hide", id=path
            )
            for path in ("/", "/proc", "/proc/1", "/sys", "/dev/x", "/.shell-agent-sandbox", "/.shell-agent-sandbox/a")
        ),
        pytest.param(
            SandboxSpec(image="i", tmpfs={"/data": ByteSize(4096)}, mounts=(Mount(volume="wheels", target="/data/"),)),
            IMAGE,
            INFO,
            SandboxStartError,
            "Two of the mounts",
            id="two at one place",
        ),
    ],
)
def test_what_the_engine_cannot_do_is_refused_in_one_sentence(spec, image, info, family, says):
    with pytest.raises(SandboxError) as caught:
        plan(spec, image, info)
    assert type(caught.value) is family
    message = str(caught.value)
    assert says in message
    assert message.endswith(".") and "\n" not in message


def test_a_disk_limit_passes_where_quotas_are():
    assert plan(with_limits(disk=ByteSize(10**9)), info=replace(INFO, disk_quota=True))


@pytest.mark.parametrize(
    "image, engine",
    [("amd64", "x86_64"), ("386", "x86_64"), ("arm64", "aarch64"), ("amd64", "amd64"), ("", "x86_64")],
)
def test_an_image_that_the_engine_can_run_passes(image, engine):
    assert plan(image=replace(IMAGE, architecture=image), info=replace(INFO, architecture=engine))
