"""Context of every part of the runner, and the retry while a dependency is away."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from msgspec import Struct, field
from structlog.typing import FilteringBoundLogger

from bus.interface import BrokerUnreachable, Bus, BusError
from bus.spans import NO_SPANS, SpanRecorder
from runner.assets.host_folders import HostFolders
from runner.assets.port import AssetTransfer
from runner.assets.secret_files import SecretFiles
from runner.endpoints import LocalEndpoint
from runner.engines.port import ContainerEngine, ContainerIdentity, EngineError, EngineUnavailable, FolderMount
from runner.gpu.allocator import GpuAllocator
from runner.host_end import HostEnd
from runner.login_sessions import LoginLookup, no_logged_in_users
from runner.metrics import RunnerMetrics
from runner.outage import SINGLE_JOB_ERRORS, TRANSIENT_ERRORS, EngineCallFailed, OutageGate
from runner.run_clock import StartTime, Uptime
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
from runner.tree_removal import remove_tree
from schemas.asset import Digest
from schemas.job import Claim, Job

T = TypeVar("T")


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
