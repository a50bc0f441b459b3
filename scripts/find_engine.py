"""Where a container engine is looked for, as the docker CLI does it, and whether one answers there.

A test keeps this in step with ``sandbox.docker.address``, which can't be used here: its dependencies aren't there yet.

The order is the CLI's: DOCKER_HOST, then DOCKER_CONTEXT or the configuration's current context. Where none of them
names anything, the default socket and then the rootless engine's.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from scripts.console import SetupError

DEFAULT = "unix:///var/run/docker.sock"
PATIENCE = 5.0
"""Seconds in which a living engine answers a ping, however busy it is."""

State = Literal["answers", "absent", "denied", "broken"]


@dataclass(frozen=True)
class Place:
    """An address, and what named it."""

    address: str
    named_by: str
    chosen: bool
    """Whether a person chose it; then no other place is tried."""


@dataclass(frozen=True)
class Probe:
    """What was found at a place."""

    place: Place
    state: State
    detail: str = ""


def places(env: Mapping[str, str], home: Path) -> list[Place]:
    """Every place that may hold the engine, in the order in which they are tried."""
    if env.get("DOCKER_HOST"):
        return [Place(env["DOCKER_HOST"], "DOCKER_HOST", True)]
    config = Path(env.get("DOCKER_CONFIG") or home / ".docker")
    name, named_by = _context_name(env, config)
    if name != "default":
        return [Place(_context_address(config, name, named_by), f"the docker context {name!r}", True)]
    rootless = env.get("XDG_RUNTIME_DIR")
    return [
        Place(DEFAULT, "the default socket", False),
        *([Place(f"unix://{rootless}/docker.sock", "the rootless socket", False)] if rootless else []),
    ]


def probe(place: Place) -> Probe:
    """Ask the engine at ``place`` whether it is there."""
    try:
        return Probe(place, *_ping(connection(place.address)))
    except ValueError as error:
        return Probe(place, "broken", str(error))


def probe_all(env: Mapping[str, str] = os.environ) -> list[Probe]:
    """Probe the places in order, until one answers."""
    found: list[Probe] = []
    for place in places(env, Path(env.get("HOME") or Path.home())):
        found.append(probe(place))
        if found[-1].state == "answers":
            break
    return found


def _context_name(env: Mapping[str, str], config: Path) -> tuple[str, str]:
    if env.get("DOCKER_CONTEXT"):
        return env["DOCKER_CONTEXT"], "DOCKER_CONTEXT"
    file = config / "config.json"
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        return "default", "nothing"
    except (OSError, ValueError) as error:
        raise SetupError(f"{file} can't be read ({error}); mend it or move it away") from error
    name = content.get("currentContext") if isinstance(content, dict) else None
    return (name, str(file)) if name else ("default", "nothing")


def _context_address(config: Path, name: str, named_by: str) -> str:
    # The CLI files a context under the digest of its name.
    meta = config / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    try:
        address = json.loads(meta.read_text())["Endpoints"]["docker"]["Host"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SetupError(
            f"{named_by} names the docker context {name!r}, which doesn't exist or tells no address; "
            f"see `docker context ls`"
        ) from error
    return str(address)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, patience: float) -> None:
        super().__init__("localhost", timeout=patience)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def connection(address: str, patience: float = PATIENCE) -> http.client.HTTPConnection:
    """HTTP to the engine at ``address``; silence for longer than ``patience`` is an ``OSError``."""
    url = urlsplit(address)
    if url.scheme == "unix":
        return _UnixConnection(url.path, patience)
    if url.scheme in ("tcp", "http") and url.hostname and url.port and not os.environ.get("DOCKER_TLS_VERIFY"):
        return http.client.HTTPConnection(url.hostname, url.port, timeout=patience)
    raise ValueError("a sandbox needs a plain unix://PATH or tcp://HOST:PORT, without TLS or ssh")


def _ping(engine: http.client.HTTPConnection) -> tuple[State, str]:
    try:
        engine.request("GET", "/_ping")
        status = engine.getresponse().status
    except PermissionError as error:
        return "denied", str(error)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        return "absent", str(error)  # a refusing socket is what an engine that was killed leaves behind
    except (OSError, http.client.HTTPException) as error:
        return "broken", str(error) or type(error).__name__
    finally:
        engine.close()
    return ("answers", "") if status == 200 else ("broken", f"its ping is answered with HTTP status {status}")
