"""All services of an edge without HTTP, over the fake bus or a real broker, with a clock that tests move."""

import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import anyio

from bus.interface import Bus
from bus.open import open_edge, open_runner
from edge.assets.service import AssetService
from edge.assets.uploads import UploadService, UploadSettings
from edge.core.installation import Leases
from edge.core.metrics import EdgeMetrics, MetricsSettings
from edge.deletion import DeletionServices, OwnerDeletionService
from edge.hosts.endpoints import EndpointRegistry
from edge.hosts.registry import HostRegistry, WakeForecast
from edge.index.index import JobIndex
from edge.jobs.event_stream import EventStreams
from edge.jobs.forecast import EtaEstimator, RunHistory, WaitReasons, WakeForecasts
from edge.jobs.inputs import FetchBackoff, InputWaiter, UrlInputFetcher
from edge.jobs.publish_window import PublishWindow
from edge.jobs.reconciler import IntervalTimer, PowerProbe, ReconcileContext, ReconcilePolicy, Reconciler
from edge.jobs.service import JobService
from edge.jobs.submission import Admission, BrokerReadiness
from edge.jobs.view import JobViewBuilder
from edge.outbound import AllowList, OutboundSettings, guarded_client
from edge.owners.api_keys import ApiKeyStore
from edge.owners.quotas import OwnerQuota, OwnerQuotaOverride, OwnerQuotas
from edge.owners.secret_keys import SecretKeyFile
from edge.owners.secrets import SecretStore
from edge.owners.signed_credentials import UrlSettings, UrlSigner
from edge.power.observation import FleetObserver
from edge.record_metrics import JobMetrics
from edge.store.unfinished_uploads import UploadStateStore
from edge.webhooks import dispatcher as webhooks
from edge.webhooks.owner_webhooks import WebhookSettings
from schemas import events as e
from schemas.endpoint import Endpoint
from schemas.events import FeedPosition, LogEndMessage
from schemas.host import HostCapabilities, HostHeartbeat
from schemas.job import Claim, Job, JobKey, Output
from schemas.lifecycle import next_record
from tests.support.fake_bus.broker import FakeBroker, FakeBus
from tests.support.fake_store import FakeStore
from tests.support.nats_broker import run_broker
from tests.support.scripted_servers import FakeDns

SECRET = bytes(32)  # the signing secret of all edges
START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ASSET_SCHEMA = {"type": "string", "format": "asset"}
ECHO_ENDPOINT = Endpoint(
    name="echo",
    image="echo",
    input={
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "file": ASSET_SCHEMA,
            "second": ASSET_SCHEMA,
            "seconds": {"type": "number", "default": 0},
        },
        "additionalProperties": False,
    },
)


class ManualClock:
    """The one clock of all services; a test moves it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1)  # no two calls return the same time
        return self.now

    def seconds(self) -> float:
        return (self.now - START).total_seconds()

    def advance(self, **amount: float) -> None:
        self.now += timedelta(**amount)


class FixedEntropy:
    """A deterministic source of entropy: each call returns other bytes."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, count: int) -> bytes:
        self._calls += 1
        return hashlib.sha256(str(self._calls).encode()).digest()[:count]


class FakePowerStatus(PowerProbe):
    """A power probe that reports what the test sets."""

    def __init__(self) -> None:
        self.off: bool | None = None

    def is_off(self, host: str) -> bool | None:
        return self.off


class FakeWakeForecasts(WakeForecasts):
    """The forecasts of a power controller, set by the test."""

    def __init__(self) -> None:
        self.forecast: WakeForecast | None = None
        self.hosts_with_driver: frozenset[str] = frozenset()

    def wake_forecast(self, endpoint: str) -> WakeForecast | None:
        return self.forecast

    def has_driver(self, host: str) -> bool:
        return host in self.hosts_with_driver


@cache
def _load_certificates() -> ssl.SSLContext:
    """Load the system's certificates once: it takes 30 ms."""
    return ssl.create_default_context()


