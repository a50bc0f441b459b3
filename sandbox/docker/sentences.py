"""One sentence from whatever the layers below wrapped around an error."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator

import docker.errors
import requests

_BOUND = 400


def why_unavailable(address: str, error: BaseException) -> str:
    """One sentence from whatever the layers below wrapped around the operating system's own error."""
    for cause in _causes(error):
        if isinstance(cause, PermissionError):
            return (
                f"Permission denied on {address}; add the user to the docker group (sudo usermod -aG docker USER, "
                "then log in again) or use a rootless engine."
            )
        if isinstance(cause, FileNotFoundError):
            return f"No container engine answers at {address}: there is no such socket; start one or set DOCKER_HOST."
        if isinstance(cause, ConnectionRefusedError):
            return f"No container engine answers at {address}: nobody listens there; start one or set DOCKER_HOST."
        if isinstance(cause, socket.gaierror):
            return f"No container engine answers at {address}: there is no host of that name; check the address."
        if isinstance(cause, requests.exceptions.Timeout | TimeoutError):
            return f"The container engine at {address} does not answer in time; see its log, or restart it."
        if isinstance(cause, ConnectionError) or getattr(cause, "errno", None) == errno.EPIPE:
            return f"The container engine at {address} closed the connection; see its log, or restart it."
    if isinstance(error, ValueError) and not isinstance(error, docker.errors.DockerException):
        return f"What answers at {address} is no container engine, since its answer is no JSON; check the address."
    return f"The container engine at {address} can't be used ({one_line(str(error))}); check the address."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that it wraps, whether as its cause, its context or one of its arguments; inmost first."""
    seen: list[BaseException] = []
    todo = [error]
    while todo:
        current = todo.pop()
        if isinstance(current, BaseException) and current not in seen:
            seen.append(current)
            todo += [current.__cause__, current.__context__, getattr(current, "reason", None), *current.args]
    return reversed(seen)


def message(body: str) -> str:
    """What the engine said in an error's body."""
    try:
        return one_line(str(json.loads(body)["message"]))
    except (ValueError, KeyError, TypeError):
        return one_line(body)


def one_line(text: str) -> str:
    """Engine messages may hold many lines; ours are one sentence."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= _BOUND else line[: _BOUND - 3] + "..."
