"""The host's cards as its jobs use them: judged by every reading, promised to containers, metered while these run."""

from collections.abc import Awaitable, Callable

import anyio
from msgspec.structs import replace

from runner.gpu import health, metering
from runner.gpu.health import gpu_reports
from runner.gpu.placement import Placed, PlacementCapacity, Unplaceable, VramReservation, free_mb, place
from runner.gpu.port import GpuMonitor
from runner.gpu.process_owner import OwnProcesses
from runner.settings import GpuSettings
from schemas.endpoint import Endpoint
from schemas.gpu import GpuHealth, GpuHealthStatus, GpuMonitorState, GpuSample, GpuSnapshot, XidEvent
from schemas.host import GpuReport
from schemas.job import AttemptUsage

PidLookup = Callable[[str], Awaitable[int | None]]
"""The process that a handle of the engine stands for; None where it stands for a container."""

WARM_STATUSES = frozenset({GpuHealthStatus.FIT, GpuHealthStatus.HOT})  # what waits on such a card may go on waiting


async def no_pid(_: str) -> int | None:
    """Of an engine whose containers are containers."""
    return None


class GpuAllocation:
    """The cards one container has, from before it starts until it is removed. `idle`: it waits for its job."""

    def __init__(self, cards: "GpuAllocator", uuids: tuple[str, ...], vram_mb: int, *, idle: bool = False) -> None:
        self._allocator = cards
        self._vram_mb = vram_mb
        self._meter: metering.GpuMeter | None = None
        self._pid: int | None = None
        self.uuids = uuids
        self.is_idle = idle
        self.container: str | None = None
        self.xid: int | None = None

    async def container_started(self, handle: str) -> None:
        """The container of this handle is there, and no job's yet."""
        self.container = handle
        self._pid = await self._allocator.pid_of(handle)

    async def job_started(self, handle: str, now: float) -> None:
        """The container of this handle runs a job on them from now on (monotonic seconds)."""
        if self.container != handle:
            await self.container_started(handle)
        self.is_idle = False
        self._meter = metering.start_meter(self.uuids, self.own_processes, self._allocator.snapshot.samples, now)

    def usage(self, now: float) -> AttemptUsage:
        """What the container took, when it has ended; blank when it never ran."""
        if self._meter is None:
            return AttemptUsage()
        return metering.compute_usage(
            self._meter, now, self._allocator.settings.price, self._allocator.count_sharers(self)
        )

    def mark_faulty(self, why: str) -> None:
        """The job says that its cards are not usable."""
        self._allocator.mark_faulty(self.uuids, why)

    def release(self) -> None:
        """The container has exited, or is gone. Once is enough."""
        self._allocator.free(self)

    @property
    def own_processes(self) -> OwnProcesses:
        """The container, as card processes are recognised by."""
        return OwnProcesses(
            containers=frozenset({self.container} if self.container else ()),
            pids=frozenset({self._pid} if self._pid else ()),
            gpus=frozenset(self.uuids),
        )

    def reservations(self) -> list[VramReservation]:
        """What is promised, card by card."""
        return [VramReservation(uuid, self._vram_mb, self.container, self._pid, self.is_idle) for uuid in self.uuids]

    def record(self, samples: tuple[GpuSample, ...], now: float, sharers: int) -> None:
        """One reading of the cards."""
        if self._meter is not None:
            self._meter = metering.record_sample(self._meter, samples, now, sharers)


