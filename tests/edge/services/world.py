"""All services, over the memory bus or a real broker, with one clock that tests move by hand."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio

from bus.connection import open_edge, open_runner
from bus.memory import MemoryBroker, MemoryBus
from bus.port import Bus
from edge.outbound.guard import client
from edge.outbound.settings import OutboundSettings
from edge.outbound.targets import Allowed
from edge.services.admission import Admission
from edge.services.assets import Assets
from edge.services.catalog import Catalog
from edge.services.erasures import Erasures, Reach
from edge.services.fetches import Chance, Fetches
from edge.services.follow import Follower
from edge.services.gate import Gate
from edge.services.hosts import HostWatch
from edge.services.index import Index
from edge.services.intake import Intake
from edge.services.keys import Keys
from edge.services.leases import Leases
from edge.services.quotas import Limits, OwnLimits, Quotas
from edge.services.reconciler import Reconciler
from edge.services.scene import Hourly, Powered, Rules, Scene
from edge.services.signing import Signer, UrlSettings
from edge.services.supply import Supply
from edge.services.uploads import Uploads, UploadSettings
from edge.services.view import Viewer
from edge.services.window import Window
from edge.store.memory import MemoryStore
from edge.store.partial import Partials
from edge.webhooks import build as webhooks
from edge.webhooks.settings import WebhookSettings
from schemas import events as e
from schemas.endpoint import Endpoint
from schemas.feed import LogEnd, Place
from schemas.host import Offer, Presence
from schemas.job import Claim, Job, JobKey, Output
from schemas.lifecycle import step
from schemas.reasons import Reason
from tests.broker import broker
from tests.edge.outbound.wild import Names

SECRET = bytes(32)  # that the edges of a world sign with
START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ASSET = {"type": "string", "format": "asset"}
ECHO = Endpoint(
    name="echo",
    image="echo",
    input={
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "file": ASSET,
            "second": ASSET,
            "seconds": {"type": "number", "default": 0},
        },
        "additionalProperties": False,
    },
)


class Time:
    """The only clock there is."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1)  # no two moments are the same
        return self.now

    def seconds(self) -> float:
        return (self.now - START).total_seconds()

    def pass_by(self, **amount: float) -> None:
        self.now += timedelta(**amount)


