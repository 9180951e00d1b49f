"""The world of the services, whose receivers are real servers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.edge.services.world import FakeWorld, World, fake_world, real_world


@pytest.fixture(params=[fake_world, real_world], ids=["memory", "nats"])
async def edge(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with request.param(tmp_path) as made:
        yield made


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeWorld]:
    async with fake_world(tmp_path) as made:
        yield made
