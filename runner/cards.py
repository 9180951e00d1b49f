"""The host's cards as its jobs use them: judged by every reading, promised to containers, metered while these run."""

from collections.abc import Awaitable, Callable

import anyio
from msgspec.structs import replace

from runner.gpu import fitness, meter
from runner.gpu.lineage import Ours
from runner.gpu.placement import Placed, Refused, Reservation, Supply, free_mb, place
from runner.gpu.port import Gpus
from runner.gpu.report import reports
from runner.settings import GpuSettings
from schemas.endpoint import Endpoint
from schemas.gpu import Fitness, GpuSample, Judgement, Snapshot, WatchState, XidEvent
from schemas.host import GpuReport
from schemas.job import Usage

PidOf = Callable[[str], Awaitable[int | None]]
"""The process that a handle of the engine stands for; None where it stands for a container."""

USABLE = frozenset({Fitness.FIT, Fitness.HOT})  # what waits on such a card may go on waiting


async def no_pid(_: str) -> int | None:
    """Of an engine whose containers are containers."""
    return None


class Holding:
    """The cards one container has, from before it starts until it is removed. `idle`: it waits for its job."""

    def __init__(self, cards: "Cards", uuids: tuple[str, ...], vram_mb: int, *, idle: bool = False) -> None:
        self._cards = cards
        self._vram_mb = vram_mb
        self._meter: meter.Meter | None = None
        self._pid: int | None = None
        self.uuids = uuids
        self.idle = idle
        self.container: str | None = None
        self.xid: int | None = None

    async def waits(self, handle: str) -> None:
        """The container of this handle is there, and no job's yet."""
        self.container = handle
        self._pid = await self._cards.pid_of(handle)

    async def started(self, handle: str, now: float) -> None:
        """The container of this handle runs a job on them from now on (monotonic seconds)."""
        if self.container != handle:
            await self.waits(handle)
        self.idle = False
        self._meter = meter.begin(self.uuids, self.ours, self._cards.snapshot.samples, now)

    def usage(self, now: float) -> Usage:
        """What the container took, when it has ended; blank when it never ran."""
        if self._meter is None:
            return Usage()
        return meter.bill(self._meter, now, self._cards.settings.price, self._cards.sharers(self))

    def erred(self, why: str) -> None:
        """The job says that its cards are not usable."""
        self._cards.erred(self.uuids, why)

    def release(self) -> None:
        """The container has exited, or is gone. Once is enough."""
        self._cards.released(self)

    @property
    def ours(self) -> Ours:
        """The container, as card processes are recognised by."""
        return Ours(
            containers=frozenset({self.container} if self.container else ()),
            pids=frozenset({self._pid} if self._pid else ()),
            gpus=frozenset(self.uuids),
        )

    def reservations(self) -> list[Reservation]:
        """What is promised, card by card."""
        return [Reservation(uuid, self._vram_mb, self.container, self._pid, self.idle) for uuid in self.uuids]

    def take(self, samples: tuple[GpuSample, ...], now: float, sharers: int) -> None:
        """One reading of the cards."""
        if self._meter is not None:
            self._meter = meter.record(self._meter, samples, now, sharers)


