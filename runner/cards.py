"""The host's cards as its jobs use them: judged by every reading, promised to containers, metered while these run."""

from collections.abc import Callable

import anyio

from runner.gpu import fitness, meter
from runner.gpu.lineage import Ours
from runner.gpu.placement import Placed, Refused, Reservation, Supply, place
from runner.gpu.port import Gpus
from runner.gpu.report import reports
from runner.settings import GpuSettings
from schemas.endpoint import Endpoint
from schemas.gpu import GpuSample, Judgement, Snapshot, XidEvent
from schemas.host import GpuReport
from schemas.job import Usage


class Holding:
    """The cards one container has, from before it starts until it is removed."""

    def __init__(self, cards: "Cards", uuids: tuple[str, ...], vram_mb: int) -> None:
        self._cards = cards
        self._vram_mb = vram_mb
        self._meter: meter.Meter | None = None
        self.uuids = uuids
        self.container: str | None = None
        self.xid: int | None = None

    def started(self, handle: str, now: float) -> None:
        """The container of this handle runs on them from now on (monotonic seconds)."""
        self.container = handle
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
        """The container is gone."""
        self._cards.released(self)

    @property
    def ours(self) -> Ours:
        """The container, as card processes are recognised by."""
        return Ours(containers=frozenset({self.container} if self.container else ()), gpus=frozenset(self.uuids))

    def reservations(self) -> list[Reservation]:
        """What is promised, card by card."""
        return [Reservation(uuid, self._vram_mb, self.container) for uuid in self.uuids]

    def take(self, samples: tuple[GpuSample, ...], now: float, sharers: int) -> None:
        """One reading of the cards."""
        if self._meter is not None:
            self._meter = meter.record(self._meter, samples, now, sharers)


class Cards:
    """`clock` is monotonic, in seconds."""

    def __init__(self, gpus: Gpus, settings: GpuSettings, clock: Callable[[], float]) -> None:
        self._gpus = gpus
        self._clock = clock
        self._judged: dict[str, Judgement] = {}
        self._held: list[Holding] = []
        self.settings = settings

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

    def place(self, endpoint: Endpoint, disk_free_mb: int) -> Placed | Refused:
        """The cards a container of `endpoint` would get now, with so many MiB free where jobs write."""
        promised = tuple(one for holding in self._held for one in holding.reservations())
        supply = Supply(self.snapshot, self._judged, promised, disk_free_mb)
        return place(supply, endpoint.resources, self.settings.placement)

    def hold(self, uuids: tuple[str, ...], endpoint: Endpoint | None) -> Holding:
        """Promise these cards to one container."""
        holding = Holding(self, uuids, endpoint.resources.vram_mb if endpoint else 0)
        self._held.append(holding)
        return holding

    def released(self, holding: Holding) -> None:
        """Only holdings call this."""
        self._held.remove(holding)

    def sharers(self, holding: Holding) -> int:
        """How many containers use the cards of `holding`, itself included."""
        return sum(1 for one in self._held if one is holding or set(one.uuids) & set(holding.uuids))

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
        ours = Ours(
            containers=frozenset(one.container for one in self._held if one.container),
            gpus=frozenset(uuid for one in self._held for uuid in one.uuids),
        )
        for sample in reading.samples:
            before = self._judgement(sample.uuid)
            self._judged[sample.uuid] = fitness.judge(before, sample, now, ours, self.settings.fitness)
        for card in reading.lost:
            if card.uuid:
                self._judged[card.uuid] = fitness.judge_lost(self._judgement(card.uuid), card, now)
        for holding in self._held:
            holding.take(reading.samples, now, self.sharers(holding))

    def _struck(self, event: XidEvent) -> None:
        struck = fitness.struck(self._judgement(event.uuid), event, self._clock(), self.settings.fitness)
        self._judged[event.uuid] = struck
        grave = event.xid not in self.settings.fitness.application_xids
        for holding in self._held:
            if event.uuid in holding.uuids and (holding.xid is None or grave):
                holding.xid = event.xid

    def _judgement(self, uuid: str) -> Judgement:
        return self._judged.get(uuid) or Judgement(uuid)
