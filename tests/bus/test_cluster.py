"""Three brokers on loopback: streams are kept on as many as is said, and what says nothing of it changes nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from bus.interface import BusError
from bus.nats.topology import STREAMS
from bus.open import open_edge
from bus.settings import BrokerSettings
from schemas.job import Pointer, Priority
from tests.support.broker_trio import run_broker_trio
from tests.support.bus_samples import make_key, make_progress, make_record


@pytest.fixture
async def settings(tmp_path: Path) -> AsyncIterator[BrokerSettings]:
    async with run_broker_trio(tmp_path) as there:
        yield there.settings


async def replicas(settings: BrokerSettings) -> set[int]:
    """On how many servers the streams are kept, as an edge with these settings leaves it."""
    async with open_edge(settings) as bus:
        js = bus.job_queue._jetstream  # type: ignore[attr-defined]
        return {(await js.stream_info(stream.name)).config.num_replicas for stream in STREAMS}


@pytest.mark.long(16)
async def test_replicas_are_raised_kept_and_lowered_as_the_setting_says(settings: BrokerSettings):
    assert await replicas(settings) == {1}
    async with open_edge(settings) as bus:
        await bus.job_store.create(make_key(), make_record())
        health = await bus.health.status()
        assert (health.is_durable, health.used_share < 0.1) == (True, True)
    assert await replicas(replace(settings, replicas=3)) == {3}
    assert await replicas(settings) == {3}
    with pytest.raises(BusError, match=r"lower \[broker\] replicas"):
        await replicas(replace(settings, replicas=5))
    assert await replicas(replace(settings, replicas=1)) == {1}
    async with open_edge(settings) as bus:
        assert await bus.job_store.read(make_key()) is not None


async def test_what_is_said_again_while_servers_agree_on_it_is_stored_once(settings: BrokerSettings):
    """A runner whose answer was lost, two edges that offer the same job: a cluster calls the second a conflict."""
    pointer = Pointer("echo", Priority.NORMAL, "me", "one", 1)
    async with open_edge(replace(settings, replicas=3)) as one, open_edge(settings) as other:
        await one.job_queue.ensure_consumers(["echo"])
        for number in range(10):
            async with anyio.create_task_group() as tasks:
                for bus in (one, other, one, other):
                    tasks.start_soon(bus.feed.publish, make_key(), make_progress(number))
                    tasks.start_soon(bus.job_queue.publish, pointer._replace(id=f"job-{number}"))
        assert len(await one.feed.messages(make_key())) == 10
        delivered = [await one.job_queue.fetch("echo", Priority.NORMAL) for _ in range(11)]
        assert {one.pointer.id for one in delivered if one} == {f"job-{number}" for number in range(10)}
        assert delivered[-1] is None
