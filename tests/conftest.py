"""What the tests of the sandbox share: both backends, a fake engine, and the real one where there is one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sandbox.testing import FakeEngine


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every test that awaits runs on both."""
    return str(request.param)


@pytest.fixture
async def fake_engine() -> AsyncIterator[FakeEngine]:
    """An engine in memory."""
    async with FakeEngine() as engine:
        yield engine
