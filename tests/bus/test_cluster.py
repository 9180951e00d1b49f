"""Three brokers on loopback: streams are kept on as many as is said, and what says nothing of it changes nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from bus.connection import open_edge
from bus.port import BusError
from bus.settings import BrokerSettings
from bus.topology import STREAMS
from tests.bus.samples import key, recorded
from tests.bus.three import three


@pytest.fixture
async def settings(tmp_path: Path) -> AsyncIterator[BrokerSettings]:
    async with three(tmp_path) as there:
        yield there.settings


async def replicas(settings: BrokerSettings) -> set[int]:
    """On how many servers the streams are kept, as an edge with these settings leaves it."""
    async with open_edge(settings) as bus:
        js = bus.queue._js  # type: ignore[attr-defined]
        return {(await js.info(stream.name)).config.num_replicas for stream in STREAMS}


async def test_replicas_are_raised_kept_and_lowered_as_the_setting_says(settings: BrokerSettings):
    assert await replicas(settings) == {1}
    async with open_edge(settings) as bus:
        await bus.records.create(key(), recorded())
        health = await bus.link.health()
        assert (health.synced, health.used < 0.1) == (True, True)
    assert await replicas(replace(settings, replicas=3)) == {3}
    assert await replicas(settings) == {3}
    with pytest.raises(BusError, match=r"lower \[broker\] replicas"):
        await replicas(replace(settings, replicas=5))
    assert await replicas(replace(settings, replicas=1)) == {1}
    async with open_edge(settings) as bus:
        assert await bus.records.read(key()) is not None
