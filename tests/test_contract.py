"""The contract of :mod:`sandbox.testing`, kept by the fake engine and by the real one."""

from __future__ import annotations

import textwrap
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from sandbox import Sandbox, SandboxSpec, open_sandbox
from sandbox.docker import DockerEngine
from sandbox.testing import CONTRACT, FakeEngine
from sandbox.testing.contract import Behaviour, commands, lifetimes, output, transfers

pytestmark = pytest.mark.anyio

IMAGE = "shell-agent-sandbox/minimal:latest"

behaviours = pytest.mark.parametrize("behaviour", CONTRACT, ids=lambda behaviour: behaviour.__name__)


@behaviours
async def test_the_fake_engine_keeps_the_contract(behaviour: Behaviour) -> None:
    async with FakeEngine() as engine:

        def open_box(**changes: Any) -> AbstractAsyncContextManager[Sandbox]:
            return open_sandbox(SandboxSpec(**{"image": "any", **changes}), engine=engine)

        await behaviour(open_box)
        assert await engine.containers() == []


@pytest.mark.engine
@behaviours
async def test_the_docker_engine_keeps_the_contract(behaviour: Behaviour) -> None:
    names: set[str] = set()
    async with DockerEngine.from_environment() as engine:

        @asynccontextmanager
        async def open_box(**changes: Any) -> AsyncIterator[Sandbox]:
            async with open_sandbox(SandboxSpec(**{"image": IMAGE, **changes}), engine=engine) as box:
                names.add(box.info.name)
                yield box

        await behaviour(open_box)
        assert not names & {container.name for container in await engine.containers()}


def test_the_fakes_example_runs() -> None:
    import sandbox.testing as module

    assert module.__doc__
    exec(textwrap.dedent(module.__doc__.partition("::\n")[2]), {})


def test_the_contract_names_every_behaviour_once() -> None:
    found = {
        value
        for module in (commands, lifetimes, output, transfers)
        for value in vars(module).values()
        if callable(value) and value.__module__ == module.__name__
    }
    assert found == set(CONTRACT)
    assert len(CONTRACT) == len(found)
