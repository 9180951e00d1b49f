"""Edges, hosts and their switches over the memory bus, with one clock that tests move by hand."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

from msgspec.structs import replace

from bus.memory import MemoryBroker, MemoryBus
from edge.power.caller import Means
from edge.power.controller import PowerController
from edge.power.drivers.memory import MemoryDriver
from edge.power.drivers.port import Driver
from edge.power.sight import Sight
from edge.services.hosts import HostNotice
from schemas.host import Busy, Offer, Presence, Running
from schemas.job import Job
from schemas.power import PowerRecord, PowerState, Provider
from schemas.switch import CommandHost, HostDeclaration
from tests.edge.services.world import ECHO, Time, World, fake_world

BEAT_S = 5.0
HOST = CommandHost(on=("on",), off=("off",), state=("state",), timezone="UTC")


class Edge:
    """One edge with its controller; `notices` are those it told."""

    def __init__(self, made: World, declared: Mapping[str, HostDeclaration], drivers: Mapping[str, Driver]) -> None:
        self.world = made
        self.names = (f"call-{id(self):x}-{n}" for n in count())
        sight = Sight(made.bus, made.index, made.hosts, made.catalog, made.time)
        means = Means(
            now=made.time, running=made.time.seconds, fresh_id=lambda: next(self.names), dice=lambda: 0.5, tick_s=0.05
        )
        self.power = PowerController(made.bus.power, sight, declared, drivers, means)
        self.notices: list[str] = []
        self.power.listen(self._hear)

    def _hear(self, notice: HostNotice) -> None:
        self.notices.append(f"{notice.kind} {notice.host}")

    async def turn(self, *, calling: bool = True) -> None:
        """One look, the calls that follow from it, and a word of every switch."""
        await self.world.settled()
        await self.world.hosts.refresh()
        for due in await self.power.tick():
            if calling:
                await self.power._make(due)
        for host in self.power._declared:
            await self.power._polls.poll(host)


class Runner:
    """What a host's runner does: it beats while its machine has power, and obeys its record."""

    def __init__(self, host: str, bus: MemoryBus, driver: MemoryDriver, time: Time) -> None:
        self.host, self.driver = host, driver
        self._bus, self._time = bus, time
        self._lives = count(1)
        self._life = ""
        self.crashed = False
        self.work: list[Job] = []
        self.busy = Busy()

    async def beat(self) -> None:
        if self.driver.power is not Provider.ON or self.crashed:
            self._life = ""
            return
        self._life = self._life or f"life-{next(self._lives)}"
        row = await self._bus.power.get(self.host)
        ordered = row is not None and row.value.state in {PowerState.DRAINING, PowerState.STOPPING}
        at = self._time()
        running = tuple(Running(job.owner, job.id, job.endpoint, job.round, 1) for job in self.work)
        offer = Offer(host=self.host, incarnation=self._life, at=at, endpoints=(ECHO,))
        await self._bus.offers.put(self.host, offer)
        here = Presence(host=self.host, incarnation=self._life, at=at, since=at, draining=ordered, running=running)
        await self._bus.hosts.put(self.host, replace(here, busy=self.busy))


class Street:
    """`edges` share one broker; each host has a memory driver that all of them press."""

    def __init__(
        self, edges: list[Edge], drivers: Mapping[str, MemoryDriver], broker: MemoryBroker, time: Time
    ) -> None:
        self.edges = edges
        self.edge = edges[0]
        self.drivers = drivers
        self.broker = broker
        self.time = time
        bus = broker.connect()
        self.bus = bus
        self.runners = {host: Runner(host, bus, driver, time) for host, driver in drivers.items()}

    async def pass_by(self, seconds: float) -> None:
        """Time passes, runners beat, every edge looks."""
        for _ in range(max(1, round(seconds / BEAT_S))):
            self.time.pass_by(seconds=BEAT_S)
            moving = [d for d in self.drivers.values() if d.power in {Provider.STARTING, Provider.STOPPING}]
            for runner in self.runners.values():
                await runner.beat()
            for edge in self.edges:
                await edge.turn()
            for driver in moving:
                driver.settle()

    async def until(self, state: PowerState, host: str = "gpu-1", within_s: float = 7200.0) -> PowerRecord:
        """Let time pass until the host is there."""
        for _ in range(round(within_s / BEAT_S)):
            if (record := await self.record(host)).state is state:
                return record
            await self.pass_by(BEAT_S)
        raise AssertionError(f"{host} did not come to {state}: {await self.record(host)}")

    async def record(self, host: str = "gpu-1") -> PowerRecord:
        row = await self.bus.power.get(host)
        assert row is not None
        return row.value

    async def path(self, host: str = "gpu-1") -> list[str]:
        """The states it went through."""
        return [change.state for change in (await self.record(host)).history]

    async def work_off(self, host: str = "gpu-1") -> None:
        """The runner does everything that waits."""
        made = self.edge.world
        for entry in await made.index.matching("status = 'queued' AND :at > 0", 1, 100):
            await made.finish(entry.recorded.job)


@asynccontextmanager
async def street(
    folder: Path, declared: Mapping[str, HostDeclaration], *, edges: int = 1, slow: bool = True
) -> AsyncIterator[Street]:
    """`edges` edges that have been connected for a while, over hosts that are off."""
    time = Time()
    broker = MemoryBroker(time.seconds)
    drivers = {host: MemoryDriver(slow=slow) for host in declared}
    async with AsyncExitStack() as stack:
        worlds = [await stack.enter_async_context(fake_world(folder / f"{n}", broker, time)) for n in range(edges)]
        made = Street([Edge(one, declared, drivers) for one in worlds], drivers, broker, time)
        await made.pass_by(60)
        yield made
