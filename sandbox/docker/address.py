"""Where the engine is: found as the docker command finds it, so that ``docker ps`` and a sandbox mean the same one.

Read from an environment mapping and the command's own files; nothing here opens a connection.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sandbox.errors import EngineUnavailable

DEFAULT_SOCKET = "unix:///var/run/docker.sock"


def find_addresses(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The addresses to try, in order: one where the user chose it, else the default and the rootless socket."""
    chosen = _chosen(environ)
    if chosen is not None:
        return (chosen,)
    runtime_dir = environ.get("XDG_RUNTIME_DIR")
    return (DEFAULT_SOCKET, f"unix://{runtime_dir}/docker.sock") if runtime_dir else (DEFAULT_SOCKET,)


def check_address(address: str) -> str:
    """Return ``address``, or raise the one sentence that says why it can't be used and what can."""
    scheme = address.partition("://")[0] if "://" in address else ""
    if scheme == "ssh":
        raise EngineUnavailable(
            f"The engine address {address} is not supported, since a sandbox's stream needs a plain socket; forward it "
            "(ssh -N -L /tmp/docker.sock:/var/run/docker.sock HOST) and set DOCKER_HOST=unix:///tmp/docker.sock."
        )
    if scheme == "https":
        raise EngineUnavailable(_no_tls(address))
    if scheme == "unix":
        if not address.removeprefix("unix://").strip("/"):
            raise EngineUnavailable(f"The engine address {address!r} names no socket; write unix:///path/to/socket.")
        return address
    if scheme in ("tcp", "http"):
        _check_port(address)
        return address
    raise EngineUnavailable(f"The engine address {address!r} is not supported; use unix:///path or tcp://host:port.")


def _check_port(address: str) -> None:
    try:
        port = urlsplit(address).port
    except ValueError:
        port = None
    if not port:
        raise EngineUnavailable(f"The engine address {address!r} names no port; write tcp://host:port.")


def _no_tls(address: str) -> str:
    return (
        f"The engine address {address} asks for TLS, which is not supported, since a sandbox's stream needs a plain "
        "socket; forward the engine's own socket over ssh and set DOCKER_HOST=unix:///path."
    )


def _chosen(environ: Mapping[str, str]) -> str | None:
    """What the user chose, in the docker command's order: DOCKER_HOST, DOCKER_CONTEXT, the current context."""
    host = environ.get("DOCKER_HOST")
    if host:
        wants_tls = bool(environ.get("DOCKER_TLS_VERIFY") or environ.get("DOCKER_TLS"))
        if wants_tls and host.startswith(("tcp://", "http://")):
            raise EngineUnavailable(_no_tls(host))
        return check_address(host)
    config = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or Path.home(), ".docker"))
    context = environ.get("DOCKER_CONTEXT") or _current_context(config)
    return None if context in ("", "default") else _context_address(config, context)


def _current_context(config: Path) -> str:
    try:
        value = _json(config / "config.json").get("currentContext", "")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise EngineUnavailable(
            f"The docker command's configuration {config / 'config.json'} can't be read ({error}); mend it or set "
            "DOCKER_HOST."
        ) from error
    return value if isinstance(value, str) else ""


def _context_address(config: Path, context: str) -> str:
    key = hashlib.sha256(context.encode()).hexdigest()
    try:
        host = _json(config / "contexts" / "meta" / key / "meta.json")["Endpoints"]["docker"]["Host"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineUnavailable(
            f"The docker context {context!r} can't be read; see `docker context ls`, choose another with "
            "`docker context use`, or set DOCKER_HOST."
        ) from error
    address = check_address(str(host))
    if not address.startswith("unix://") and (config / "contexts" / "tls" / key / "docker").is_dir():
        raise EngineUnavailable(_no_tls(address))
    return address


def _json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value
