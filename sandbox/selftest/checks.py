"""The promises, in the order in which they are proved."""

from __future__ import annotations

from sandbox.selftest import basics, episode, latency, leak, stress, walls
from sandbox.selftest.check import Check

DEFAULT_IMAGE = "shell-agent-sandbox/minimal:latest"
"""Made by ``make images``; 2 MB."""

CHECKS = (
    Check("engine", "an engine answers and can enforce the limits", basics.engine),
    Check("image", "the image is here", basics.image),
    Check("start", "a sandbox starts, answers, and is gone afterwards", basics.start),
    Check("shell", "each call is a fresh POSIX shell", basics.shell),
    Check("exit-codes", "exit codes and signals are exact", basics.exit_codes),
    Check("flood", "a flood of output is bounded, and told honestly", basics.flood),
    Check("background", "a call ends with its shell; its children go on", basics.background),
    Check("files", "files go in and out whole, as the user, bounded", basics.files),
    Check("survivors", "a timeout leaves no survivor and hits no bystander", stress.survivors),
    Check("fork-bomb", "a fork bomb ends with its call", stress.fork_bomb),
    Check("memory-hog", "a memory hog is reported, and the next call works", stress.memory_hog),
    Check("network", "there is no network", walls.network),
    Check("escape", "there is no way out, not for root either", walls.escape),
    Check("leak", "SIGKILL of the controller leaves no container", leak.leak),
    Check("latency", "a call costs about what a subprocess costs", latency.latency),
    Check("episode", "a whole agent episode, graded and exported", episode.episode),
)
