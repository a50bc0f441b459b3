"""One opened engine: the API, the facts that were read at its opening, and what all its sandboxes share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox.docker.api import DockerApi
from sandbox.docker.facts import engine_info, parse_time
from sandbox.docker.guest import GuestVolume
from sandbox.docker.network import OpenNetwork
from sandbox.engine import EngineInfo
from sandbox.errors import EngineUnavailable
from sandbox.guest import guest_binary


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything that a blocking function needs."""

    api: DockerApi
    info: EngineInfo
    clock_offset: float
    """The engine's clock minus this machine's, in seconds."""
    network: OpenNetwork
    guest: GuestVolume


def connect(addresses: Sequence[str], guest: Path | None) -> Connection:
    """Open the first engine that answers; if none does, the first one's reason is the user's."""
    failure: EngineUnavailable | None = None
    for address in addresses:
        try:
            return _open(address, guest)
        except EngineUnavailable as error:
            failure = failure or error
    raise failure or EngineUnavailable("No address of a container engine is known; set DOCKER_HOST.")


def _open(address: str, guest: Path | None) -> Connection:
    api = DockerApi(address)
    try:
        before = time.time()
        facts = api.info()
        info = engine_info(address, api.api_version, api.version, facts)
        engine_time = parse_time(str(facts.get("SystemTime") or ""))
        offset = engine_time - (before + time.time()) / 2 if engine_time else 0.0
        volume = GuestVolume(api, _guest_bytes(info.architecture, guest), info.architecture, offset)
        return Connection(api, info, offset, OpenNetwork(api), volume)
    except BaseException:
        api.close()
        raise


def _guest_bytes(architecture: str, chosen: Path | None) -> bytes:
    """The guest's binary; empty where this installation has none, which hinders only a start."""
    try:
        return (chosen or guest_binary(architecture)).read_bytes()
    except FileNotFoundError:
        return b""
