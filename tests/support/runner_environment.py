"""Environment of a runner without a broker, an edge or an engine: fakes of all three, quick, and broken on demand."""

import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import structlog

from runner.assets.container_folders import CacheStore, HostFolders, SecretFiles
from runner.assets.port import AssetGone, EdgeUnavailable, SecretMissing
from runner.assets.volume_store import VolumeStore
from runner.context import HostContext, OutageGate, RunnerContext, boot_clock
from runner.endpoints import LocalEndpoint
from runner.execution.disk_usage import is_over
from runner.gpu.allocator import GpuAllocator, GpuSettings
from runner.gpu.port import GpuMonitor
from runner.host.health_file import HealthFile
from runner.host_facts import HostEnd
from runner.lifecycle import run_lifecycle
from runner.settings import (
    CacheSettings,
    ImageSettings,
    RegistrySettings,
    RunnerIntervals,
    VolumeSettings,
    WarmSettings,
)
from runner.slots import Slots
from schemas.container_protocol import START_SOCKET
from schemas.endpoint import Endpoint, Resources, Timeouts
from schemas.events import CancelRequested, FeedMessage, JobEventBase, JobRecord, LogMessage, Submitted
from schemas.job import FINAL_STATUSES, Job, JobKey, OutputFile, Policy, Status
from schemas.lifecycle import next_record
from tests.support.fake_bus.broker import FakeBroker, FakeBus
from tests.support.fake_engine import FakeContainer, FakeEngine, Program
from tests.support.fake_gpus import FakeGpuMonitor
from tests.support.fake_images import FakeImageStore
from tests.support.wait import wait_for
from tests.support.weights_server import FakeVolumeSource

DEADLINE_S = 20.0  # less than the 30 s after which a message that nobody answered comes again
FAST_PACE = RunnerIntervals(
    heartbeat_s=0.03,
    presence_s=0.02,
    idle_s=0.02,
    retry_least_s=0.01,
    retry_most_s=0.05,
    tick_s=0.02,
    sweep_s=0.05,
    ahead_s=0.02,
    disk_s=0.02,
    disk_walk_s=0.05,
    engine_s=0.05,
    image_s=0.02,
)
SCHEMA = {"type": "object", "properties": {"file": {"type": "string", "format": "asset"}}}


class FakeBrokerClock:
    """The broker's clock, which tests advance."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class FakeAssetTransfer:
    """Assets by digest. `away` makes the edge unreachable, `broken` raises a bug."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.suffixes: dict[str, str] = {}
        self.away = False
        self.broken = False
        self.asked = anyio.Event()
        self.secrets: dict[str, str] = {}
        self.secrets_missing = False

    async def fetch_secrets(self, owner: str, job_id: str) -> dict[str, str]:
        self.asked.set()
        if self.away:
            raise EdgeUnavailable("the edge is away: the test said so")
        if self.secrets_missing:
            raise SecretMissing("kept needs secrets that are not set (HF_TOKEN): lamplighter secrets set NAME")
        return self.secrets

    def add(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.held[digest] = data
        return f"sha256:{digest}"

    async def prefetch(self, owner: str, sha256: str) -> None:
        self.fetched.append(sha256)
        if sha256 not in self.held:
            raise AssetGone(f"asset {sha256[:12]} is gone")

    async def filename_suffix(self, owner: str, sha256: str) -> str:
        return self.suffixes.get(sha256, "")

    async def stage(self, owner: str, sha256: str, to: Path) -> None:
        self.asked.set()
        if self.away:
            raise EdgeUnavailable("the edge is away: the test said so")
        if sha256 not in self.held:
            raise AssetGone(f"asset {sha256[:12]} is gone")
        await anyio.Path(to).write_bytes(self.held[sha256])

    async def upload(self, owner: str, path: Path, name: str) -> OutputFile:
        self.asked.set()
        if self.away:
            raise EdgeUnavailable("the edge is away: the test said so")
        if self.broken:
            raise RuntimeError("a bug: the test said so")
        data = await anyio.Path(path).read_bytes()
        return OutputFile(name, self.add(data).removeprefix("sha256:"), len(data), "application/octet-stream")

    def text(self, sha256: str | None) -> str:
        return self.held[sha256].decode() if sha256 else ""


def write_outputs(box: FakeContainer, files: dict[str, bytes] | None = None, data: Any = None) -> None:
    """Write what a program leaves: output.json and files."""
    folder = box.spec.job_dir / "out"
    folder.mkdir(exist_ok=True)
    (folder / "output.json").write_bytes(msgspec.json.encode({} if data is None else data))
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)


