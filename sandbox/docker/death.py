"""Why a container ended, as one clause, from the engine's own history.

A container removes itself when its guest exits, so nothing can be asked of it afterwards; but the engine keeps its
last events for a while, and the guest's exit status (``docs/protocol.md``) says the rest.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from typing import Any

_GUEST_EXITS = {
    0: "the link to its controller was closed",
    70: "a frame broke the protocol",
    71: "its guest had no room to begin, or was not PID 1",
    72: "the lease ran out: no word came from the controller for too long",
    73: "its lifetime ran out",
    74: "it was told to stop from outside (SIGTERM)",
}

_WORDS_BOUND = 300


def cause_from_events(events: Iterable[Mapping[str, Any]]) -> str | None:
    """The clause for a container's events, oldest first; None while none of them is its death."""
    killed_by: int | None = None
    out_of_memory = False
    for event in events:
        attributes = (event.get("Actor") or {}).get("Attributes") or {}
        match event.get("Action") or event.get("status"):
            case "kill":
                killed_by = _number(attributes.get("signal"))
            case "oom":
                out_of_memory = True
            case "die":
                return cause_from_exit(_number(attributes.get("exitCode")), killed_by, out_of_memory)
    return None


def cause_from_exit(code: int | None, killed_by: int | None = None, out_of_memory: bool = False) -> str:
    """The clause for an exit status and what preceded it."""
    if code is None:
        return "it ended, and the engine does not say how"
    if code > 128 and killed_by == code - 128:
        return f"it was killed from outside ({_signal_name(killed_by)})"
    if code == 128 + signal.SIGKILL and out_of_memory:
        return "the kernel killed its guest, since its memory ran out"
    if code in _GUEST_EXITS:
        return _GUEST_EXITS[code]
    if code > 128:
        return f"its guest was killed by {_signal_name(code - 128)}, though not through the engine"
    return f"its guest exited with status {code}"


def with_last_words(cause: str, stderr: bytes) -> str:
    """The clause, and what was said on the guest's stderr: mostly the runtime, about a guest that it could not run."""
    words = " ".join(stderr.decode("utf-8", "replace").split())[:_WORDS_BOUND]
    if not words:
        return cause
    return f"{cause or 'it ended'} ({words.rstrip('.')})"


def _number(text: object) -> int | None:
    value = str(text)
    return int(value) if value.isdigit() else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
