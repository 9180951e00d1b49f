"""Running services: `edge` over the fake bus and a real broker, `fake` for tests that control the broker."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.edge_services import EdgeServicesRig, FakeBusServicesRig, fake_bus_services, nats_services


@pytest.fixture(params=[fake_bus_services, nats_services], ids=["memory", "nats"])
async def edge(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[EdgeServicesRig]:
    async with request.param(tmp_path) as made:
        yield made


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeBusServicesRig]:
    async with fake_bus_services(tmp_path) as made:
        yield made
