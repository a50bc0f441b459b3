"""Containers for shell agents: one sandbox an episode, each command run once, nothing left behind.

A sandbox is a Docker container with a small guest as its PID 1. Commands run in fresh shells and end as data;
an exception means that the sandbox failed, not the command::

    import anyio
    from sandbox import Limits, SandboxSpec, open_sandbox

    async def main():
        spec = SandboxSpec(image="debian:bookworm-slim", limits=Limits(memory="512MiB", pids=128))
        async with open_sandbox(spec) as box:
            await box.write_file("/srv/numbers", "3\\n1\\n2\\n")
            result = await box.run("sort numbers | head -n 1", cwd="/srv", timeout=10)
            print(result.status, result.exit_code, result.stdout.text)     # exited 0 1

    anyio.run(main)

It runs on asyncio and on trio. :mod:`sandbox.testing` has an engine in memory for the tests of your own code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandbox.calls import Chunk, Running, Watcher
from sandbox.engine import Engine
from sandbox.errors import (
    EngineUnavailable,
    FileTooLarge,
    ImageUnavailable,
    NotAFile,
    SandboxClosed,
    SandboxError,
    SandboxExhausted,
    SandboxLost,
    SandboxRequestError,
    SandboxStartError,
    UserUnknown,
)
from sandbox.localtree import Download
from sandbox.sandbox import Sandbox, SandboxInfo
from sandbox.spec import ExecResult, Limits, Mount, Network, Output, SandboxSpec, Usage

__all__ = [
    "Chunk",
    "Download",
    "Engine",
    "EngineUnavailable",
    "ExecResult",
    "FileTooLarge",
    "ImageUnavailable",
    "Limits",
    "Mount",
    "Network",
    "NotAFile",
    "Output",
    "Running",
    "Sandbox",
    "SandboxClosed",
    "SandboxError",
    "SandboxExhausted",
    "SandboxInfo",
    "SandboxLost",
    "SandboxRequestError",
    "SandboxSpec",
    "SandboxStartError",
    "Usage",
    "UserUnknown",
    "Watcher",
    "open_sandbox",
]


@asynccontextmanager
async def open_sandbox(spec: SandboxSpec, *, engine: Engine | None = None) -> AsyncIterator[Sandbox]:
    """Open a sandbox on ``engine``, or on the Docker engine that the docker CLI would use."""
    if engine is not None:
        async with Sandbox.open(engine, spec) as box:
            yield box
        return
    from sandbox.docker import DockerEngine

    async with DockerEngine.from_environment() as found:
        async with Sandbox.open(found, spec) as box:
            yield box
