"""The figures, in the order in which they are measured, with the bars that the project set itself."""

from __future__ import annotations

from sandbox.bench import calls, kills, memory, starts, survivors
from sandbox.bench.bench import Figure
from sandbox.bench.figure import Bar, Line
from sandbox.spec import MIB

FIGURES = (
    Figure("call", (Line("a call, over a host subprocess of the same shell", Bar("at most", 2.5)),), calls.call),
    Figure("exec", (Line("a call, faster than docker exec through the SDK", Bar("at least", 25)),), calls.exec_),
    Figure("cpu", (Line("CPU a call, less than docker exec, all processes", Bar("at least", 20)),), calls.cpu),
    Figure("start", (Line("a start, over create, attach, start by the raw API", Bar("at most", 1.15)),), starts.start),
    Figure("idle", (Line("memory that the guest adds to an idle sandbox", Bar("at most", MIB, "B")),), memory.idle),
    Figure(
        "kill",
        (
            Line("SIGKILL of the controller: no container runs after (worst)", Bar("at most", 2.0, "s")),
            Line("SIGKILL of the controller: left after a sweep", Bar("at most", 0, "")),
        ),
        kills.kill,
    ),
    Figure(
        "survivors",
        (
            Line("survivors of timeouts, counted from the host", Bar("at most", 0, "")),
            Line("innocents hit by timeouts", Bar("at most", 0, "")),
        ),
        survivors.survivors,
    ),
    Figure(
        "flood",
        (
            Line("growth of the controller while a command prints 1 GB", Bar("at most", 16 * MIB, "B")),
            Line("the same, watched by a callback that drops it", Bar("at most", 16 * MIB, "B")),
        ),
        memory.flood,
    ),
)
