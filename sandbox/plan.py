"""From a spec to a container that is to be, in plain code: no I/O, so every refusal can be tested without an engine.

The name and the labels are fixed here, before anything exists: a caller who is interrupted at any later instant can
still find and remove what came to be.
"""

from __future__ import annotations

import posixpath
from uuid import uuid4

from sandbox.engine import ContainerPlan, EngineInfo, ImageInfo
from sandbox.errors import ImageUnavailable, SandboxStartError
from sandbox.owner import Owner
from sandbox.spec import LABEL_PREFIX, MIB, MIN_MEMORY, SandboxSpec

NAME_PREFIX = "shell-agent-sandbox-"
ROLE = f"{LABEL_PREFIX}role"
VERSION = f"{LABEL_PREFIX}version"
IMAGE = f"{LABEL_PREFIX}image"

LABEL_VERSION = "1"
"""Of the labels' own meaning, so that a later sweep can tell what it reads."""

GUEST_DIR = "/.shell-agent-sandbox"
"""Where the guest's volume is mounted: a path that no image has."""

FILES_IN_MEMORY = 64 * MIB
"""The size of /dev/shm, and of /tmp on a read-only root, where the spec names none and there is memory enough."""

ROOM = 8 * MIB
"""The memory that files may not take: no process holds theirs, so once it fills the limit the kernel's only choice is
the guest."""

_CAPABILITY_ORDER = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""

CAPABILITY_NUMBERS = {name: number for number, name in enumerate(_CAPABILITY_ORDER.split())}
"""The kernel's numbers, from capabilities(7): they are ABI, so the list only grows."""

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64", "386": "i686", "x64": "x86_64"}
_GUEST_ARCHITECTURES = frozenset({"x86_64", "aarch64"})
_RUNS_ON = {"x86_64": frozenset({"x86_64", "i686"}), "aarch64": frozenset({"aarch64"})}

_KERNEL_PATHS = ("/proc", "/sys", "/dev", GUEST_DIR)


def uname_architecture(name: str) -> str:
    """An architecture as ``uname -m`` says it, from either way to say it: ``amd64`` is ``x86_64``."""
    return _ARCHITECTURES.get(name, name)


def shared_labels(role: str) -> dict[str, str]:
    """The labels of what many sandboxes share and no process owns: a network, the guest's volume."""
    return {ROLE: role, VERSION: LABEL_VERSION}


def plan_container(spec: SandboxSpec, image: ImageInfo, info: EngineInfo) -> ContainerPlan:
    """Fix everything about one container, or refuse in one sentence what this engine can't do."""
    _check_image(spec, image, info)
    _check_limits(spec, info)
    _check_places(spec)
    volumes = unbounded_volumes(spec, image)
    if volumes and spec.limits.disk is not None:
        raise SandboxStartError(
            f"The image {spec.image!r} declares volumes ({', '.join(volumes)}), and no quota bounds them; build it "
            "without VOLUME, give the spec a tmpfs there, or leave limits.disk out (disk_reserve guards the host)."
        )
    if spec.runtime is not None and spec.runtime not in info.runtimes:
        known = ", ".join(info.runtimes) or "none"
        raise SandboxStartError(
            f"The engine knows no runtime {spec.runtime!r}, it has {known}; install it on the engine or leave it out."
        )
    name = NAME_PREFIX + uuid4().hex
    labels = {
        **spec.labels,
        **Owner.current().labels(),
        ROLE: "sandbox",
        VERSION: LABEL_VERSION,
        IMAGE: spec.image,
    }
    return ContainerPlan(name=name, spec=spec, image=image, labels=labels, guest_args=guest_arguments(spec, volumes))


