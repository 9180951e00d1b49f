"""Edges, hosts and power drivers over the fake bus, with a clock that tests advance."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

from msgspec.structs import replace

from edge.hosts.registry import HostNotice
from edge.power.controller import PowerController
from edge.power.driver_calls import PowerDependencies
from schemas.endpoint import Endpoint
from schemas.host import ActivityCounts, HostCapabilities, HostHeartbeat, RunningExecution
from schemas.host_config import AnyHostConfig, CommandHostConfig, PoolConfig
from schemas.job import Job
from schemas.power import PowerDriver, PowerRecord, PowerState, ReportedPower
from tests.support.edge_services import ECHO_ENDPOINT, EdgeServicesRig, ManualClock, fake_bus_services, observe_fleet
from tests.support.fake_bus.broker import FakeBroker, FakeBus
from tests.support.fake_power_driver import FakePowerDriver

HEARTBEAT_INTERVAL_S = 5.0
HOST = CommandHostConfig(on=("on",), off=("off",), state=("state",), timezone="UTC")


class PowerRigEdge:
    """One edge with its controller. `notices`: those that it sent."""

    def __init__(
        self,
        made: EdgeServicesRig,
        declared: Mapping[str, AnyHostConfig],
        drivers: Mapping[str, PowerDriver],
        pools: Mapping[str, PoolConfig] | None = None,
    ) -> None:
        self.world = made
        self.names = (f"call-{id(self):x}-{n}" for n in count())
        dependencies = PowerDependencies(
            table=made.bus.power_records,
            fleet=observe_fleet(made),
            declared=declared,
            drivers=drivers,
            now=made.time,
            monotonic=made.time.seconds,
            new_id=lambda: next(self.names),
            random=lambda: 0.5,
            pools=pools or {},
            tick_interval_s=0.05,
        )
        self.power = PowerController(dependencies)
        self.notices: list[str] = []
        self.power.subscribe(self._hear)

    def _hear(self, notice: HostNotice) -> None:
        self.notices.append(f"{notice.kind} {notice.host}")

    async def tick(self, *, calling: bool = True) -> None:
        """Run one tick and its calls, and poll every driver."""
        await self.world.wait_until_indexed()
        await self.world.hosts.refresh()
        for due in await self.power.tick():
            if calling:
                await self.power._execute_call(due)
        for host in self.power._declared:
            await self.power._poller.poll(host)


class PowerRigRunner:
    """A host's runner: it sends heartbeats while its machine is on, and obeys the power record."""

    def __init__(self, host: str, bus: FakeBus, driver: FakePowerDriver, time: ManualClock) -> None:
        self.host, self.driver = host, driver
        self._bus, self._time = bus, time
        self._lives = count(1)
        self._life = ""
        self.crashed = False
        self.work: list[Job] = []
        self.endpoints: tuple[Endpoint, ...] = (ECHO_ENDPOINT,)
        self.busy = ActivityCounts()
        self.unmet: dict[str, str] = {}
        self.unreadable_by: FakeBroker | None = None  # to its edges, the heartbeats of this runner are not readable

    async def beat(self) -> None:
        if self.driver.power is not ReportedPower.ON or self.crashed:
            self._life = ""
            return
        self._life = self._life or f"life-{next(self._lives)}"
        row = await self._bus.power_records.get(self.host)
        ordered = row is not None and row.value.state in {PowerState.DRAINING, PowerState.STOPPING}
        at = self._time()
        running = tuple(RunningExecution(job.owner, job.id, job.endpoint, job.round, 1) for job in self.work)
        offer = HostCapabilities(
            host=self.host, incarnation=self._life, at=at, endpoints=self.endpoints, unmet=self.unmet
        )
        await self._bus.capabilities.put(self.host, offer)
        here = HostHeartbeat(host=self.host, incarnation=self._life, at=at, since=at, draining=ordered, running=running)
        await self._bus.heartbeats.put(self.host, replace(here, activity=self.busy))
        if self.unreadable_by is not None:
            self.unreadable_by.corrupt(f"$KV.HOSTS.{self.host}", b'{"host": {"of": "a later release"}}')


class PowerRig:
    """Several edges with one broker. All of them use the same fake driver of each host."""

    def __init__(
        self, edges: list[PowerRigEdge], drivers: Mapping[str, FakePowerDriver], broker: FakeBroker, time: ManualClock
    ) -> None:
        self.edges = edges
        self.edge = edges[0]
        self.drivers = drivers
        self.broker = broker
        self.time = time
        bus = broker.connect()
        self.bus = bus
        self.runners = {host: PowerRigRunner(host, bus, driver, time) for host, driver in drivers.items()}

    async def advance(self, seconds: float) -> None:
        """Advance the clock; runners send heartbeats, and every edge ticks."""
        for _ in range(max(1, round(seconds / HEARTBEAT_INTERVAL_S))):
            self.time.advance(seconds=HEARTBEAT_INTERVAL_S)
            moving = [d for d in self.drivers.values() if d.power in {ReportedPower.STARTING, ReportedPower.STOPPING}]
            for runner in self.runners.values():
                await runner.beat()
            for edge in self.edges:
                await edge.tick()
            for driver in moving:
                driver.finish_transition()

    async def wait_for_state(self, state: PowerState, host: str = "gpu-1", within_s: float = 7200.0) -> PowerRecord:
        """Advance the clock until the host is in the state."""
        for _ in range(round(within_s / HEARTBEAT_INTERVAL_S)):
            if (record := await self.record(host)).state is state:
                return record
            await self.advance(HEARTBEAT_INTERVAL_S)
        raise AssertionError(f"{host} did not come to {state}: {await self.record(host)}")

    async def record(self, host: str = "gpu-1") -> PowerRecord:
        row = await self.bus.power_records.get(host)
        assert row is not None
        return row.value

    async def list_states(self, host: str = "gpu-1") -> list[str]:
        """Return the states in the history of the host."""
        return [change.state for change in (await self.record(host)).history]

    async def run_all_jobs(self, host: str = "gpu-1") -> None:
        """Let the runner run all waiting jobs."""
        made = self.edge.world
        for entry in await made.index.find_jobs("status = 'queued' AND :at > 0", 1, 100):
            await made.finish(entry.record.job)


@asynccontextmanager
async def run_power_rig(
    folder: Path,
    declared: Mapping[str, AnyHostConfig],
    *,
    edges: int = 1,
    slow: bool = True,
    pools: Mapping[str, PoolConfig] | None = None,
) -> AsyncIterator[PowerRig]:
    """Yield a rig of `edges` edges that have been connected for a while. All hosts are off."""
    time = ManualClock()
    broker = FakeBroker(time.seconds)
    drivers = {host: FakePowerDriver(slow=slow) for host in declared}
    async with AsyncExitStack() as stack:
        worlds = [
            await stack.enter_async_context(fake_bus_services(folder / f"{n}", broker, time)) for n in range(edges)
        ]
        made = PowerRig([PowerRigEdge(one, declared, drivers, pools) for one in worlds], drivers, broker, time)
        await made.advance(60)
        yield made
