"""The edge over the fake bus, served by a real uvicorn."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.served_edge import (
    ServedEdge,
    serve_edge,
)


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[ServedEdge]:
    async with serve_edge(tmp_path) as made:
        yield made
