"""What nats-server does when its disk is full below `max_file_store`, and what the edge is told of it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import anyio
import pytest
from msgspec import Struct

from bus.connection import open_edge
from bus.port import Bus, BusError, Unreachable
from bus.server import serving
from bus.topology import JUDGING, STATE
from schemas.job import JobKey
from tests.broker import Broker, until
from tests.bus.raw import raw
from tests.bus.samples import key, recorded
from tests.chaos import disk

DISK_MB = 32
TEXT = "x" * 2000


class Cramped(Struct, frozen=True):
    """A broker on a small disk; `stored`: what it acknowledged."""

    server: Broker
    bus: Bus
    folder: Path
    stored: dict[JobKey, int]

    async def create(self, name: str) -> None:
        self.stored[key(name)] = await self.bus.records.create(key(name), recorded(name, text=TEXT))

    async def until_refused(self) -> None:
        """Write until a write fails."""
        with anyio.fail_after(60), suppress(Unreachable):
            for number in count():
                await self.create(f"more-{number}")

    async def unjudged(self) -> int:
        """How many states the edges have still to look at, for whom webhooks are sent."""
        async with raw(self.server) as broker:
            return int((await broker.api(f"CONSUMER.INFO.{STATE.name}.{JUDGING}"))["num_pending"])

    async def holds(self) -> dict[JobKey, int]:
        """What is there, read one by one."""
        read = {name: await self.bus.records.read(name) for name in await self.bus.records.keys()}
        return {name: entry.revision for name, entry in read.items() if entry is not None}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    disk.needed()
    with disk.small(tmp_path / "broker", DISK_MB):
        yield tmp_path / "broker"


@pytest.fixture
async def cramped(small: Path) -> AsyncIterator[Cramped]:
    server = Broker(small)
    async with serving(server), open_edge(server.settings("edge")) as bus:
        yield Cramped(server, bus, small, {})
        said = (small / "nats-server.log").read_text().splitlines()
        print("\n".join(line for line in said if "[INF]" not in line))  # noqa: T201 - shown when the test failed


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_broker_without_room_stores_nothing_more_until_it_is_started_anew(cramped: Cramped, how: str):
    for number in range(50):
        await cramped.create(f"before-{number}")
    assert not (await cramped.bus.link.health()).halted
    ballast = disk.fill(cramped.folder)
    await cramped.until_refused()
    assert (await cramped.bus.link.health()).halted
    ballast.unlink()
    with pytest.raises(Unreachable):
        await cramped.create("too-early")
    assert (await cramped.bus.link.health()).halted
    await getattr(cramped.server, how)()
    await cramped.server.start()

    async def well() -> bool:
        try:
            return not (await cramped.bus.link.health()).halted
        except BusError:
            return False

    await until(well)
    await cramped.create("after")
    assert cramped.stored.items() <= (await cramped.holds()).items()
    assert await cramped.unjudged() >= len(cramped.stored)
