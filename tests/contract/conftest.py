from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.bus_pairs import BUS_PAIRS, BusPair


@pytest.fixture(params=list(BUS_PAIRS))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BusPair]:
    """Every bus contract test runs in each world."""
    async with BUS_PAIRS[request.param](tmp_path) as made:
        yield made
