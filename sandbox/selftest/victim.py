"""The controlling process that the leak check kills: it opens a sandbox, says so, and waits for its death.

It also ends by itself when its stdin does: it must not outlive a check that is killed itself.
"""

from __future__ import annotations

import sys

import anyio

from sandbox import SandboxSpec, open_sandbox
from sandbox.docker import DockerEngine


async def main(address: str, image: str, token: str) -> None:
    """Say "opening", then the container's id when it serves, then wait."""
    async with DockerEngine(address, sweeping=False) as engine:
        print("opening", flush=True)
        async with open_sandbox(SandboxSpec(image=image, labels={"selftest": token}), engine=engine) as box:
            await box.run("sleep 1000 & sleep 1000 & true")
            print(box.container_id, flush=True)
            await anyio.wait_readable(sys.stdin)


if __name__ == "__main__":
    _, address, image, token = sys.argv
    anyio.run(main, address, image, token)