class Cards:
    """`clock` is monotonic, in seconds."""

    def __init__(self, gpus: Gpus, settings: GpuSettings, clock: Callable[[], float], pid_of: PidOf = no_pid) -> None:
        self._gpus = gpus
        self._clock = clock
        self._judged: dict[str, Judgement] = {}
        self._held: list[Holding] = []
        self.settings = settings
        self.pid_of = pid_of

    @property
    def snapshot(self) -> Snapshot:
        """The latest reading."""
        return self._gpus.snapshot()

    async def watch(self) -> None:
        """Judge every reading and every XID, without end."""
        with self._gpus.events() as events:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._readings)
                async for event in events:
                    self._struck(event)

    def place(self, endpoint: Endpoint, disk_free_mb: int | None, *, ahead: bool = False) -> Placed | Refused:
        """The cards a container of `endpoint` would get now, with so many MiB free where jobs write.

        `ahead`: one that is to wait for its job. None: the disk was measured just now.
        """
        supply = Supply(self.snapshot, self._judged, self._promised, disk_free_mb)
        return place(supply, endpoint.resources, self.settings.placement, ahead=ahead)

    def takes(self, holding: Holding, endpoint: Endpoint) -> bool:
        """Whether the container that waits on these cards could start its job on them now."""
        snapshot = self.snapshot
        here = tuple(sample for sample in snapshot.samples if sample.uuid in holding.uuids)
        supply = Supply(replace(snapshot, samples=here), self._judged, self._promised)
        return isinstance(place(supply, endpoint.resources, self.settings.placement), Placed)

    def spoilt(self, holding: Holding) -> bool:
        """Whether a container that waits on these cards should give them up: one erred, or its owner wants it."""
        fit = all(self._judgement(uuid).fitness in USABLE for uuid in holding.uuids)
        return holding.xid is not None or not fit

    def crowded(self, holding: Holding) -> bool:
        """Whether what waits on these cards must go, so that the container of this holding finds its room."""
        reserve = self.settings.placement.reserve_mb
        here = [sample for sample in self.snapshot.samples if sample.uuid in holding.uuids]
        return any(
            free_mb(sample, [one for one in self._promised if one.uuid == sample.uuid]) < reserve for sample in here
        )

    def hold(self, uuids: tuple[str, ...], endpoint: Endpoint | None, *, idle: bool = False) -> Holding:
        """Promise these cards to one container."""
        holding = Holding(self, uuids, endpoint.resources.vram_mb if endpoint else 0, idle=idle)
        self._held.append(holding)
        return holding

    def in_use(self, uuid: str) -> bool:
        """Whether any container has this card."""
        return any(uuid in holding.uuids for holding in self._held)

    def foreign(self) -> tuple[str, ...]:
        """The cards that other people's programs use, or did a moment ago."""
        now = self._clock()
        return tuple(one.uuid for one in self._judged.values() if fitness.owner(one, now, self.settings.fitness))

    def suspects(self) -> tuple[str, ...]:
        """The cards that erred and may prove themselves now: nothing still shows, and nobody has them."""
        return tuple(
            judged.uuid
            for judged in self._judged.values()
            if judged.needs_probe and judged.fitness is not Fitness.LOST and not self.in_use(judged.uuid)
        )

    def proved(self, uuid: str) -> None:
        """A probe has run well on this card."""
        self._judged[uuid] = fitness.proved(self._judgement(uuid), self._clock())

    def released(self, holding: Holding) -> None:
        """Only holdings call this."""
        if holding in self._held:
            self._held.remove(holding)

    def sharers(self, holding: Holding) -> int:
        """How many jobs use the cards of `holding`, itself included."""
        return sum(1 for one in self._held if one is holding or (not one.idle and set(one.uuids) & set(holding.uuids)))

    def erred(self, uuids: tuple[str, ...], why: str) -> None:
        """A job says that these cards are not usable: nothing starts there until they have proved themselves."""
        for uuid in uuids:
            self._judged[uuid] = fitness.poisoned(self._judgement(uuid), why, self._clock())

    def reports(self) -> tuple[GpuReport, ...]:
        """The cards as `GET /v1/hosts` shows them."""
        return reports(self.snapshot, self._judged)

    async def _readings(self) -> None:
        reading = self._gpus.snapshot()
        while True:
            self._read(reading)
            reading = await self._gpus.changed(reading)

    def _read(self, reading: Snapshot) -> None:
        now = self._clock()
        self._judged = fitness.judge_all(self._judged, reading, now, self._ours, self.settings.fitness)
        if reading.state is WatchState.OK:  # else the samples are history
            for holding in self._held:
                holding.take(reading.samples, now, self.sharers(holding))

    @property
    def _ours(self) -> Ours:
        every = [holding.ours for holding in self._held]
        return Ours(
            containers=frozenset().union(*(one.containers for one in every)),
            pids=frozenset().union(*(one.pids for one in every)),
            gpus=frozenset().union(*(one.gpus for one in every)),
        )

    @property
    def _promised(self) -> tuple[Reservation, ...]:
        return tuple(one for holding in self._held for one in holding.reservations())

    def _struck(self, event: XidEvent) -> None:
        if not event.uuid:  # the driver did not say which card: it cannot be held against any
            return
        struck = fitness.struck(self._judgement(event.uuid), event, self._clock(), self.settings.fitness)
        self._judged[event.uuid] = struck
        grave = event.xid not in self.settings.fitness.application_xids
        for holding in self._held:
            if event.uuid in holding.uuids and (holding.xid is None or grave):
                holding.xid = event.xid

    def _judgement(self, uuid: str) -> Judgement:
        return self._judged.get(uuid) or Judgement(uuid)
