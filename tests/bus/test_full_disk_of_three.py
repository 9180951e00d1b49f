"""Three nats-servers of which one's disk is full below `max_file_store`: the other two do the work."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from msgspec import Struct
from msgspec.structs import replace

from bus.health import BrokerStatus
from bus.interface import Bus, BusError
from bus.nats.topology import STATE
from bus.open import open_edge
from schemas.job import JobKey
from tests.support import small_disk
from tests.support.broker_trio import NAMES, BrokerTrio, run_broker_trio
from tests.support.bus_samples import make_key, make_record
from tests.support.wait import wait_for

DISK_MB = 64
CHANGE_S = 60.0  # for a cluster to elect, to notice, or to catch up
TEXT = "x" * 2000


class CrampedTrio(Struct, frozen=True):
    """Three servers on small disks, reached over all of them; `stored`: what they acknowledged."""

    there: BrokerTrio
    bus: Bus
    stored: dict[JobKey, int]

    @property
    def monitors(self) -> list[str]:
        return self.there.settings.monitor.split(",")

    async def said(self, verb: str, **body: Any) -> dict[str, Any]:
        """What the broker answers as it writes it."""
        js = self.bus.job_queue._jetstream  # type: ignore[attr-defined]
        return json.loads((await js.connection.request(f"$JS.API.{verb}", json.dumps(body).encode())).data)

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

        await wait_for(leads, timeout_s=CHANGE_S)

    async def first_of_all(self) -> str:
        """The server that leads the cluster itself.

        Not by /varz: a server that was asked that once goes on calling itself synced when its disk is full, one that
        was never asked does not.
        """
        async with httpx2.AsyncClient(timeout=60) as client:
            answer = await client.get(f"{self.monitors[0]}/jsz")
        return answer.json()["meta_cluster"]["leader"]

    async def create(self, name: str) -> None:
        self.stored[make_key(name)] = await self.bus.job_store.create(make_key(name), make_record(name, text=TEXT))

    async def until_told(self, what: str, holds: Callable[[BrokerStatus], object]) -> BrokerStatus:
        """Write, whatever becomes of it, until `holds` of the health; what it then says."""
        with anyio.fail_after(CHANGE_S):
            for number in count():
                with suppress(BusError):
                    await self.create(f"{what}-{number}")
                with suppress(BusError):
                    if holds(health := await self.bus.health.status()):
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

        await wait_for(twenty, timeout_s=CHANGE_S)

    async def holds(self) -> dict[JobKey, int]:
        """What the leader has, read one by one; again from the start where nobody leads meanwhile."""
        found: dict[JobKey, int] = {}

        async def read() -> bool:
            with suppress(BusError):
                for name in await self.bus.job_store.keys():
                    entry = await self.bus.job_store.read(name)
                    assert entry is not None
                    found[name] = entry.revision
                return True
            return False

        await wait_for(read, timeout_s=CHANGE_S)
        return found


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Where three brokers' stores are to be, a disk each."""
    small_disk.require_mounts()
    with ExitStack() as disks:
        for name in NAMES:
            disks.enter_context(small_disk.mount_small_disk(tmp_path / name / "jetstream", DISK_MB))
        yield tmp_path


@pytest.fixture
async def cramped(small: Path) -> AsyncIterator[CrampedTrio]:
    async with run_broker_trio(small) as there, open_edge(replace(there.settings, replicas=len(NAMES))) as bus:
        yield CrampedTrio(there, bus, {})
        for name in NAMES:
            said = (small / f"{name}.log").read_text().splitlines()
            print(f"== {name}", *(line for line in said if "[INF]" not in line and "Healthcheck" not in line), sep="\n")  # noqa: T201 - when it failed


async def started_anew(cramped: CrampedTrio, *names: str) -> None:
    """Return when all three do the work again, and the edge is back at one of them.

    Their monitors are asked past the bus: what it finds away it leaves for half a minute.
    """
    for name in names:
        await cramped.there.stop(name)
        cramped.there.start(name)

    async def well() -> bool:
        with suppress(httpx2.HTTPError):
            sound = all([(await asked.get(f"{url}/healthz")).is_success for url in cramped.monitors])
            return sound and cramped.bus.health.is_connected
        return False

    async with httpx2.AsyncClient(timeout=60) as asked:
        await wait_for(well, timeout_s=CHANGE_S)
    health = await cramped.bus.health.status()
    assert (health.write_failed, health.degraded) == (False, ())


async def every_one_holds_all(cramped: CrampedTrio) -> None:
    for name in NAMES:
        await cramped.led_by(name)
        assert cramped.stored.items() <= (await cramped.holds()).items(), name


@pytest.mark.long(22)
@pytest.mark.timeout(300)
async def test_a_full_disk_under_the_leader_costs_an_election_and_no_record(cramped: CrampedTrio):
    full = await cramped.first_of_all()
    await cramped.led_by(full)
    await cramped.goes_on()
    ballast = small_disk.fill_disk(cramped.there.folder / full / "jetstream")
    health = await cramped.until_told("full", lambda health: health.degraded)
    assert (health.write_failed, health.is_durable) == (False, True)
    assert [line.split(" could not write")[0] for line in health.degraded] == [f"server {full} of the broker"]
    await cramped.goes_on()
    ballast.unlink()
    await cramped.goes_on()
    assert (await cramped.bus.health.status()).degraded == health.degraded
    await started_anew(cramped, full)
    await every_one_holds_all(cramped)


@pytest.mark.long(17)
@pytest.mark.timeout(300)
async def test_of_three_servers_one_with_a_full_disk_stops_nobody_and_two_stop_all(cramped: CrampedTrio):
    first = await cramped.first_of_all()
    *full, leader = sorted(NAMES, key=lambda name: name == first)
    await cramped.led_by(leader)
    await cramped.goes_on()
    ballast = [small_disk.fill_disk(cramped.there.folder / full[0] / "jetstream")]
    health = await cramped.until_told("one", lambda health: health.degraded)
    assert (health.write_failed, health.is_durable, len(health.degraded)) == (False, True, 1)
    await cramped.goes_on()
    ballast.append(small_disk.fill_disk(cramped.there.folder / full[1] / "jetstream"))
    await cramped.until_told("two", lambda health: health.write_failed)
    for one in ballast:
        one.unlink()
    await started_anew(cramped, *full)
    await cramped.goes_on()
    await every_one_holds_all(cramped)
