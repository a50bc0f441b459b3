"""One completion: its bound in time, its heartbeat, and what the log says of it.

The environment variables are read for each completion, so that a run can be looked into while it goes on in a shell
that set them. Everything goes through :mod:`logging`; :func:`show_logs` puts it on the terminal.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from agent.failures import describe_failure, without_secrets

logger = logging.getLogger(__name__)

CHAT_TIMEOUT = "ATROPOS_AGENT_CHAT_TIMEOUT_S"
WAIT_EVERY = "ATROPOS_DEBUG_AGENT_WAIT_EVERY_S"
REQUEST = "ATROPOS_DEBUG_AGENT_REQUEST"
REQUEST_FULL = "ATROPOS_DEBUG_AGENT_REQUEST_FULL"
RESPONSE = "ATROPOS_DEBUG_AGENT_RESPONSE"
TERMINAL = "ATROPOS_AGENT_LOG"
MAX_DUMP = 200_000  # characters


def show_logs(level: int | str = logging.INFO) -> None:
    """Show what the agent logs on the terminal. ``ATROPOS_AGENT_LOG=INFO`` does the same for any program."""
    package = logging.getLogger("agent")
    package.setLevel(level.upper() if isinstance(level, str) else level)
    if not any(isinstance(handler, _Terminal) for handler in package.handlers):
        handler = _Terminal()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        package.addHandler(handler)


class _Terminal(logging.StreamHandler):  # type: ignore[type-arg]
    """Ours, so that it is added once."""


def show_logs_if_asked() -> None:
    """Honour ``ATROPOS_AGENT_LOG``."""
    level = os.environ.get(TERMINAL)
    if level:
        show_logs("INFO" if level == "1" else level)


def seconds(name: str) -> float | None:
    """The seconds that an environment variable sets; None where it is unset, empty or not above 0."""
    text = os.environ.get(name)
    try:
        value = float(text) if text else 0.0
    except ValueError:
        raise ValueError(f"{name} is {text!r}; give seconds") from None
    return value if value > 0 else None


async def complete(model: Any, step: int, kwargs: dict[str, Any], secrets: frozenset[str]) -> Any:
    """``model.chat_completion(**kwargs)``, bounded and logged. Raises what it raises, and ``TimeoutError``."""
    limit, every = seconds(CHAT_TIMEOUT), seconds(WAIT_EVERY)
    _log_request(step, kwargs, secrets)
    started = time.monotonic()
    clock = asyncio.timeout(limit)
    try:
        async with clock:
            response = await _wait(model.chat_completion(**kwargs), step, every)
    except Exception as error:
        late = TimeoutError(f"no completion within {limit:g} s ({CHAT_TIMEOUT})") if clock.expired() else None
        detail = {"step": step, **describe_failure(late or error)}
        # Not with its traceback: a client's exceptions may hold the request's headers.
        logger.error("completion failed: %s", without_secrets(repr(detail), secrets))
        if late is not None:
            raise late from None
        raise
    logger.info("step=%d completion done in %.2f s", step, time.monotonic() - started)
    if _on(RESPONSE):
        dump = getattr(response, "model_dump", None)
        text = repr(dump() if callable(dump) else vars(response))
        logger.info("step=%d response: %s", step, without_secrets(text, secrets)[:MAX_DUMP])
    return response


async def _wait(completion: Any, step: int, every: float | None) -> Any:
    """Await it, with a line in the log every so often. A cancelled wait cancels the request, a heartbeat doesn't."""
    if every is None:
        return await completion
    task = asyncio.ensure_future(completion)
    started = time.monotonic()
    try:
        while not (await asyncio.wait({task}, timeout=every))[0]:
            logger.info("step=%d still waiting for the completion (%.1f s)", step, time.monotonic() - started)
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def _log_request(step: int, kwargs: Mapping[str, Any], secrets: frozenset[str]) -> None:
    messages = kwargs.get("messages") or []
    logger.info(
        "step=%d completion start (messages=%d, max_tokens=%s, temperature=%s)",
        step,
        len(messages),
        kwargs.get("max_tokens"),
        kwargs.get("temperature"),
    )
    full = _on(REQUEST_FULL)
    if not (full or _on(REQUEST)):
        return
    shown = {
        "step": step,
        "keys": sorted(kwargs),
        **{name: kwargs.get(name) for name in ("n", "max_tokens", "temperature")},
        "num_messages": len(messages),
    }
    logger.info("request: %s", shown)
    if full:
        text = json.dumps(dict(kwargs), ensure_ascii=False, indent=2, default=repr)
        logger.info("step=%d full request: %s", step, without_secrets(text, secrets)[:MAX_DUMP])


def _on(name: str) -> bool:
    return os.environ.get(name) == "1"