class GpuAllocator:
    """`clock` is monotonic, in seconds."""

    def __init__(
        self, gpus: GpuMonitor, settings: GpuSettings, clock: Callable[[], float], pid_of: PidLookup = no_pid
    ) -> None:
        self._monitor = gpus
        self._clock = clock
        self._health: dict[str, GpuHealth] = {}
        self._allocations: list[GpuAllocation] = []
        self.settings = settings
        self.pid_of = pid_of

    @property
    def snapshot(self) -> GpuSnapshot:
        """The latest reading."""
        return self._monitor.snapshot()

    async def run(self) -> None:
        """Judge every reading and every XID, without end."""
        with self._monitor.events() as events:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._follow_snapshots)
                async for event in events:
                    self._handle_xid(event)

    def place(self, endpoint: Endpoint, disk_free_mb: int | None, *, ahead: bool = False) -> Placed | Unplaceable:
        """The cards a container of `endpoint` would get now, with so many MiB free where jobs write.

        `ahead`: one that is to wait for its job. None: the disk was measured just now.
        """
        supply = PlacementCapacity(self.snapshot, self._health, self._reservations, disk_free_mb)
        return place(supply, endpoint.resources, self.settings.placement, ahead=ahead)

    def can_start(self, holding: GpuAllocation, endpoint: Endpoint) -> bool:
        """Whether the container that waits on these cards could start its job on them now."""
        snapshot = self.snapshot
        here = tuple(sample for sample in snapshot.samples if sample.uuid in holding.uuids)
        supply = PlacementCapacity(replace(snapshot, samples=here), self._health, self._reservations)
        return isinstance(place(supply, endpoint.resources, self.settings.placement), Placed)

    def is_unfit(self, holding: GpuAllocation) -> bool:
        """Whether a container that waits on these cards should give them up: one erred, or its owner wants it."""
        fit = all(self._health_of(uuid).status in WARM_STATUSES for uuid in holding.uuids)
        return holding.xid is not None or not fit

    def must_evict_warm(self, holding: GpuAllocation) -> bool:
        """Whether what waits on these cards must go, so that the container of this holding finds its room."""
        reserve = self.settings.placement.reserve_mb
        here = [sample for sample in self.snapshot.samples if sample.uuid in holding.uuids]
        return any(
            free_mb(sample, [one for one in self._reservations if one.uuid == sample.uuid]) < reserve for sample in here
        )

    def allocate(self, uuids: tuple[str, ...], endpoint: Endpoint | None, *, idle: bool = False) -> GpuAllocation:
        """Promise these cards to one container."""
        holding = GpuAllocation(self, uuids, endpoint.resources.vram_mb if endpoint else 0, idle=idle)
        self._allocations.append(holding)
        return holding

    def is_in_use(self, uuid: str) -> bool:
        """Whether any container has this card."""
        return any(uuid in holding.uuids for holding in self._allocations)

    def foreign_gpus(self) -> tuple[str, ...]:
        """The cards that other people's programs use, or did a moment ago."""
        now = self._clock()
        return tuple(
            one.uuid for one in self._health.values() if health.describe_foreign_use(one, now, self.settings.fitness)
        )

    def probe_candidates(self) -> tuple[str, ...]:
        """The cards that erred and may prove themselves now: nothing still shows, and nobody has them."""
        return tuple(
            judged.uuid
            for judged in self._health.values()
            if judged.needs_probe and judged.status is not GpuHealthStatus.LOST and not self.is_in_use(judged.uuid)
        )

    def clear_fault(self, uuid: str) -> None:
        """A probe has run well on this card."""
        self._health[uuid] = health.clear_fault(self._health_of(uuid), self._clock())

    def free(self, holding: GpuAllocation) -> None:
        """Only holdings call this."""
        if holding in self._allocations:
            self._allocations.remove(holding)

    def count_sharers(self, holding: GpuAllocation) -> int:
        """How many jobs use the cards of `holding`, itself included."""
        return sum(
            1
            for one in self._allocations
            if one is holding or (not one.is_idle and set(one.uuids) & set(holding.uuids))
        )

    def mark_faulty(self, uuids: tuple[str, ...], why: str) -> None:
        """A job says that these cards are not usable: nothing starts there until they have proved themselves."""
        for uuid in uuids:
            self._health[uuid] = health.mark_faulty(self._health_of(uuid), why, self._clock())

    def reports(self) -> tuple[GpuReport, ...]:
        """The cards as `GET /v1/hosts` shows them."""
        return gpu_reports(self.snapshot, self._health)

    async def _follow_snapshots(self) -> None:
        reading = self._monitor.snapshot()
        while True:
            self._apply_snapshot(reading)
            reading = await self._monitor.wait_for_change(reading)

    def _apply_snapshot(self, reading: GpuSnapshot) -> None:
        now = self._clock()
        self._health = health.assess_all(self._health, reading, now, self._own_processes, self.settings.fitness)
        if reading.state is GpuMonitorState.OK:  # else the samples are history
            for holding in self._allocations:
                holding.record(reading.samples, now, self.count_sharers(holding))

    @property
    def _own_processes(self) -> OwnProcesses:
        every = [holding.own_processes for holding in self._allocations]
        return OwnProcesses(
            containers=frozenset().union(*(one.containers for one in every)),
            pids=frozenset().union(*(one.pids for one in every)),
            gpus=frozenset().union(*(one.gpus for one in every)),
        )

    @property
    def _reservations(self) -> tuple[VramReservation, ...]:
        return tuple(one for holding in self._allocations for one in holding.reservations())

    def _handle_xid(self, event: XidEvent) -> None:
        if not event.uuid:  # the driver did not say which card: it cannot be held against any
            return
        struck = health.handle_xid(self._health_of(event.uuid), event, self._clock(), self.settings.fitness)
        self._health[event.uuid] = struck
        grave = event.xid not in self.settings.fitness.application_xids
        for holding in self._allocations:
            if event.uuid in holding.uuids and (holding.xid is None or grave):
                holding.xid = event.xid

    def _health_of(self, uuid: str) -> GpuHealth:
        return self._health.get(uuid) or GpuHealth(uuid)