class Dice:
    """Entropy without chance: every call gives other bytes."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, count: int) -> bytes:
        self._calls += 1
        return hashlib.sha256(str(self._calls).encode()).digest()[:count]


class Switch(Powered):
    """A driver that says what the test says."""

    def __init__(self) -> None:
        self.off: bool | None = None

    async def is_off(self, host: str) -> bool | None:
        return self.off


class World:
    """The edge without HTTP, and a runner's hands to move jobs with."""

    def __init__(self, folder: Path, bus: Bus, runner_bus: Bus, time: Time) -> None:
        self.time = time
        self.bus = bus
        self.runner_bus = runner_bus
        self.store = MemoryStore()
        self.switch = Switch()
        self.catalog = Catalog(self.bus, (ECHO,))
        self.folder = folder
        self.index = Index(folder / "index.db", self.bus.records)
        self.limits: dict[str, OwnLimits] = {}
        self.quotas = Quotas(Limits(), self.limits, self.index, bus.assets, time.seconds)
        self.window = Window(
            self.bus.queue, self.bus.records, self.index, self.catalog.slots, time, self.quotas.running
        )
        self.assets = Assets(self.bus, self.store, self.index, time, 1 << 20, self.quotas)
        self.hosts = HostWatch(self.bus, self.catalog, time)
        self.gate = Gate(self.bus.link, time)
        self.names = Names()
        allowed = Allowed(["files.test"])
        self.outside = client(allowed, self.names)
        self.fetches = Fetches(
            bus,
            self.assets,
            Leases(bus.leases, str(folder), time),
            self.outside,
            OutboundSettings(fetch_timeout_s=5),
            time,
            Chance(lambda: 0.0, (0.01, 0.02)),
        )
        self.leases = Leases(bus.leases, f"{folder} erasing", time)
        self.supply = Supply(bus.records, self.assets, self.fetches, self.index, self.window, time)
        dice = Dice()
        admission = Admission(self.gate, self.catalog, self.assets, allowed, time, dice, self.quotas)
        self.intake = Intake(bus, self.gate, admission, self.assets, self.index, self.window, time, dice)
        self.partials = Partials(folder / "uploads")
        self.uploads = Uploads(
            self.partials, self.assets, time, Dice(), UploadSettings(), limit=1 << 20, quotas=self.quotas
        )
        self.quotas.count(self.uploads.promised)
        self.signer = Signer(SECRET, time, UrlSettings())
        self.viewer = Viewer(self.bus.feed, self.index, self.window, self.hosts, self.signer.link)
        self.webhooks = webhooks.build(
            bus,
            self.index,
            self.viewer,
            self.outside,
            WebhookSettings(timeout_s=2),
            webhooks.Chances(now=time, running=time.seconds, entropy=Dice(), dice=lambda: 0.0),
        )
        self.follower = Follower(self.bus, self.viewer, self.hosts)
        self.scene = Scene(
            bus=self.bus,
            index=self.index,
            window=self.window,
            hosts=self.hosts,
            assets=self.assets,
            supply=self.supply,
            now=time,
            hourly=Hourly(Rules().check_every, time()),
            orphans=Hourly(Rules().check_every, time()),
            power=self.switch,
        )
        self.reconciler = Reconciler(self.scene)

    def erasures(self, keys: Keys) -> Erasures:
        """Deleting owners, over keys that a test has."""
        reach = Reach(
            bus=self.bus,
            intake=self.intake,
            assets=self.assets,
            uploads=self.uploads,
            keys=keys,
            index=self.index,
            quotas=self.quotas,
        )
        return Erasures(reach, self.leases, self.time)

    async def submit(self, owner: str = "ann", text: str = "hello", **named: Any) -> Job:
        fields = {name: named.pop(name) for name in ("priority", "not_before", "deadline", "tags") if name in named}
        body = {"endpoint": "echo", "input": {"text": text}, **fields}
        accepted = await self.intake.submit(owner, body, **named)
        await self.window.idle()
        return accepted.entry.recorded.job

    async def read(self, job: Job) -> Job:
        return (await self.intake.read(job.key)).recorded.job

    async def reason(self, job: Job) -> Reason | None:
        """Why it waits, as a client is told."""
        return (await self.viewer.job(await self.intake.read(job.key))).reason

    async def put(self, owner: str, body: bytes, name: str = "file") -> str:
        async def chunks() -> AsyncIterator[bytes]:
            yield body

        _, sha256, _ = await self.assets.put(owner, chunks(), None, name, "video/mp4")
        return sha256

    async def apply(self, key: JobKey, *events: e.Event) -> Job:
        """What a runner writes."""
        for event in events:
            entry = await self.runner_bus.records.read(key)
            assert entry is not None
            recorded = step(entry.recorded.job, event, self.time())
            revision = await self.runner_bus.records.update(key, recorded, entry.revision)
        await self.settled(revision)
        return recorded.job

    async def start(self, job: Job, host: str = "gpu-1", incarnation: str = "i1") -> Job:
        now = await self.read(job)
        return await self.apply(job.key, e.Started(Claim(host, incarnation, now.attempt + 1)))

    async def finish(self, job: Job) -> Job:
        """Run the job to its end, as a runner does."""
        return await self.finish_running(await self.start(job))

    async def finish_running(self, running: Job) -> Job:
        """The log's end, the final state, and the message is acknowledged."""
        note = LogEnd(Place(running.round, running.attempt, 10), self.time())
        await self.runner_bus.feed.publish(running.key, note)
        done = await self.apply(running.key, e.Succeeded(Output()))
        await self.bus.queue.withdraw(running.pointer)  # the edge may, a runner would acknowledge
        return done

    async def offer(self, slots: int = 1, host: str = "gpu-1", at: datetime | None = None) -> None:
        offered = Offer(host=host, incarnation="i1", at=at or self.time(), endpoints=(ECHO,), slots=slots)
        await self.bus.offers.put(host, offered)
        await self.catalog.refresh()

    async def appear(self, host: str = "gpu-1", incarnation: str = "i1", **fields: Any) -> None:
        at = self.time()
        await self.bus.hosts.put(host, Presence(host=host, incarnation=incarnation, at=at, since=at, **fields))
        await self.hosts.refresh()

    async def settled(self, revision: int | None = None) -> None:
        """The index has everything that was written."""
        if revision is None:
            revision = max([await self._revision(key) for key in await self.bus.records.keys()], default=0)
        assert await self.index.reached(revision)

    async def _revision(self, key: JobKey) -> int:
        try:
            entry = await self.bus.records.read(key)
        except e.RecordUnreadable:
            return 0
        return entry.revision if entry else 0

    async def waiting(self, owner: str | None = None) -> list[str]:
        """Ids in JOBS."""
        await self.window.idle()
        return sorted(pointer.id for pointer in await self.bus.queue.waiting(owner))


class FakeWorld(World):
    """A world whose broker can be cut off, filled and looked into."""

    bus: MemoryBus

    def __init__(self, folder: Path, broker: MemoryBroker, time: Time) -> None:
        super().__init__(folder, broker.connect(), broker.connect(), time)
        self.broker = broker


@asynccontextmanager
async def running(made: World) -> AsyncIterator[None]:
    """The edge's tasks; JOBS compared once, as at a real start."""
    async with made.outside, anyio.create_task_group() as tasks:
        await made.catalog.refresh()
        for run in (
            made.index.run,
            made.window.run,
            made.follower.run,
            made.fetches.run,
            made.supply.run,
            made.webhooks.courier.run,
        ):
            tasks.start_soon(run)
        await made.index.ready()
        await made.reconciler.sweep()
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def fake_world(
    folder: Path, broker: MemoryBroker | None = None, time: Time | None = None
) -> AsyncIterator[FakeWorld]:
    """A running edge over the memory bus, or a second one beside it."""
    time = time or Time()
    made = FakeWorld(folder, broker or MemoryBroker(time.seconds), time)
    async with running(made):
        yield made


@asynccontextmanager
async def real_world(folder: Path) -> AsyncIterator[World]:
    """A running edge over a nats-server of its own. What the broker times (presence, leases) goes by the real clock."""
    async with (
        broker(folder) as server,
        open_edge(server.settings("edge")) as bus,
        open_runner(server.settings("runner")) as runner_bus,
    ):
        made = World(folder, bus, runner_bus, Time())
        async with running(made):
            yield made