def files_in_memory(spec: SandboxSpec) -> dict[str, int]:
    """The file systems in memory and their sizes: /dev/shm, the spec's own, and /tmp on a read-only root."""
    default = min(FILES_IN_MEMORY, int(spec.limits.memory) // 4)
    sizes = {"/dev/shm": default if spec.shm_size is None else int(spec.shm_size)}
    sizes |= {path: int(size) for path, size in spec.tmpfs.items()}
    if spec.read_only:
        sizes.setdefault("/tmp", default)
    return sizes


def unbounded_volumes(spec: SandboxSpec, image: ImageInfo) -> tuple[str, ...]:
    """The image's volumes that nothing of the spec covers: on the host's disk, and writable on a read-only root too."""
    covered = {GUEST_DIR, *spec.tmpfs, *(mount.target for mount in spec.mounts)}
    return tuple(path for path in image.volumes if posixpath.normpath(path) not in covered)


def guest_arguments(spec: SandboxSpec, volumes: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The guest's command line, as ``docs/protocol.md`` defines it."""
    limits = spec.limits
    arguments = [
        f"--lease-ms={_milliseconds(spec.lease)}",
        f"--caps={capability_mask(spec.capability_names):x}",
        f"--nofile={limits.open_files}",
    ]
    if spec.lifetime is not None:
        arguments.append(f"--lifetime-ms={_milliseconds(spec.lifetime)}")
    if limits.file_size is not None:
        arguments.append(f"--fsize={int(limits.file_size)}")
    if limits.cpu_time is not None:
        arguments.append(f"--cpu={limits.cpu_time}")
    # Behind a quota `/` shows the quota's own free bytes, and a read-only root without volumes takes none: the guard
    # would only refuse calls that can do the host no harm.
    if spec.disk_reserve and limits.disk is None and (volumes or not spec.read_only):
        arguments.append(f"--disk-reserve={int(spec.disk_reserve)}")
    return tuple(arguments)


def capability_mask(names: frozenset[str]) -> int:
    """The kernel's mask of these capabilities."""
    unknown = sorted(names - CAPABILITY_NUMBERS.keys())
    if unknown:
        raise SandboxStartError(f"No kernel has a capability {', '.join(unknown)}; see capabilities(7) for the names.")
    return sum(1 << CAPABILITY_NUMBERS[name] for name in names)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _check_image(spec: SandboxSpec, image: ImageInfo, info: EngineInfo) -> None:
    engine = uname_architecture(info.architecture)
    if engine not in _GUEST_ARCHITECTURES:
        raise SandboxStartError(
            f"The engine at {info.address} runs on {engine}, and the guest is built for x86_64 and aarch64; "
            "use an engine of one of them."
        )
    built_for = uname_architecture(image.architecture)
    if built_for and built_for not in _RUNS_ON[engine]:
        raise ImageUnavailable(
            f"The image {spec.image!r} is built for {built_for} and this engine runs {engine}; "
            f"pull or build it for {engine}."
        )


def _check_limits(spec: SandboxSpec, info: EngineInfo) -> None:
    limits = spec.limits
    missing = [
        name
        for name, enforced in (("memory", info.memory_limit), ("pids", info.pids_limit), ("cpus", info.cpu_limit))
        if not enforced
    ]
    if missing:
        hint = "delegate the cgroup controllers to the user's engine" if info.rootless else "enable its cgroups"
        raise SandboxStartError(
            f"The engine at {info.address} discards the limits {', '.join(missing)}, which every sandbox needs; {hint}."
        )
    if limits.memory < MIN_MEMORY:
        raise SandboxStartError(f"memory is {int(limits.memory)} bytes; the least with room for a shell is 16MiB.")
    if info.memory and limits.memory > info.memory:
        raise SandboxStartError(
            f"memory is {int(limits.memory)} bytes and this engine's host has {info.memory}; choose less."
        )
    _check_files_in_memory(spec)
    if limits.cpus < 0.01 or (info.cpus and limits.cpus > info.cpus):
        raise SandboxStartError(
            f"cpus is {limits.cpus:g} and this engine gives 0.01 to {info.cpus}; choose a value within."
        )
    if limits.disk is not None and not info.disk_quota:
        raise SandboxStartError(
            f"A disk limit can't be enforced with the storage driver {info.storage_driver!r} of this engine; leave "
            "limits.disk out (disk_reserve still guards the host) or use overlay2 on xfs with pquota, btrfs or zfs."
        )


def _check_files_in_memory(spec: SandboxSpec) -> None:
    sizes = files_in_memory(spec)
    most = int(spec.limits.memory) - ROOM
    if sum(sizes.values()) > most:
        raise SandboxStartError(
            f"The file systems in memory ({', '.join(sizes)}) have {sum(sizes.values())} bytes, and files that filled "
            f"them would leave commands no memory; make them smaller or raise limits.memory (the most is {most})."
        )


def _check_places(spec: SandboxSpec) -> None:
    taken: set[str] = set()
    for what, path in [("tmpfs", path) for path in spec.tmpfs] + [("mount", mount.target) for mount in spec.mounts]:
        clean = path.rstrip("/") or "/"
        if clean == "/" or any(clean == own or clean.startswith(own + "/") for own in _KERNEL_PATHS):
            raise SandboxStartError(f"A {what} at {path} would hide what the guest relies on; choose another path.")
        if clean in taken:
            raise SandboxStartError(f"Two of the mounts and tmpfs of this spec are at {clean}; keep one.")
        taken.add(clean)
