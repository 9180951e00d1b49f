from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.connection import open_edge
from bus.port import Bus
from tests.broker import Broker, broker

HOSTS = ("gpu-1", "gpu-2")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Broker]:
    """A real broker that knows the runners of two hosts."""
    async with broker(tmp_path, hosts=HOSTS) as made:
        yield made


@pytest.fixture
async def edge(server: Broker) -> AsyncIterator[Bus]:
    async with open_edge(server.settings("edge")) as bus:
        yield bus