class EdgeServicesRig:
    """The services of an edge, and a runner's connection to the broker, with which the test moves jobs."""

    def __init__(self, folder: Path, bus: Bus, runner_bus: Bus, time: ManualClock) -> None:
        self.time = time
        self.bus = bus
        self.runner_bus = runner_bus
        self.store = FakeStore()
        self.power_probe = FakePowerStatus()
        self.endpoints = EndpointRegistry(self.bus, (ECHO_ENDPOINT,))
        self.folder = folder
        self.index = JobIndex(folder / "index.db", self.bus.job_store)
        self.metrics = EdgeMetrics(MetricsSettings(owners=True))
        JobMetrics(self.index, self.metrics)
        self.limits: dict[str, OwnerQuotaOverride] = {}
        self.upload_states = UploadStateStore(folder / "uploads")
        self.quotas = OwnerQuotas(
            OwnerQuota(), self.limits, self.index, bus.asset_references, time.seconds, self.upload_states
        )
        self.publish_window = PublishWindow(
            queue=self.bus.job_queue,
            records=self.bus.job_store,
            index=self.index,
            pool_slots=self.endpoints.offered_slots,
            clock=time,
            running_limit=self.quotas.running_limit,
        )
        self.assets = AssetService(self.bus, self.store, self.index, time, 1 << 20, self.quotas)
        self.hosts = HostRegistry(self.bus, self.endpoints, time, self.index.queue_ranks.count_pending)
        self.wake_forecasts = FakeWakeForecasts()
        self.wait_reasons = WaitReasons(self.hosts, self.endpoints, self.wake_forecasts, time)
        self.readiness = BrokerReadiness(self.bus.health, time)
        self.names = FakeDns()
        allowed = AllowList(["files.test"])
        self.outside = guarded_client(allowed, self.names, _load_certificates())
        self.fetches = UrlInputFetcher(
            bus=bus,
            assets=self.assets,
            leases=Leases(bus.leases, str(folder), time),
            client=self.outside,
            settings=OutboundSettings(fetch_timeout_s=30),
            clock=time,
            backoff=FetchBackoff(lambda: 0.0, (0.01, 0.02)),
        )
        self.leases = Leases(bus.leases, f"{folder} erasing", time)
        self.input_waiter = InputWaiter(
            records=bus.job_store,
            assets=self.assets,
            url_fetcher=self.fetches,
            index=self.index,
            publish_window=self.publish_window,
            clock=time,
        )
        entropy = FixedEntropy()
        self.secret_key_file = SecretKeyFile(folder / "secrets.key")
        self.secrets = SecretStore(bus.secrets, self.secret_key_file, time)
        admission = Admission(
            readiness=self.readiness,
            endpoints=self.endpoints,
            assets=self.assets,
            url_allow_list=allowed,
            clock=time,
            entropy=entropy,
            quotas=self.quotas,
            secrets=self.secrets,
        )
        self.jobs = JobService(
            bus=bus,
            admission=admission,
            assets=self.assets,
            index=self.index,
            publish_window=self.publish_window,
            clock=time,
            metrics=self.metrics,
        )
        self.uploads = UploadService(
            self.upload_states, self.assets, time, FixedEntropy(), UploadSettings(), limit=1 << 20, quotas=self.quotas
        )
        self.signer = UrlSigner(SECRET, time, UrlSettings())
        self.run_history = RunHistory(self.index, self.endpoints)
        self.eta = EtaEstimator(self.index, self.run_history, self.wait_reasons, self.endpoints, time)
        self.job_views = JobViewBuilder(
            feed=self.bus.feed,
            index=self.index,
            publish_window=self.publish_window,
            wait_reasons=self.wait_reasons,
            eta=self.eta,
            sign_url=self.signer.sign_url,
        )
        self.webhooks = webhooks.build_webhooks(
            bus,
            self.index,
            self.job_views,
            self.outside,
            allowed,
            WebhookSettings(timeout_s=20),
            webhooks.WebhookDependencies(now=time, monotonic=time.seconds, entropy=FixedEntropy(), random=lambda: 0.0),
            self.metrics,
        )
        self.event_streams = EventStreams(self.bus, self.job_views, self.hosts)
        self.reconcile_context = ReconcileContext(
            bus=self.bus,
            index=self.index,
            publish_window=self.publish_window,
            hosts=self.hosts,
            assets=self.assets,
            input_waiter=self.input_waiter,
            now=time,
            index_check_timer=IntervalTimer(ReconcilePolicy().check_interval, time()),
            orphan_timer=IntervalTimer(ReconcilePolicy().check_interval, time()),
            power_probe=self.power_probe,
        )
        self.reconciler = Reconciler(self.reconcile_context)

    def erasures(self, keys: ApiKeyStore) -> OwnerDeletionService:
        """Return a service that deletes owners and the given keys."""
        reach = DeletionServices(
            bus=self.bus,
            job_service=self.jobs,
            assets=self.assets,
            uploads=self.uploads,
            keys=keys,
            secrets=self.secrets,
            index=self.index,
            quotas=self.quotas,
        )
        return OwnerDeletionService(reach, self.leases, self.time)

    async def submit(self, owner: str = "ann", text: str = "hello", **named: Any) -> Job:
        settable = ("priority", "not_before", "deadline", "tags")
        fields: dict[str, Any] = {name: named.pop(name) for name in settable if name in named}
        body = {"endpoint": "echo", "input": {"text": text}, **fields}
        accepted = await self.jobs.submit(owner, body, **named)
        await self.publish_window.wait_until_idle()
        return accepted.entry.record.job

    async def read(self, job: Job) -> Job:
        return (await self.jobs.read(job.key)).record.job

    async def reason(self, job: Job) -> str | None:
        """Return the wait reason that a client sees."""
        return (await self.job_views.build(await self.jobs.read(job.key))).reason

    async def put(self, owner: str, body: bytes, name: str = "file") -> str:
        async def chunks() -> AsyncIterator[bytes]:
            yield body

        _, sha256, _ = await self.assets.put(owner, chunks(), None, name, "video/mp4")
        return sha256

    async def write_event(self, key: JobKey, *events: e.JobEvent) -> Job:
        """Write events to the record, as a runner does."""
        for event in events:
            entry = await self.runner_bus.job_store.read(key)
            assert entry is not None
            recorded = next_record(entry.record.job, event, self.time())
            revision = await self.runner_bus.job_store.update(key, recorded, entry.revision)
        await self.wait_until_indexed(revision)
        return recorded.job

    async def start(self, job: Job, host: str = "gpu-1", incarnation: str = "i1") -> Job:
        now = await self.read(job)
        return await self.write_event(job.key, e.Started(Claim(host, incarnation, now.attempt + 1)))

    async def finish(self, job: Job) -> Job:
        """Run the job to its end, as a runner does."""
        return await self.finish_running(await self.start(job))

    async def finish_running(self, running: Job) -> Job:
        """Write the end of the log and the final state, and remove the message, as a runner does."""
        note = LogEndMessage(FeedPosition(running.round, running.attempt, 10), self.time())
        await self.runner_bus.feed.publish(running.key, note)
        done = await self.write_event(running.key, e.Succeeded(Output()))
        await self.bus.job_queue.remove(running.pointer)  # a runner would acknowledge it instead
        return done

    async def announce_capabilities(
        self, slots: int = 1, host: str = "gpu-1", at: datetime | None = None, **fields: Any
    ) -> None:
        offered = HostCapabilities(
            **{"host": host, "incarnation": "i1", "at": at or self.time(), "endpoints": (ECHO_ENDPOINT,), **fields},
            slots=slots,
        )
        await self.bus.capabilities.put(host, offered)
        await self.endpoints.refresh()

    async def send_heartbeat(self, host: str = "gpu-1", incarnation: str = "i1", **fields: Any) -> None:
        at = self.time()
        await self.bus.heartbeats.put(
            host, HostHeartbeat(host=host, incarnation=incarnation, at=at, since=at, **fields)
        )
        await self.hosts.refresh()

    async def wait_until_indexed(self, revision: int | None = None) -> None:
        """Wait until the index has `revision`, or all records."""
        if revision is None:
            revision = max([await self._revision(key) for key in await self.bus.job_store.keys()], default=0)
        assert await self.index.wait_for_revision(revision)

    async def _revision(self, key: JobKey) -> int:
        try:
            entry = await self.bus.job_store.read(key)
        except e.RecordUnreadable:
            return 0
        return entry.revision if entry else 0

    async def list_pointers(self, owner: str | None = None) -> list[str]:
        """Return the ids of the jobs in JOBS, sorted."""
        await self.publish_window.wait_until_idle()
        return sorted(pointer.id for pointer in await self.bus.job_queue.list_pending(owner))


