"""What is asked of an engine beside starting and ending sandboxes: blocking functions, run in its threads."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sandbox.docker.api import DockerApi, RefusedError
from sandbox.docker.connection import Connection
from sandbox.docker.death import death_from_events, death_from_exit
from sandbox.docker.facts import container_info, image_info, parse_time
from sandbox.docker.guest import is_stale
from sandbox.engine import ContainerInfo, Death, ImageInfo
from sandbox.errors import ImageUnavailable
from sandbox.owner import OWNER
from sandbox.plan import NAME_PREFIX, ROLE, uname_architecture

HISTORY = 3600.0
"""Seconds to look back for a container's death; engines keep only their last few hundred events anyway."""

DEATH_NOTICE = 2.0
"""Seconds until an engine has noticed and noted a death whose stream we saw end."""

OLD_VOLUME = 3600.0
"""Another version's guest may be in use between two sandboxes; a younger volume is left alone."""

_IMAGE_ID = re.compile(r"(sha256:)?[0-9a-f]{64}|[0-9a-f]{12}")


def find_image(api: DockerApi, reference: str) -> dict[str, Any] | None:
    """The image, if it is here."""
    try:
        return api.image(reference)
    except RefusedError as refusal:
        raise ImageUnavailable(
            f"The image {reference!r} can't be looked up ({refusal.message}); check its name."
        ) from refusal


def local_image(connection: Connection, reference: str, platform: str | None) -> ImageInfo | None:
    """The image as it is here; None when it is not, or only for another platform."""
    answer = find_image(connection.api, reference)
    return None if answer is None or not _is_for(answer, platform) else _image_info(reference, answer)


def pulled_image(connection: Connection, reference: str, platform: str | None) -> ImageInfo:
    """The image, fetched from its registry."""
    if _IMAGE_ID.fullmatch(reference):
        raise ImageUnavailable(f"The engine has no image with the id {reference}; build or pull it by its name.")
    wanted = f"{reference!r} for {platform}" if platform else repr(reference)
    try:
        connection.api.pull(reference, platform)
    except RefusedError as refusal:
        raise ImageUnavailable(
            f"The image {wanted} is not on the engine and can't be pulled ({refusal.message}); build it, or check its "
            "name and the registry."
        ) from refusal
    answer = find_image(connection.api, reference)
    if answer is None or not _is_for(answer, platform):
        raise ImageUnavailable(f"The registry gave another image than {wanted}; check its name and platform.")
    return _image_info(reference, answer)


def _image_info(reference: str, answer: Mapping[str, Any]) -> ImageInfo:
    if str(answer.get("Os") or "linux") != "linux":
        raise ImageUnavailable(f"The image {reference!r} is for {answer['Os']}; a sandbox needs one for linux.")
    return image_info(answer)


def _is_for(answer: Mapping[str, Any], platform: str | None) -> bool:
    if platform is None:
        return True
    system, _, architecture = platform.partition("/")
    wanted = uname_architecture(architecture.partition("/")[0])
    return answer.get("Os") == system and uname_architecture(str(answer.get("Architecture"))) == wanted


def list_sandboxes(connection: Connection) -> list[ContainerInfo]:
    """Every sandbox, of whatever owner and state.

    The name is asked for too: an image made from a sandbox may carry our labels into containers that aren't ours.
    """
    answers = connection.api.containers({"label": [OWNER, f"{ROLE}=sandbox"]})
    listed = (container_info(answer, connection.clock_offset) for answer in answers)
    return [container for container in listed if container.name.startswith(NAME_PREFIX)]


def cause_of_death(connection: Connection, container: str) -> Death:
    """Why it ended, as far as the engine knows it (still)."""
    deadline = time.monotonic() + DEATH_NOTICE
    while True:
        inspected = connection.api.inspect(container)
        death = _from_history(connection, container)
        if death is not None:
            return death
        state = (inspected or {}).get("State") or {}
        if state.get("Status") in ("exited", "dead"):
            return death_from_exit(state.get("ExitCode"), out_of_memory=bool(state.get("OOMKilled")))
        if inspected is None or time.monotonic() > deadline:
            return Death()
        time.sleep(0.05)


def _from_history(connection: Connection, container: str) -> Death | None:
    now = time.time() + connection.clock_offset
    try:
        return death_from_events(connection.api.events(container, now - HISTORY, now))
    except RefusedError:
        return None


def remove_unused(connection: Connection) -> list[str]:
    """Remove what sandboxes shared and nobody uses any more; what was removed, for people."""
    removed = [f"network {network[:12]}" for network in connection.network.remove_unused()]
    for answer in connection.api.containers({"label": [f"{ROLE}=seed"]}):
        inspected = connection.api.inspect(str(answer["Id"]))
        if inspected is not None and is_stale(inspected, connection.clock_offset):
            connection.api.discard(str(answer["Id"]))
            removed.append(f"container {str(inspected.get('Name')).removeprefix('/')}")
    return removed + _remove_old_volumes(connection)


def _remove_old_volumes(connection: Connection) -> list[str]:
    removed = []
    now = time.time() + connection.clock_offset
    for answer in connection.api.volumes(f"{ROLE}=guest"):
        name = str(answer["Name"])
        is_old = now - parse_time(str(answer.get("CreatedAt") or "")) > OLD_VOLUME
        if name == connection.guest.name or not is_old:
            continue
        with suppress(RefusedError):  # in use, or another sweep was faster
            connection.api.delete_volume(name)
            removed.append(f"volume {name}")
    return removed
