from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.interface import Bus
from bus.open import open_edge
from tests.support.nats_broker import BrokerProcess, run_broker

HOSTS = ("gpu-1", "gpu-2")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[BrokerProcess]:
    """A real broker that knows the runners of two hosts."""
    async with run_broker(tmp_path, hosts=HOSTS) as made:
        yield made


@pytest.fixture
async def edge(server: BrokerProcess) -> AsyncIterator[Bus]:
    async with open_edge(server.settings("edge")) as bus:
        yield bus
