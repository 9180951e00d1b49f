"""What nats-server does when its disk is full below `max_file_store`, and what the edge is told of it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import anyio
import pytest
from msgspec import Struct

from bus.interface import BrokerUnreachable, Bus, BusError
from bus.nats.topology import STATE, WEBHOOK_CURSOR_CONSUMER
from bus.open import open_edge
from bus.server.process import run_server
from schemas.job import JobKey
from tests.support import small_disk
from tests.support.bus_samples import make_key, make_record
from tests.support.nats_broker import BrokerProcess
from tests.support.raw_nats import connect_raw
from tests.support.wait import wait_for

DISK_MB = 32
TEXT = "x" * 2000


class CrampedBroker(Struct, frozen=True):
    """A broker on a small disk; `stored`: what it acknowledged."""

    server: BrokerProcess
    bus: Bus
    folder: Path
    stored: dict[JobKey, int]

    async def create(self, name: str) -> None:
        self.stored[make_key(name)] = await self.bus.job_store.create(make_key(name), make_record(name, text=TEXT))

    async def until_refused(self) -> None:
        """Write until a write fails."""
        with anyio.fail_after(60), suppress(BrokerUnreachable):
            for number in count():
                await self.create(f"more-{number}")

    async def unjudged(self) -> int:
        """How many states the edges have still to look at, for whom webhooks are sent."""
        async with connect_raw(self.server) as broker:
            return int((await broker.api(f"CONSUMER.INFO.{STATE.name}.{WEBHOOK_CURSOR_CONSUMER}"))["num_pending"])

    async def holds(self) -> dict[JobKey, int]:
        """What is there, read one by one."""
        read = {name: await self.bus.job_store.read(name) for name in await self.bus.job_store.keys()}
        return {name: entry.revision for name, entry in read.items() if entry is not None}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    small_disk.require_mounts()
    with small_disk.mount_small_disk(tmp_path / "broker", DISK_MB):
        yield tmp_path / "broker"


@pytest.fixture
async def cramped(small: Path) -> AsyncIterator[CrampedBroker]:
    server = BrokerProcess(small)
    async with run_server(server), open_edge(server.settings("edge")) as bus:
        yield CrampedBroker(server, bus, small, {})
        said = (small / "nats-server.log").read_text().splitlines()
        print("\n".join(line for line in said if "[INF]" not in line))  # noqa: T201 - shown when the test failed


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_broker_without_room_stores_nothing_more_until_it_is_started_anew(cramped: CrampedBroker, how: str):
    for number in range(50):
        await cramped.create(f"before-{number}")
    assert not (await cramped.bus.health.status()).write_failed
    ballast = small_disk.fill_disk(cramped.folder)
    await cramped.until_refused()
    assert (await cramped.bus.health.status()).write_failed
    ballast.unlink()
    with pytest.raises(BrokerUnreachable):
        await cramped.create("too-early")
    assert (await cramped.bus.health.status()).write_failed
    await getattr(cramped.server, how)()
    await cramped.server.start()

    async def well() -> bool:
        try:
            return not (await cramped.bus.health.status()).write_failed
        except BusError:
            return False

    await wait_for(well)
    await cramped.create("after")
    assert cramped.stored.items() <= (await cramped.holds()).items()
    assert await cramped.unjudged() >= len(cramped.stored)