class FakeBusServicesRig(EdgeServicesRig):
    """A rig whose broker the test can disconnect, fill and inspect."""

    bus: FakeBus

    def __init__(self, folder: Path, broker: FakeBroker, time: ManualClock) -> None:
        super().__init__(folder, broker.connect(), broker.connect(), time)
        self.broker = broker


def observe_fleet(made: EdgeServicesRig) -> FleetObserver:
    """Return the observer of the power control over these services."""
    return FleetObserver(
        bus=made.bus,
        index=made.index,
        hosts=made.hosts,
        endpoints=made.endpoints,
        now=made.time,
        usual_run_s=made.run_history.median_s,
        running_limit=made.quotas.running_limit,
    )


@asynccontextmanager
async def run_services(made: EdgeServicesRig) -> AsyncIterator[None]:
    """Run the tasks of the edge, with one sweep of the reconciler first, as at a real start."""
    async with made.outside, anyio.create_task_group() as tasks:
        await made.endpoints.refresh()
        for run in (
            made.index.run,
            made.publish_window.run,
            made.event_streams.run,
            made.fetches.run,
            made.input_waiter.run,
            made.webhooks.dispatcher.run,
        ):
            tasks.start_soon(run)
        await made.index.wait_until_caught_up()
        await made.reconciler.sweep()
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def fake_bus_services(
    folder: Path, broker: FakeBroker | None = None, time: ManualClock | None = None
) -> AsyncIterator[FakeBusServicesRig]:
    """Run an edge over the fake bus; with `broker`, one more edge on the same broker."""
    time = time or ManualClock()
    made = FakeBusServicesRig(folder, broker or FakeBroker(time.seconds), time)
    async with run_services(made):
        yield made


@asynccontextmanager
async def nats_services(folder: Path) -> AsyncIterator[EdgeServicesRig]:
    """Run an edge over its own nats-server, which times heartbeats and leases by the real clock."""
    async with (
        run_broker(folder) as server,
        open_edge(server.settings("edge")) as bus,
        open_runner(server.settings("runner")) as runner_bus,
    ):
        made = EdgeServicesRig(folder, bus, runner_bus, ManualClock())
        async with run_services(made):
            yield made
