"""Commands that don't want to end, each in its own way. POSIX shell, and ``setsid`` and ``nohup`` where the image has
them; every process of theirs inherits the environment variable by which the host counts them."""

from __future__ import annotations

from dataclasses import dataclass

_LONG = "sleep 100000"


@dataclass(frozen=True, slots=True)
class Adversary:
    """A command, and whether it is a fork bomb, against which only a kill of the whole uid helps."""

    name: str
    command: str
    is_bomb: bool = False


ADVERSARIES = (
    Adversary("setsid", f"setsid {_LONG} & setsid setsid {_LONG} & {_LONG}"),
    Adversary("double fork", f"(setsid sh -c '{_LONG} & {_LONG}' &) ; ( ({_LONG} &) & ) ; {_LONG}"),
    Adversary(
        "ignored TERM", f"trap '' TERM HUP INT QUIT; {_LONG} & (trap '' TERM; {_LONG}; {_LONG}) & {_LONG}; {_LONG}"
    ),
    Adversary(
        "stopped children", f"{_LONG} & kill -STOP $!; (trap '' CONT TERM; {_LONG}) & kill -STOP $!; kill -STOP $$"
    ),
    Adversary("nohup", f"nohup {_LONG} >/dev/null 2>&1 & nohup sh -c '{_LONG}; {_LONG}' >/dev/null 2>&1 & {_LONG}"),
    Adversary("pipelines", f"yes | cat | (trap '' PIPE; {_LONG}) & {_LONG} | {_LONG} & (yes | cat >/dev/null) & wait"),
    Adversary(
        "respawn",
        f"again() {{ setsid sh -c 'trap \"\" TERM; {_LONG}' & }}; trap again TERM HUP INT CONT; "
        "while :; do sleep 0.02; done",
    ),
    Adversary(
        "relay",
        # Each process starts its successor and goes, so whoever lists processes always sees the last one's number.
        'HOP=\'sleep 0.01; setsid sh -c "$HOP" & exit\'; export HOP; setsid sh -c "$HOP" & '
        f"trap '' TERM; {_LONG}; {_LONG}",
    ),
    Adversary(
        "fork bomb", "trap '' TERM; bomb() { bomb | bomb & }; (bomb 2>/dev/null) & while :; do :; done", is_bomb=True
    ),
    Adversary(
        "setsid bomb",
        "B='while :; do setsid sh -c \"$B\" & done 2>/dev/null'; export B; trap '' TERM; sh -c \"$B\" & "
        "while :; do :; done",
        is_bomb=True,
    ),
)
