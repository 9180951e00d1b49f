"""The world of the services, running."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.edge.services.world import World, world


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made
