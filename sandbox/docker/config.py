"""A plan as the engine's create call wants it: a pure translation, with the reason of each unusual field beside it."""

from __future__ import annotations

from typing import Any

from sandbox.engine import ContainerPlan
from sandbox.plan import GUEST_DIR, files_in_memory, shared_labels
from sandbox.spec import Network, SandboxSpec

GUEST_PATH = f"{GUEST_DIR}/guest"

GUEST_CAPABILITIES = frozenset({"SETUID", "SETGID", "KILL"})
"""To run calls as another user and to end them; a call keeps only what the spec names."""

GUEST_OPEN_FILES = 4096
"""The least for PID 1, which holds the descriptors of every call; a call's own bound is an argument of the guest."""


def create_config(plan: ContainerPlan, guest_volume: str, network: str | None) -> dict[str, Any]:
    """The body of the create call. ``network`` is the id of the open network, where the spec asks for it."""
    return {
        "Image": plan.image.id,
        "Entrypoint": [GUEST_PATH, *plan.guest_args],
        "Cmd": [],
        "User": "0:0",
        "WorkingDir": "/",
        "Labels": dict(plan.labels),
        # The guest's frames run over one attach; StdinOnce turns the controller's death into the guest's end of file.
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        # An image's health check would run outside the guest, and its stop signal may be one that the guest ignores.
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "NetworkDisabled": not _needs_network_files(plan.spec),
        "HostConfig": _host_config(plan, guest_volume, network),
    }


def _needs_network_files(spec: SandboxSpec) -> bool:
    """Whether the engine must set up a network with its files (/etc/hosts, /etc/resolv.conf).

    Without them a start takes half the time, and the guest names ``localhost`` itself; on a read-only root it can't.
    """
    return spec.network is Network.OPEN or spec.read_only


def _host_config(plan: ContainerPlan, guest_volume: str, network: str | None) -> dict[str, Any]:
    spec = plan.spec
    limits = spec.limits
    config: dict[str, Any] = {
        "AutoRemove": True,
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Type": "none", "Config": {}},
        # The guest must be PID 1 itself, whatever the engine's default is.
        "Init": False,
        # Podman reads only this, and takes an empty one for a bridge.
        "NetworkMode": network or "none",
        "PublishAllPorts": False,
        "IpcMode": "private",
        "Privileged": False,
        "CapDrop": ["ALL"],
        "CapAdd": sorted(GUEST_CAPABILITIES | spec.capability_names),
        # seccomp and AppArmor stay the engine's own.
        "SecurityOpt": ["no-new-privileges"],
        "PidsLimit": limits.pids,
        "Memory": int(limits.memory),
        "MemorySwap": int(limits.memory),  # the sum of both: no swap
        "NanoCpus": round(limits.cpus * 1e9),
        "Ulimits": [_ulimit("nofile", max(limits.open_files, GUEST_OPEN_FILES)), _ulimit("core", 0)],
        "ShmSize": files_in_memory(spec)["/dev/shm"],
        "ReadonlyRootfs": spec.read_only,
        "Tmpfs": _tmpfs(spec),
        "Mounts": [guest_mount(guest_volume), *(_volume(mount.volume, mount.target) for mount in spec.mounts)],
    }
    if limits.disk is not None:
        config["StorageOpt"] = {"size": str(int(limits.disk))}
    if spec.runtime is not None:
        config["Runtime"] = spec.runtime
    return config


def _tmpfs(spec: SandboxSpec) -> dict[str, str]:
    sizes = files_in_memory(spec)
    del sizes["/dev/shm"]
    return {path: f"rw,exec,nosuid,nodev,mode=1777,size={size}" for path, size in sizes.items()}


def guest_mount(volume: str, *, read_only: bool = True) -> dict[str, Any]:
    """The guest's volume at the guest's place; writable only for the container that seeds it."""
    mount = _volume(volume, GUEST_DIR)
    mount["ReadOnly"] = read_only
    # A pruned volume is created anew by this very mount, empty; it must carry our labels then too.
    mount["VolumeOptions"]["Labels"] = shared_labels("guest")
    return mount


def _volume(volume: str, target: str) -> dict[str, Any]:
    # NoCopy: nothing of the image may get into the volume.
    return {
        "Type": "volume",
        "Source": volume,
        "Target": target,
        "ReadOnly": True,
        "VolumeOptions": {"NoCopy": True},
    }


def _ulimit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}