async def succeed(box: FakeContainer) -> int:
    """Run a job that succeeds."""
    box.write(b'{"type":"progress","fraction":0.5}\nhalf way\n')
    write_outputs(box, {"result.txt": b"made"}, {"text": "ok"})
    box.write(b'{"type":"progress","fraction":1}\ndone\n')
    return 0


async def run_until_stopped(box: FakeContainer) -> int:
    """Run a job that goes on until it is stopped."""
    box.write(b'{"type":"progress","fraction":0.1}\n')
    await anyio.sleep_forever()
    return 0


class RunnerEnvironment:
    """One broker, one asset store, one set of containers, and any number of runners one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.health_file = folder.with_name(f"{folder.name}.health")
        self.clock = FakeBrokerClock()
        self.calendar = timedelta(0)
        self.uptime = boot_clock()
        self.broker = FakeBroker(self.clock)
        self.edge = self.broker.connect()
        self.assets = FakeAssetTransfer()
        self.boxes: dict[str, FakeContainer] = {}
        self.programs: dict[str, Program] = {"well": succeed, "waits": run_until_stopped}
        self.timeouts = Timeouts(grace_s=0.2)
        self.pace = FAST_PACE
        self.jitter: Callable[[], float] = lambda: 0.0
        self.slots = 1
        self.disk_mb = 0
        self.engine_gone = False  # when a runner starts
        self.leave = True
        self.grace_s = 0.05
        self.until_idle_s: float | None = None
        self.end: HostEnd | None = None
        self.poweroff: tuple[str, ...] = ()
        self.people: frozenset[str] = frozenset()
        self.labels: dict[str, str] = {}
        self.kinds: dict[str, LocalEndpoint] | None = None
        self.gpus: GpuMonitor = FakeGpuMonitor()
        self.gpu_settings = GpuSettings()
        self.images: FakeImageStore | None = None
        self.endpoint_folders: tuple[Path, ...] = ()
        self.egress_image: str | None = None
        self.image_settings = ImageSettings(retry_least_s=0.02, retry_most_s=0.1, reserve_mb=0)
        self.registries: dict[str, RegistrySettings] = {}
        self.volume_settings = VolumeSettings(retry_least_s=0.02, retry_most_s=0.1)
        self.weights = FakeVolumeSource()
        self.volumes_folder = folder.with_name(f"{folder.name}.volumes")  # of all runners
        self.volumes_limit_bytes = 1 << 30
        self.caches_folder = folder.with_name(f"{folder.name}.caches")
        self.cache_settings = CacheSettings()
        self.secrets = SecretFiles()
        self.warm = WarmSettings(memory_reserve_mb=0, backoff_s=0.05, backoff_most_s=0.2)

    @asynccontextmanager
    async def run_runner(self, incarnation: str = "i1", host: str = "gpu-1") -> AsyncIterator["RunnerUnderTest"]:
        """Run a runner that claims jobs. Leaving the block kills it, as kill -9 would, unless it was drained before.

        If its engine is unavailable, the block does not wait for `ready`.
        """
        bus = self.broker.connect()
        jobs = self.folder / host
        jobs.mkdir(exist_ok=True)
        async with FakeEngine(self.programs, self.now, self.boxes) as engine:
            engine.is_unavailable = self.engine_gone
            engine.images = self.images
            engine.containers_outlive_runner = self.leave
            context = RunnerContext(
                installation="test",
                host=host,
                incarnation=incarnation,
                jobs_dir=jobs,
                bus=bus,
                engine=engine,
                assets=self.assets,
                now=self.now,
                uptime=self.uptime,
                jitter=self.jitter,
                intervals=self.pace,
                outage=OutageGate(),
                log=structlog.get_logger("test"),
                folders=HostFolders(
                    VolumeStore(self.volumes_folder, jobs, self.volumes_limit_bytes, 0),
                    self.weights,
                    CacheStore(self.caches_folder, is_over),
                ),
                secrets=self.secrets,
            )
            async with anyio.create_task_group() as tasks:
                running = RunnerUnderTest(self, context, bus, engine, self._host_context())
                tasks.start_soon(running.serve)
                if not self.engine_gone:
                    await wait_with_deadline(running.ready.wait)
                yield running
                tasks.cancel_scope.cancel()

    def now(self) -> datetime:
        """Return the time of the hosts' calendar, which tests set."""
        return datetime.now(UTC) + self.calendar

    def _host_context(self) -> HostContext:
        async def forget(digests: object) -> None:
            return None

        wants = Resources(disk_mb=self.disk_mb)
        names = dict(self.kinds or {}) or {
            name: LocalEndpoint(
                Endpoint(name=name, image=name, input=SCHEMA, timeouts=self.timeouts, resources=wants), self.folder
            )
            for name in self.programs
        }
        return HostContext(
            endpoints=names,
            gpu_allocator=GpuAllocator(self.gpus, self.gpu_settings, time.monotonic),
            slots=Slots(self.slots),
            drop_assets=forget,
            warm=self.warm,
            images=self.image_settings,
            egress_image=self.egress_image,
            volumes=self.volume_settings,
            caches=self.cache_settings,
            registries=self.registries,
            endpoint_folders=self.endpoint_folders,
            pulled_images_file=self.folder.with_name(f"{self.folder.name}.images"),
            grace_s=self.grace_s,
            settle_s=2.0,
            poweroff=self.poweroff,
            find_logged_in_users=lambda: self.people,
            labels=self.labels,
            report_health=HealthFile(self.health_file).renew,
            until_idle_s=self.until_idle_s,
            end=self.end,
        )

    async def submit(self, endpoint: str, id_: str = "j1", owner: str = "ada", **changes: Any) -> JobKey:
        """Write a queued job and publish its pointer."""
        now = datetime.now(UTC)
        base: dict[str, Any] = {"input": {}, "pool": endpoint, "policy": Policy(max_attempts=2), "queued_at": now}
        job = Job(
            id=id_,
            owner=owner,
            endpoint=endpoint,
            status=Status.QUEUED,
            request_digest="d",
            created_at=now,
            **(base | changes),
        )
        await self.edge.job_queue.ensure_consumers([job.pool])
        await self.edge.job_store.create(job.key, JobRecord(now, Submitted(), job))
        await self.edge.job_queue.publish(job.pointer)
        return job.key

    async def job(self, key: JobKey) -> Job:
        entry = await self.edge.job_store.read(key)
        assert entry is not None
        return entry.record.job

    async def wait_for_status(self, key: JobKey, *wanted: Status) -> Job:
        """Wait for one of these states."""
        async for change in self.edge.job_store.changes():
            recorded = getattr(change, "record", None)
            if recorded is not None and recorded.job.key == key and recorded.job.status in wanted:
                return recorded.job
        raise AssertionError("the changes ended")

    async def wait_until_ended(self, key: JobKey) -> Job:
        with anyio.fail_after(DEADLINE_S):
            return await self.wait_for_status(key, *FINAL_STATUSES)

    async def wait_until_running(self, key: JobKey) -> Job:
        with anyio.fail_after(DEADLINE_S):
            return await self.wait_for_status(key, Status.RUNNING)

    async def wait_for_container(self) -> FakeContainer:
        """Wait for a container; return the first."""

        async def there() -> bool:
            return bool(self.boxes)

        await wait_for(there)
        return next(iter(self.boxes.values()))

    async def kill_runner_during_job(self, endpoint: str) -> tuple[JobKey, FakeContainer]:
        """Submit a job, and kill the runner while the job runs. Return the job and its container."""
        key = await self.submit(endpoint)
        async with self.run_runner():
            await self.wait_until_running(key)
            box = await self.wait_for_container()
        return key, box

    async def wait_for_event(self, key: JobKey, kind: type[JobEventBase]) -> Job:
        """Wait for an event of this kind; return the job after it."""
        with anyio.fail_after(DEADLINE_S):
            async for change in self.edge.job_store.changes():
                recorded = getattr(change, "record", None)
                if recorded is not None and recorded.job.key == key and isinstance(recorded.event, kind):
                    return recorded.job
        raise AssertionError("the changes ended")

    async def cancel(self, key: JobKey) -> None:
        """Cancel as the edge does, without the nudge."""
        entry = await self.edge.job_store.read(key)
        assert entry is not None
        recorded = next_record(entry.record.job, CancelRequested(), datetime.now(UTC))
        await self.edge.job_store.update(key, recorded, entry.revision)

    async def event_types(self, key: JobKey) -> list[str]:
        """Return the types of all events, in order."""
        return [type(entry.record.event).__name__ for entry in await self.edge.job_store.history(key)]

    async def notes(self, key: JobKey) -> list[FeedMessage]:
        return await self.edge.feed.messages(key)

    async def log_text(self, key: JobKey) -> str:
        """Return the log as followers saw it."""
        return "".join(note.text for note in await self.notes(key) if isinstance(note, LogMessage))

    async def wait_for_warm(self, endpoint: str, count: int = 1) -> list[FakeContainer]:
        """Wait until so many warm containers of the endpoint are ready, by the heartbeat and by their sockets."""

        async def told() -> bool:
            row = await self.edge.heartbeats.get("gpu-1")
            said = row is not None and any(one.endpoint == endpoint and one.ready == count for one in row.value.warm)
            return said and len(self._doors(endpoint)) == count

        await wait_for(told)
        return self._doors(endpoint)

    def _doors(self, endpoint: str) -> list[FakeContainer]:
        mine = [box for box in self.boxes.values() if box.spec.image == endpoint and box.state == "running"]
        return [box for box in mine if (box.spec.job_dir / START_SOCKET).exists()]

    async def wait_until_clean(self) -> None:
        """Wait until no container, no message and no job folder is left."""

        async def clean() -> bool:
            folders = [path for host in self.folder.iterdir() for path in host.iterdir()]
            return not self.boxes and not folders and not await self.edge.job_queue.list_pending()

        await wait_for(clean)


class RunnerUnderTest:
    """One runner under test."""

    def __init__(
        self, world: RunnerEnvironment, context: RunnerContext, bus: FakeBus, engine: FakeEngine, host: HostContext
    ) -> None:
        self.world = world
        self.context = context
        self.bus = bus
        self.engine = engine
        self.host = host
        self.stop = anyio.Event()
        self.ready = anyio.Event()
        self.gone = anyio.Event()

    async def serve(self) -> None:
        await run_lifecycle(self.context, self.host, self.stop, self.ready.set, self.stop.set)
        self.gone.set()

    async def drained(self) -> None:
        self.stop.set()
        await wait_with_deadline(self.gone.wait)


async def wait_with_deadline(wait: Callable[[], Any]) -> None:
    """Wait with the deadline of the tests."""
    with anyio.fail_after(DEADLINE_S):
        await wait()
