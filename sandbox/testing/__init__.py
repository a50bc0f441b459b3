"""For tests of what uses sandboxes: an engine in memory, and the contract that every engine keeps.

The fake speaks the real protocol, so the :class:`sandbox.Sandbox` under test is the genuine one. Its shell knows a few
commands (:mod:`sandbox.testing.shell`); the rest is scripted::

    import anyio
    from sandbox import SandboxSpec, open_sandbox
    from sandbox.testing import FakeEngine, Reply

    def respond(call):
        if call.command == "make test":
            return Reply(stdout="2 failed\\n", exit_code=1)
        return None                                     # the fake's own shell

    async def main():
        async with FakeEngine(respond=respond) as engine:
            async with open_sandbox(SandboxSpec(image="any"), engine=engine) as box:
                assert (await box.run("make test")).exit_code == 1
                assert (await box.run("echo $HOME")).stdout.text == "/root\\n"
                engine.container(box.container_id).die()          # what does my program do now?

    anyio.run(main)
"""

from __future__ import annotations

from sandbox.testing.calls import Invocation, Reply, Responder
from sandbox.testing.contract import CONTRACT, OpenBox
from sandbox.testing.engine import FakeContainer, FakeEngine, Faults
from sandbox.testing.files import FileSystem

__all__ = [
    "CONTRACT",
    "FakeContainer",
    "FakeEngine",
    "Faults",
    "FileSystem",
    "Invocation",
    "OpenBox",
    "Reply",
    "Responder",
]
