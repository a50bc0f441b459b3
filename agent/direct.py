"""The client that bypasses ``ManagedServer``: one POST to the chat route. No tracking, so no training data."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

TIMEOUT = "ATROPOS_DIRECT_REQUEST_TIMEOUT_S"
DEFAULT_TIMEOUT = 120.0  # seconds

_PASSED_ON = ("max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "stop")


@dataclass(frozen=True, slots=True)
class DirectMessage:
    """``choices[i].message``."""

    content: str | None
    reasoning: str | None


@dataclass(frozen=True, slots=True)
class DirectChoice:
    """``choices[i]``."""

    message: DirectMessage
    finish_reason: str | None = None


class DirectResponse:
    """The server's JSON, with the few attributes that the loop reads."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = dict(data)
        self.choices = [_choice(choice) for choice in data.get("choices") or []]

    def model_dump(self) -> dict[str, Any]:
        """The JSON itself."""
        return self._data


class DirectChatClient:
    """Posts to ``{base_url}/chat/completions`` of a ``ServerManager``'s first server, or of a single server."""

    def __init__(self, server: Any) -> None:
        self._server = server

    async def chat_completion(
        self, *, messages: Sequence[Mapping[str, Any]], n: int = 1, **kwargs: Any
    ) -> DirectResponse:
        """Complete a chat. Raises ``httpx.HTTPError`` as it comes, and ``RuntimeError`` if no address can be found."""
        try:
            import httpx
        except ImportError as error:
            raise RuntimeError("the direct client needs httpx: pip install 'shell-agent-sandbox[agent]'") from error
        base_url, api_key, model = resolve(self._server)
        payload: dict[str, Any] = {"model": model, "messages": [dict(message) for message in messages], "n": n}
        payload.update((name, kwargs[name]) for name in _PASSED_ON if kwargs.get(name) is not None)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        async with httpx.AsyncClient(timeout=_timeout()) as client:
            answer = await client.post(f"{base_url}/chat/completions", headers=headers, json=payload)
        return DirectResponse(answer.raise_for_status().json())


def resolve(server: Any) -> tuple[str, str, str]:
    """Find ``(base_url, api_key, model)``: in the first of ``server.servers`` or in ``server``, its config first."""
    servers = getattr(server, "servers", None)
    candidates = [servers[0]] if isinstance(servers, list) and servers else []
    for candidate in [*candidates, server]:
        places = (getattr(candidate, "config", None), candidate)
        base_url = _first(places, "base_url")
        model = _first(places, "model_name") or _first(places, "model")
        if base_url and model:
            return base_url.rstrip("/"), _first(places, "api_key"), model
    raise RuntimeError(
        "the server names no base_url and model_name, so no chat request can be made; set them in its config"
    )


def _first(places: Sequence[Any], name: str) -> str:
    return next(
        (value for value in (getattr(place, name, None) for place in places) if isinstance(value, str) and value), ""
    )


def _choice(choice: Mapping[str, Any]) -> DirectChoice:
    message = choice.get("message") or {}
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    return DirectChoice(DirectMessage(message.get("content"), reasoning), choice.get("finish_reason"))


def _timeout() -> float:
    text = os.environ.get(TIMEOUT)
    try:
        return float(text) if text else DEFAULT_TIMEOUT
    except ValueError:
        raise ValueError(f"{TIMEOUT} is {text!r}; give seconds") from None
