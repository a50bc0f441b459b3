"""The end of a container, also of one that its own commands made hard to remove.

Docker removes a container's files by a recursion that holds a descriptor a level, and a command can nest directories
deeper than any limit of descriptors: such a container would stay for ever. Then a container of the guest's own, which
runs nothing of the sandbox's, empties the dead one's files.
"""

from __future__ import annotations

import logging
import time
from typing import Any
from uuid import uuid4

from sandbox.docker.api import Json, RefusedError
from sandbox.docker.config import GUEST_PATH, guest_mount
from sandbox.docker.connection import Connection
from sandbox.errors import EngineUnavailable, SandboxError
from sandbox.owner import Owner
from sandbox.plan import GUEST_DIR, NAME_PREFIX, shared_labels
from sandbox.spec import MIB

PLACE = f"{GUEST_DIR}-files"
"""Where the files of the dead container are mounted."""

_TOO_DEEP = "openfdat"
"""Go's name for what failed for want of a descriptor, in the middle of its removal of a tree."""

_AT_REST = frozenset({"dead", "exited", "removing"})
"""Of a container in these states no process is left."""

_log = logging.getLogger(__name__)


def remove_container(connection: Connection, name: str, deadline: float) -> bool:
    """End a container and wait until it is gone. False: no process of it is left, but the engine still has its files.

    That is no failure of the sandbox: its commands decide how many files there are, and how deep they lie.
    """
    until = time.monotonic() + deadline
    try:
        _remove(connection, name, until)
        return True
    except (RefusedError, EngineUnavailable) as failure:
        state = _state(connection, name)
        if state == "gone":
            return True
        if state in _AT_REST:
            _log.warning("The container %s has ended, but not all of its files could be removed yet: %s", name, failure)
            return False
        if isinstance(failure, EngineUnavailable):
            raise
        raise SandboxError(
            f"The container {name} could not be removed within {deadline:g} s ({failure.message}); remove it with "
            f"`docker rm -f -v {name}`."
        ) from failure


def _remove(connection: Connection, name: str, until: float) -> None:
    try:
        connection.api.remove(name, until - time.monotonic(), give_up_on=_TOO_DEEP)
    except RefusedError as refusal:
        if _TOO_DEEP not in refusal.message or not _empty_files(connection, name, until):
            raise
        connection.api.remove(name, max(1.0, until - time.monotonic()), give_up_on=_TOO_DEEP)


def _state(connection: Connection, name: str) -> str:
    """As the engine says it now, if it does."""
    try:
        inspected = connection.api.inspect(name)
    except SandboxError:
        return "unknown"
    return "gone" if inspected is None else str((inspected.get("State") or {}).get("Status"))


def _empty_files(connection: Connection, name: str, until: float) -> bool:
    """Whether the files of a dead container could be removed."""
    inspected = connection.api.inspect(name)
    if inspected is None:
        return True
    files = ((inspected.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")
    if not files or not (inspected.get("State") or {}).get("Dead"):
        return False
    helper = f"{NAME_PREFIX}empty-{uuid4().hex}"
    try:
        connection.api.create(helper, _helper_config(str(inspected["Image"]), connection.guest.name, str(files)))
        connection.api.start(helper)
        while connection.api.inspect(helper) is not None and time.monotonic() < until:
            time.sleep(0.1)
        return True
    except RefusedError as refusal:
        _log.warning("The files of the container %s could not be emptied: %s", name, refusal)
        return False
    finally:
        connection.api.discard(helper)


def _helper_config(image: str, guest_volume: str, files: str) -> dict[str, Any]:
    """No network and no more than root's right to the files of others; it ends, and is removed, by itself."""
    host: Json = {
        "AutoRemove": True,
        "NetworkMode": "none",
        "LogConfig": {"Type": "none", "Config": {}},
        "CapDrop": ["ALL"],
        "CapAdd": ["DAC_OVERRIDE", "FOWNER"],
        "SecurityOpt": ["no-new-privileges"],
        "PidsLimit": 16,
        "Memory": 64 * MIB,
        "ReadonlyRootfs": True,
        "Mounts": [guest_mount(guest_volume), {"Type": "bind", "Source": files, "Target": PLACE, "ReadOnly": False}],
    }
    return {
        "Image": image,
        "Entrypoint": [GUEST_PATH, "--empty", PLACE],
        "Cmd": [],
        "User": "0:0",
        "WorkingDir": "/",
        "Labels": {**shared_labels("empty"), **Owner.current().labels()},
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }
