"""What every part of the runner shares: connections, clocks, settings, and the retry while a dependency is away.

Time that passes is measured on a monotonic clock. The calendar of a host may be set forward or back while jobs run.
Sleeps are not affected, but a difference of two dates is: it would time out a job that has just begun, or bill an hour
that was not used.

While the edge, the broker or the engine is away, an operation is retried, and the runner claims nothing new.
"""

import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from msgspec import Struct, field
from structlog.typing import FilteringBoundLogger

from bus.interface import BrokerDenied, BrokerFull, BrokerUnreachable, Bus, BusError
from bus.notifier import Notifier
from bus.spans import NO_SPANS, SpanRecorder
from runner.assets.container_folders import HostFolders, SecretFiles
from runner.assets.port import AssetTransfer, EdgeUnavailable, NotHeld, SecretsUnavailable
from runner.endpoints import LocalEndpoint
from runner.engines.launch import remove_tree
from runner.engines.port import ContainerEngine, ContainerIdentity, EngineError, EngineUnavailable, FolderMount
from runner.engines.process_shim import boot_id
from runner.gpu.allocator import GpuAllocator
from runner.host_facts import HostEnd, LoginLookup, no_logged_in_users
from runner.metrics import RunnerMetrics
from runner.settings import (
    CacheSettings,
    DeadManSettings,
    ImageSettings,
    RegistrySettings,
    RunnerIntervals,
    VolumeSettings,
    WarmSettings,
)
from runner.slots import Slots
from schemas.asset import Digest
from schemas.backoff import Backoff
from schemas.events import RecordUnreadable
from schemas.job import Claim, Job

T = TypeVar("T")


class Uptime(Struct, frozen=True):
    """A moment within one boot of the machine, in seconds of its monotonic clock.

    `boot` is "" where the machine does not identify its boots.
    """

    boot: str
    s: float

    def since(self, earlier: "Uptime | None") -> float | None:
        """Return the seconds since `earlier`, or None where they are unknown.

        They are unknown if `earlier` was not recorded, or if the machine was booted since.
        """
        if earlier is None or not self.boot or earlier.boot != self.boot:
            return None
        return max(0.0, self.s - earlier.s)


def boot_clock() -> Callable[[], Uptime]:
    """Return the clock. It stops while the machine is suspended, as the jobs do."""
    name = ""
    with suppress(OSError):  # not Linux
        name = boot_id()
    return lambda: Uptime(name, time.monotonic())


class StartTime(Struct, frozen=True):
    """The moment at which a container began its job, on the calendar and on the monotonic clock."""

    at: datetime
    uptime: Uptime | None = None


class FailureBackoff:
    """Backoff of one operation, with its failures. Times are monotonic seconds; `reason` is the last failure, or ""."""

    def __init__(self, backoff: Backoff) -> None:
        self.reason = ""
        self._backoff = backoff
        self._failures = 0
        self._retry_at = 0.0

    def is_waiting(self, now: float) -> bool:
        """Return whether it is too early for the next try."""
        return self.left_s(now) > 0

    def left_s(self, now: float) -> float:
        """Return the seconds until the next try."""
        return max(0.0, self._retry_at - now)

    def record_failure(self, reason: str, now: float) -> None:
        """Record a failure: the next try has to wait, twice as long as after the one before."""
        self.reason = reason
        self._retry_at = now + self._backoff.delay_s(self._failures)
        self._failures += 1

    def reset(self) -> None:
        """Forget the failures: a try succeeded."""
        self.reason, self._failures, self._retry_at = "", 0, 0.0


class EngineCallFailed(EngineUnavailable):
    """The engine answers, but the call for this one container fails."""


