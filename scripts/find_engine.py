"""Where a container engine is looked for, as the docker CLI does it, and whether one answers there.

The order is the CLI's: DOCKER_HOST, then DOCKER_CONTEXT or the configuration's current context. Where none of them
names anything, the default socket and then the rootless engine's.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
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


def places(env: Mapping[str, str], home: Path, uid: int) -> list[Place]:
    """Every place that may hold the engine, in the order in which they are tried."""
    if env.get("DOCKER_HOST"):
        return [Place(env["DOCKER_HOST"], "DOCKER_HOST", True)]
    config = Path(env.get("DOCKER_CONFIG") or home / ".docker")
    name, named_by = _context_name(env, config)
    if name != "default":
        return [Place(_context_address(config, name, named_by), f"the docker context {name!r}", True)]
    runtime = env.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    return [
        Place(DEFAULT, "the default socket", False),
        Place(f"unix://{runtime}/docker.sock", "the rootless socket", False),
    ]


def probe(place: Place) -> Probe:
    """Ask the engine at ``place`` whether it is there."""
    url = urlsplit(place.address)
    try:
        if url.scheme == "unix":
            return Probe(place, *_ping(_UnixConnection(url.path)))
        if url.scheme in ("tcp", "http") and url.hostname and not os.environ.get("DOCKER_TLS_VERIFY"):
            return Probe(place, *_ping(http.client.HTTPConnection(url.hostname, url.port or 2375, timeout=PATIENCE)))
    except ValueError as error:
        return Probe(place, "broken", str(error))
    return Probe(place, *_ask_cli(place))


def probe_all(env: Mapping[str, str] = os.environ) -> list[Probe]:
    """Probe the places in order, until one answers."""
    found: list[Probe] = []
    for place in places(env, Path.home(), os.getuid()):
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
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _ping(connection: http.client.HTTPConnection) -> tuple[State, str]:
    try:
        connection.request("GET", "/_ping")
        status = connection.getresponse().status
    except PermissionError as error:
        return "denied", str(error)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        return "absent", str(error)  # a refusing socket is what an engine that was killed leaves behind
    except (OSError, http.client.HTTPException) as error:
        return "broken", str(error) or type(error).__name__
    finally:
        connection.close()
    return ("answers", "") if status == 200 else ("broken", f"its ping is answered with HTTP status {status}")


def _ask_cli(place: Place) -> tuple[State, str]:
    """TLS and ssh are left to the docker CLI, which knows its keys."""
    if shutil.which("docker") is None:
        return "broken", "this kind of address needs the docker command, which isn't installed"
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE)
    except subprocess.TimeoutExpired:
        return "broken", "docker version gave no answer"
    return ("answers", "") if result.returncode == 0 else ("broken", result.stderr.strip().rpartition("\n")[2])
