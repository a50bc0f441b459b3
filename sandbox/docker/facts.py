"""The engine's answers as our own facts: JSON in, frozen values out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sandbox.engine import ContainerInfo, EngineInfo, ImageInfo
from sandbox.plan import IMAGE, uname_architecture

_QUOTA_DRIVERS = frozenset({"btrfs", "zfs", "devicemapper", "windowsfilter"})


def engine_info(address: str, api_version: str, version: Mapping[str, Any], info: Mapping[str, Any]) -> EngineInfo:
    """What ``/version`` and ``/info`` say, and what follows from it."""
    security = tuple(_security_name(option) for option in info.get("SecurityOptions") or ())
    platform = version.get("Platform") or {}
    return EngineInfo(
        address=address,
        name=str(platform.get("Name") or _component(version)),
        version=str(version.get("Version") or info.get("ServerVersion") or ""),
        api_version=api_version,
        architecture=uname_architecture(str(info.get("Architecture") or version.get("Arch") or "")),
        operating_system=str(info.get("OperatingSystem") or ""),
        kernel=str(info.get("KernelVersion") or ""),
        storage_driver=str(info.get("Driver") or ""),
        cgroup_version=str(info.get("CgroupVersion") or ""),
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        security=security,
        cpus=int(info.get("NCPU") or 0),
        memory=int(info.get("MemTotal") or 0),
        memory_limit=bool(info.get("MemoryLimit", True)),
        pids_limit=bool(info.get("PidsLimit", True)),
        cpu_limit=bool(info.get("CpuCfsQuota", True)) and bool(info.get("CpuCfsPeriod", True)),
        disk_quota=has_disk_quota(info, address),
        rootless="rootless" in security,
    )


def has_disk_quota(info: Mapping[str, Any], address: str, mount_table: str = "/proc/self/mounts") -> bool:
    """Whether a container's root file system can be given a size.

    For overlay2 the engine doesn't tell: it needs xfs mounted with pquota. Where the engine is local the mount table
    knows; elsewhere xfs gets the benefit of the doubt, and the engine itself refuses the container if it can't.
    """
    driver = info.get("Driver")
    if driver in _QUOTA_DRIVERS:
        return True
    status = {str(pair[0]): str(pair[1]) for pair in info.get("DriverStatus") or () if len(pair) == 2}
    if driver != "overlay2" or status.get("Backing Filesystem") != "xfs":
        return False
    root = str(info.get("DockerRootDir") or "")
    if not address.startswith("unix://") or not root or not Path(root).is_dir():
        return True
    return _mounted_with_project_quota(root, mount_table)


def _mounted_with_project_quota(path: str, mount_table: str) -> bool:
    best, options = "", ""
    try:
        lines = Path(mount_table).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    for line in lines:
        fields = line.split()
        if len(fields) > 3 and _is_within(path, fields[1]) and len(fields[1]) >= len(best):
            best, options = fields[1], fields[3]
    return not {"pquota", "prjquota"}.isdisjoint(options.split(","))


def _is_within(path: str, place: str) -> bool:
    return place == "/" or path == place or path.startswith(place.rstrip("/") + "/")


def _security_name(option: str) -> str:
    """``name=seccomp,profile=default`` is ``seccomp``."""
    return option.partition(",")[0].removeprefix("name=")


def _component(version: Mapping[str, Any]) -> str:
    components = version.get("Components") or [{}]
    name = str(components[0].get("Name") or "Engine")
    return "Docker Engine" if name == "Engine" else name


def image_info(answer: Mapping[str, Any]) -> ImageInfo:
    """An image's inspection."""
    config = answer.get("Config") or {}
    return ImageInfo(
        id=str(answer["Id"]),
        architecture=str(answer.get("Architecture") or ""),
        user=str(config.get("User") or ""),
        workdir=str(config.get("WorkingDir") or ""),
        env=dict(_pairs(config.get("Env") or ())),
        volumes=tuple(sorted(config.get("Volumes") or ())),
    )


def _pairs(env: Iterable[str]) -> Iterable[tuple[str, str]]:
    for entry in env:
        name, sign, value = entry.partition("=")
        if sign:
            yield name, value


def container_info(answer: Mapping[str, Any], clock_offset: float) -> ContainerInfo:
    """One line of the engine's list, its time translated to this machine's clock."""
    labels = dict(answer.get("Labels") or {})
    names = answer.get("Names") or ["/"]
    return ContainerInfo(
        id=str(answer["Id"]),
        name=str(names[0]).removeprefix("/"),
        state=str(answer.get("State") or ""),
        image=labels.get(IMAGE) or str(answer.get("Image") or ""),
        created=float(answer.get("Created") or 0) - clock_offset,
        labels=labels,
    )


def parse_time(text: str) -> float:
    """Seconds since the epoch of the engine's RFC 3339 text, whose nanoseconds Python can't parse; 0 if it's none."""
    try:
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).timestamp()
    except ValueError:
        return 0.0
