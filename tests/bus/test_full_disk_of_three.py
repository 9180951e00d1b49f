"""Three nats-servers of which one's disk is full below `max_file_store`: the other two do the work."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from msgspec import Struct
from msgspec.structs import replace

from bus.connection import open_edge
from bus.port import Bus, BusError, Health
from bus.topology import STATE
from schemas.job import JobKey
from tests.broker import until
from tests.bus.samples import key, recorded
from tests.bus.three import NAMES, Three, three
from tests.chaos import disk

DISK_MB = 64
CHANGE_S = 60.0  # for a cluster to elect, to notice, or to catch up
TEXT = "x" * 2000


class Cramped(Struct, frozen=True):
    """Three servers on small disks, reached over all of them; `stored`: what they acknowledged."""

    there: Three
    bus: Bus
    stored: dict[JobKey, int]

    @property
    def monitors(self) -> list[str]:
        return self.there.settings.monitor.split(",")

    async def said(self, verb: str, **body: Any) -> dict[str, Any]:
        """What the broker answers as it writes it."""
        js = self.bus.queue._js  # type: ignore[attr-defined]
        return json.loads((await js.wire.request(f"$JS.API.{verb}", json.dumps(body).encode())).data)

    async def leader(self) -> str:
        """The server that leads STATE; empty between two."""
        with suppress(BusError):
            return (await self.said(f"STREAM.INFO.{STATE.name}"))["cluster"].get("leader", "")
        return ""

    async def led_by(self, name: str) -> None:
        """Return when that server leads STATE."""

        async def leads() -> bool:
            if await self.leader() == name:
                return True
            with suppress(BusError):
                await self.said(f"STREAM.LEADER.STEPDOWN.{STATE.name}", placement={"preferred": name})
            return False

        await until(leads, within_s=CHANGE_S)

    async def first_of_all(self) -> str:
        """The server that leads the cluster itself.

        Not by /varz: a server that was asked that once goes on calling itself synced when its disk is full, one that
        was never asked does not.
        """
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{self.monitors[0]}/jsz")
        return answer.json()["meta_cluster"]["leader"]

    async def create(self, name: str) -> None:
        self.stored[key(name)] = await self.bus.records.create(key(name), recorded(name, text=TEXT))

    async def until_told(self, what: str, holds: Callable[[Health], object]) -> Health:
        """Write, whatever becomes of it, until `holds` of the health; what it then says."""
        with anyio.fail_after(CHANGE_S):
            for number in count():
                with suppress(BusError):
                    await self.create(f"{what}-{number}")
                with suppress(BusError):
                    if holds(health := await self.bus.link.health()):
                        return health
        raise AssertionError

    async def goes_on(self) -> None:
        """Return once twenty writes in a row were acknowledged."""
        tries = count()

        async def twenty() -> bool:
            with suppress(BusError):
                for number in range(20):
                    await self.create(f"on-{len(self.stored)}-{next(tries)}-{number}")
                return True
            return False

        await until(twenty, within_s=CHANGE_S)

    async def holds(self) -> dict[JobKey, int]:
        """What the leader has, read one by one; again from the start where nobody leads meanwhile."""
        found: dict[JobKey, int] = {}

        async def read() -> bool:
            with suppress(BusError):
                for name in await self.bus.records.keys():
                    entry = await self.bus.records.read(name)
                    assert entry is not None
                    found[name] = entry.revision
                return True
            return False

        await until(read, within_s=CHANGE_S)
        return found


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Where three brokers' stores are to be, a disk each."""
    disk.needed()
    with ExitStack() as disks:
        for name in NAMES:
            disks.enter_context(disk.small(tmp_path / name / "jetstream", DISK_MB))
        yield tmp_path


@pytest.fixture
async def cramped(small: Path) -> AsyncIterator[Cramped]:
    async with three(small) as there, open_edge(replace(there.settings, replicas=len(NAMES))) as bus:
        yield Cramped(there, bus, {})
        for name in NAMES:
            said = (small / f"{name}.log").read_text().splitlines()
            print(f"== {name}", *(line for line in said if "[INF]" not in line and "Healthcheck" not in line), sep="\n")  # noqa: T201 - when it failed


async def started_anew(cramped: Cramped, *names: str) -> None:
    """Return when all three do the work again, and the edge is back at one of them.

    Their monitors are asked past the bus: what it finds away it leaves for half a minute.
    """
    for name in names:
        await cramped.there.stop(name)
        cramped.there.start(name)

    async def well() -> bool:
        with suppress(httpx.HTTPError):
            sound = all([(await asked.get(f"{url}/healthz")).is_success for url in cramped.monitors])
            return sound and cramped.bus.link.connected
        return False

    async with httpx.AsyncClient() as asked:
        await until(well, within_s=CHANGE_S)
    health = await cramped.bus.link.health()
    assert (health.halted, health.ailing) == (False, ())


async def every_one_holds_all(cramped: Cramped) -> None:
    for name in NAMES:
        await cramped.led_by(name)
        assert cramped.stored.items() <= (await cramped.holds()).items(), name


@pytest.mark.long(22)
@pytest.mark.timeout(300)
async def test_a_full_disk_under_the_leader_costs_an_election_and_no_record(cramped: Cramped):
    full = await cramped.first_of_all()
    await cramped.led_by(full)
    await cramped.goes_on()
    ballast = disk.fill(cramped.there.folder / full / "jetstream")
    health = await cramped.until_told("full", lambda health: health.ailing)
    assert (health.halted, health.synced) == (False, True)
    assert [line.split(" could not write")[0] for line in health.ailing] == [f"server {full} of the broker"]
    await cramped.goes_on()
    ballast.unlink()
    await cramped.goes_on()
    assert (await cramped.bus.link.health()).ailing == health.ailing
    await started_anew(cramped, full)
    await every_one_holds_all(cramped)


@pytest.mark.long(17)
@pytest.mark.timeout(300)
async def test_of_three_servers_one_with_a_full_disk_stops_nobody_and_two_stop_all(cramped: Cramped):
    first = await cramped.first_of_all()
    *full, leader = sorted(NAMES, key=lambda name: name == first)
    await cramped.led_by(leader)
    await cramped.goes_on()
    ballast = [disk.fill(cramped.there.folder / full[0] / "jetstream")]
    health = await cramped.until_told("one", lambda health: health.ailing)
    assert (health.halted, health.synced, len(health.ailing)) == (False, True, 1)
    await cramped.goes_on()
    ballast.append(disk.fill(cramped.there.folder / full[1] / "jetstream"))
    await cramped.until_told("two", lambda health: health.halted)
    for one in ballast:
        one.unlink()
    await started_anew(cramped, *full)
    await cramped.goes_on()
    await every_one_holds_all(cramped)
