"""Three brokers on loopback: streams are kept on as many as is said, and what says nothing of it changes nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from bus.connection import open_edge
from bus.port import BusError
from bus.settings import BrokerSettings
from bus.topology import STREAMS
from schemas.job import Pointer
from schemas.words import Priority
from tests.bus.samples import key, progress, recorded
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


@pytest.mark.long(16)
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


async def test_what_is_said_again_while_servers_agree_on_it_is_stored_once(settings: BrokerSettings):
    """A runner whose answer was lost, two edges that offer the same job: a cluster calls the second a conflict."""
    pointer = Pointer("echo", Priority.NORMAL, "me", "one", 1)
    async with open_edge(replace(settings, replicas=3)) as one, open_edge(settings) as other:
        await one.queue.ensure(["echo"])
        for number in range(10):
            async with anyio.create_task_group() as tasks:
                for bus in (one, other, one, other):
                    tasks.start_soon(bus.feed.publish, key(), progress(number))
                    tasks.start_soon(bus.queue.publish, pointer._replace(id=f"job-{number}"))
        assert len(await one.feed.notes(key())) == 10
        delivered = [await one.queue.take("echo", Priority.NORMAL) for _ in range(11)]
        assert {one.pointer.id for one in delivered if one} == {f"job-{number}" for number in range(10)}
        assert delivered[-1] is None
