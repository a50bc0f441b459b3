"""What a failed completion tells, without the keys that it was sent with.

Exceptions are recognised by their attributes: the loop imports none of the client libraries, and a newer or older one
than ours may be in use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

MAX_BODY = 20_000  # characters
SHORTEST_SECRET = 6  # a shorter "key" ("x", "none") is a placeholder, and removing it would garble the text

_BEARER = re.compile(r"(?i)\b(bearer\s+|api[-_]?key\W{1,4})[\w.~+/=-]{6,}")


def cause_of(error: BaseException) -> BaseException:
    """The error behind tenacity's ``RetryError``, however often it is wrapped."""
    seen = 0
    while (attempt := getattr(error, "last_attempt", None)) is not None and seen < 10:
        inner = attempt.exception() if callable(getattr(attempt, "exception", None)) else None
        if not isinstance(inner, BaseException):
            break
        error, seen = inner, seen + 1
    return error


def describe_failure(error: BaseException) -> dict[str, Any]:
    """Type, text, and what the libraries say of the answer or the request: httpx, openai, aiohttp, tenacity."""
    cause = cause_of(error)
    detail: dict[str, Any] = {"exc_type": type(cause).__name__, "exc_str": str(cause)}
    if cause is not error:
        detail["raised_as"] = type(error).__name__
    status = _read(cause, "status_code") or _read(_read(cause, "response"), "status_code") or _read(cause, "status")
    if isinstance(status, int):
        detail["status_code"] = status
    body = _read(_read(cause, "response"), "text")
    if not isinstance(body, str):
        body = _read(cause, "body") or (_read(cause, "message") if "status_code" in detail else None)
    if body:
        detail["response_text"] = str(body)[:MAX_BODY]
    elif (request := _read(cause, "request") or _read(cause, "request_info")) is not None:
        # Not its repr: aiohttp's holds the headers, and so the key.
        detail["request"] = f"{_read(request, 'method')} {_plain_url(_read(request, 'url'))}"[:MAX_BODY]
    return detail


def _read(thing: Any, name: str) -> Any:
    """An attribute, or None: httpx raises for a body that was not read and for a request that was never set."""
    try:
        value = getattr(thing, name, None)
    except Exception:  # noqa: BLE001 - whatever a property raises, there is nothing to tell
        return None
    return None if callable(value) else value


def _plain_url(url: object) -> str:
    """A URL without the user part and the query, where keys may stand."""
    try:
        parts = urlsplit(str(url))
        host = parts.hostname or ""
        return urlunsplit((parts.scheme, f"{host}:{parts.port}" if parts.port else host, parts.path, "", ""))
    except ValueError:
        return "(a URL that can't be read)"


def secrets_of(server: Any) -> frozenset[str]:
    """The keys of a server, or of a ``ServerManager``'s servers."""
    servers = getattr(server, "servers", None)
    found = set()
    for one in [server, *(servers if isinstance(servers, list) else [])]:
        for place in (one, getattr(one, "config", None)):
            key = getattr(place, "api_key", None)
            if isinstance(key, str) and len(key) >= SHORTEST_SECRET:
                found.add(key)
    return frozenset(found)


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """``text`` with every key in it replaced by ``***``."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return _BEARER.sub(r"\1***", text)
