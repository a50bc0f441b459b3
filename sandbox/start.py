"""A sandbox's beginning and its end: a container around a block, and what its guest must be before it serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from sandbox.calls import perform
from sandbox.channel import Channel
from sandbox.engine import Attachment, ContainerPlan, Engine
from sandbox.errors import EngineUnavailable, SandboxError, SandboxLost, SandboxStartError
from sandbox.outcome import check_transfer
from sandbox.request import Defaults, check_request
from sandbox.shield import Step, finish
from sandbox.spec import Network, SandboxSpec
from sandbox.wire import Feature, Hello, Status

_REMOVE = 30.0
_CLOSE = 45.0


@asynccontextmanager
async def launched(engine: Engine, plan: ContainerPlan) -> AsyncIterator[Attachment]:
    """A container around the block; its end survives every cancellation."""
    attachment: Attachment | None = None

    async def end() -> None:
        if attachment is not None:
            await attachment.stream.aclose()
        await engine.remove(plan.name, deadline=_REMOVE)

    try:
        attachment = await engine.launch(plan)
        yield attachment
    except BaseException as error:
        try:
            await _finish(end, plan.name)
        except SandboxError as second:
            error.add_note(str(second))
        raise
    else:
        await _finish(end, plan.name)


async def _finish(end: Step, name: str) -> None:
    if not await finish(end, deadline=_CLOSE):
        raise EngineUnavailable(
            f"The engine did not remove the container {name} within {_CLOSE:.0f} s; run `python -m sandbox sweep` when "
            "it answers again."
        )


async def greet(channel: Channel, plan: ContainerPlan, defaults: Defaults, timeout: float) -> Hello:
    """Wait for the guest and judge what it found; the spec's user and working directory must be there."""
    image = plan.spec.image
    try:
        with anyio.fail_after(timeout):
            hello = await channel.hello()
            _judge(hello, plan.spec)
            call = await perform(channel, check_request(defaults, timeout))
            if call.exit is not None and call.exit.status is Status.REFUSED:
                raise SandboxStartError(
                    f"A container of {image!r} has no room for a process; raise limits.pids or limits.memory."
                )
            check_transfer(call, defaults.workdir)
    except TimeoutError:
        raise SandboxStartError(
            f"The guest in a container of {image!r} was not ready within {timeout:g} s; the engine may be overloaded."
        ) from None
    except SandboxLost:
        raise SandboxStartError(f"The guest in a container of {image!r} did not come up: {channel.reason}.") from None
    except OSError as error:
        raise SandboxStartError(
            f"The working directory {defaults.workdir!r} can't be used in {image!r} ({error.strerror}); create it in "
            "the image or set workdir."
        ) from None
    return hello


def _judge(hello: Hello, spec: SandboxSpec) -> None:
    if hello.pid != 1:
        raise SandboxStartError(f"The guest has the process id {hello.pid} and not 1; use no init of the engine.")
    if Feature.SH not in hello.features:
        raise SandboxStartError(f"The image {spec.image!r} has no executable /bin/sh; use an image with a shell.")
    others = sorted(set(hello.interfaces) - {"lo"})
    if spec.network is Network.NONE and others:
        raise SandboxStartError(
            f"The container has the network interfaces {', '.join(others)} although it must have none; check the "
            "engine's and the runtime's network settings."
        )
