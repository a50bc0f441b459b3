"""Why a container ended, as one clause, from the engine's own history.

A container removes itself when its guest exits, so nothing can be asked of it afterwards; but the engine keeps its
last events for a while, and the guest's exit status (``docs/protocol.md``) says the rest.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from typing import Any

from sandbox.engine import Death

_GUEST_EXITS = {
    0: "the link to its controller was closed",
    70: "a frame broke the protocol",
    71: "its guest had no room to begin, or was not PID 1",
    72: "the lease ran out: no word came from the controller for too long",
    73: "its lifetime ran out",
    74: "it was told to stop from outside (SIGTERM)",
}

_WORDS_BOUND = 300


def death_from_events(events: Iterable[Mapping[str, Any]]) -> Death | None:
    """The end that a container's events tell, oldest first; None while none of them is its death."""
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
                return death_from_exit(_number(attributes.get("exitCode")), killed_by, out_of_memory)
    return None


def death_from_exit(code: int | None, killed_by: int | None = None, out_of_memory: bool = False) -> Death:
    """The end that an exit status and what preceded it tell.

    ``out_of_memory`` is the engine's word that the container's own limit was hit; the host's memory running out is
    another thing and leaves no such word.
    """
    if code == 128 + signal.SIGKILL and out_of_memory and killed_by is None:
        return Death("its commands used up its memory, and the kernel killed its guest too", exhausted=True)
    return Death(_cause(code, killed_by))


def _cause(code: int | None, killed_by: int | None) -> str:
    if code is None:
        return "it ended, and the engine does not say how"
    if code > 128 and killed_by == code - 128:
        return f"it was killed from outside ({_signal_name(killed_by)})"
    if code in _GUEST_EXITS:
        return _GUEST_EXITS[code]
    if code > 128:
        return f"its guest was killed by {_signal_name(code - 128)}, though not through the engine"
    return f"its guest exited with status {code}"


def with_last_words(death: Death, stderr: bytes) -> Death:
    """The same, and what was said on the guest's stderr: mostly the runtime, about a guest that it could not run."""
    words = " ".join(stderr.decode("utf-8", "replace").split())[:_WORDS_BOUND]
    if not words:
        return death
    return Death(f"{death.cause or 'it ended'} ({words.rstrip('.')})", exhausted=death.exhausted)


def _number(text: object) -> int | None:
    value = str(text)
    return int(value) if value.isdigit() else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
