from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.bus_worlds import WORLDS, World


@pytest.fixture(params=list(WORLDS))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """Every bus contract test runs in each world."""
    async with WORLDS[request.param](tmp_path) as made:
        yield made