class OutageGate:
    """Counts the tasks that wait for the edge, the broker or the engine.

    While there is one, the runner claims nothing new.

    `engine_suspected` is notified when the engine did not answer a call; `runner.host.watches` then probes it.
    """

    def __init__(self) -> None:
        self._waiting = 0
        self._reasons: dict[object, str] = {}
        self._ended = Notifier()
        self.engine_suspected = Notifier()

    async def wait_until_over(self) -> None:
        """Wait until no task waits for a shared dependency."""
        await self._ended.wait_until(lambda: not self._waiting)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return the pending operations and why they are retried, each text once."""
        return tuple(sorted(set(self._reasons.values())))

    @contextmanager
    def waiting(self) -> Iterator[Callable[[bool, str], None]]:
        """Yield a function for one task that retries an operation.

        The task calls it with whether it waits for something that every job needs, and with the reason of the retry.
        """
        counted, token = False, object()

        def report(is_outage: bool, reason: str) -> None:
            nonlocal counted
            self._reasons[token] = reason
            if is_outage == counted:
                return
            self._waiting += is_outage - counted
            counted = is_outage
            if not self._waiting:
                self._ended.notify()

        try:
            yield report
        finally:
            report(False, "")
            del self._reasons[token]


# Errors that end when a service is back or a person has corrected the configuration. None of them is the job's fault.
TRANSIENT_ERRORS = (BrokerUnreachable, BrokerFull, BrokerDenied, RecordUnreadable, EdgeUnavailable, EngineUnavailable)


# Those of them that concern one job only: that job waits, and the others go on.
SINGLE_JOB_ERRORS = (RecordUnreadable, EngineCallFailed, NotHeld, SecretsUnavailable)


# More walks at once would slow the jobs on a slow disk, and each may hold disk_usage.DEPTH_LIMIT descriptors.
DISK_WALK_LIMIT = 2


class RunnerContext(Struct, frozen=True, kw_only=True):
    """Dependencies of an execution: identity, connections, clocks, settings and the log.

    `now` is UTC. `uptime` is monotonic. `jitter` draws from [0, 1). `jobs_dir` holds one folder per container.
    `disk_walk_limiter` bounds how many of them are measured at once. `ready_at` is when this process could run jobs.
    `folders` are those that containers get besides; None if this host has none. `secrets`: the files of jobs' secrets.
    """

    installation: str
    host: str
    incarnation: str
    jobs_dir: Path
    bus: Bus
    engine: ContainerEngine
    assets: AssetTransfer
    now: Callable[[], datetime]
    uptime: Callable[[], Uptime]
    jitter: Callable[[], float]
    intervals: RunnerIntervals
    outage: OutageGate
    log: FilteringBoundLogger
    metrics: RunnerMetrics = field(default_factory=RunnerMetrics)
    spans: SpanRecorder = NO_SPANS
    ready_at: datetime | None = None
    folders: HostFolders | None = None
    secrets: SecretFiles = field(default_factory=SecretFiles)
    disk_walk_limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(DISK_WALK_LIMIT))

    def claim(self, attempt: int, gpus: Iterable[str] = (), isolation: str | None = None) -> Claim:
        """Return the claim of this runner process on an attempt, with these GPUs and this isolation."""
        return Claim(self.host, self.incarnation, attempt, ",".join(gpus) or None, self.engine.name, isolation)

    def moment(self) -> StartTime:
        """Return the current moment on both clocks."""
        return StartTime(self.now(), self.uptime())

    def bind_log(self, job: Job) -> FilteringBoundLogger:
        """Return the log with the job's identity on every line."""
        return self.log.bind(owner=job.owner, job_id=job.id, trace_id=job.trace_id)

    def log_unavailable(self, operation: str, error: BusError) -> None:
        """Log an operation that failed and is retried: an outage at debug level, any other error at error level."""
        write = self.log.debug if isinstance(error, BrokerUnreachable) else self.log.error
        write("operation_failed", operation=operation, error=f"{type(error).__name__}: {error}")

    async def delete_folder(self, folder: Path) -> None:
        """Remove a container's folder, with its secrets, or a folder in it.

        A folder that cannot be removed is logged, and recovery tries again after a restart.
        """
        await anyio.to_thread.run_sync(self.remove_folder, folder)

    def remove_folder(self, folder: Path) -> None:
        """Do what `delete_folder` does. Blocking."""
        try:
            if folder.parent == self.jobs_dir:
                self.secrets.remove(folder)
            remove_tree(folder)
        except OSError as error:
            self.log.warning("folder_removal_failed", folder=str(folder), error=str(error))

    async def remove_container(self, handle: str | None, is_wanted: Callable[[ContainerIdentity], bool]) -> None:
        """Remove a container by its handle; by its identity if the start was not answered. Retries until it works."""

        async def remove() -> None:
            if handle is not None:
                return await self.engine.remove(handle)
            for found in await self.engine.find(self.installation, self.host):
                if is_wanted(found.identity):
                    await self.engine.remove(found.handle)
            return None

        await self.retry_engine_call("remove", remove)

    async def retry_while_unavailable(
        self, operation: str, call: Callable[[], Awaitable[T]], on_retry: Callable[[str], None] = lambda _: None
    ) -> T:
        """Call `call` until it succeeds: a result is never lost because a dependency is away.

        `on_retry` receives the reason of each retry.
        """
        failures = 0
        with self.outage.waiting() as report:
            while True:
                try:
                    return await call()
                except TRANSIENT_ERRORS as error:
                    if not failures:
                        self.log.warning("retry_started", operation=operation, error=str(error))
                    report(not isinstance(error, SINGLE_JOB_ERRORS), f"{operation}: {error}")
                    on_retry(str(error))
                    if isinstance(error, EngineUnavailable) and not isinstance(error, EngineCallFailed):
                        self.outage.engine_suspected.notify()
                await anyio.sleep(self.intervals.retry_backoff.delay_s(failures))
                failures += 1

    async def mount_folders(self, endpoint: LocalEndpoint, owner: str, container: Path) -> tuple[FolderMount, ...]:
        """Return the folders for a container of this endpoint and owner, with its own folder. Raises OSError."""
        mounts: tuple[FolderMount, ...] = ()
        if self.folders is not None:
            mounts = await anyio.to_thread.run_sync(self.folders.mount, endpoint.config, owner, container)
        if endpoint.config.secrets:
            mounts = (*mounts, await anyio.to_thread.run_sync(self.secrets.mount, container))
        return mounts

    async def retry_engine_call(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        """Retry an engine call that must succeed in the end, whatever error it returns."""

        async def call_once() -> T:
            try:
                return await call()
            except EngineUnavailable:
                raise
            except EngineError as error:
                raise EngineCallFailed(str(error)) from error

        return await self.retry_while_unavailable(operation, call_once)


DropAssets = Callable[[Collection[Digest]], Awaitable[None]]
EdgeCheck = Callable[[], Awaitable[bool]]


@asynccontextmanager
async def run_in_background(task: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run `task` during the block, and cancel it at the end.

    An exception of the block is raised as it is. A task group would wrap it in a group.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(task)
        try:
            yield
        except Exception as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def is_always_alive() -> bool:
    """Return True: the check for an edge that is never away."""
    return True


async def report_nothing() -> None:
    """Report nothing: for a process without a health check."""


class HostContext(Struct, frozen=True, kw_only=True):
    """Resources and settings of this host: endpoints, GPUs, slots, and how it behaves.

    `endpoints` changes while the runner runs: the parts that read it see each change at once. `pool`: the only pool of
    which endpoints are offered. `endpoint_folders` are read again and again. `pulled_images_file` records the images
    that this host pulled itself; None keeps no record. `egress_image`: for the networks of jobs with egress.

    `drop_assets` removes deleted assets from the input cache. `poweroff` is the program that powers this machine off.
    `run_as` is the user that jobs run as, None if they run in containers. `labels` are what endpoints can require.
    `report_health` is called after each heartbeat.

    Seconds: `grace_s` for jobs to end during a drain, `settle_s` for the records of those that were stopped then,
    `until_idle_s` without work after which the runner ends. `end`: when this host ends, where that is known.
    """

    endpoints: MutableMapping[str, LocalEndpoint]
    gpu_allocator: GpuAllocator
    slots: Slots
    drop_assets: DropAssets
    warm: WarmSettings = WarmSettings()
    images: ImageSettings = ImageSettings()
    egress_image: str | None = None
    volumes: VolumeSettings = VolumeSettings()
    caches: CacheSettings = CacheSettings()
    registries: Mapping[str, RegistrySettings] = field(default_factory=dict)
    pulled_images_file: Path | None = None
    endpoint_folders: tuple[Path, ...] = ()
    pool: str | None = None
    until_idle_s: float | None = None
    end: HostEnd | None = None
    grace_s: float = 10.0
    settle_s: float = 20.0
    poweroff: tuple[str, ...] = ()
    run_as: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    dead_man: DeadManSettings = DeadManSettings()
    find_logged_in_users: LoginLookup = no_logged_in_users
    is_edge_alive: EdgeCheck = is_always_alive
    report_health: Callable[[], Awaitable[None]] = report_nothing
