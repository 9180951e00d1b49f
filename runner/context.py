"""One life of a runner: what it is called, whom it talks to, and how it waits for them when they are away."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
from msgspec import Struct, field
from structlog.typing import FilteringBoundLogger

from bus.interface import BrokerUnreachable, Bus, BusError
from runner.assets.port import AssetTransfer
from runner.endpoints import LocalEndpoint
from runner.engines.port import ContainerEngine, DetectedInjection, EngineError, EngineUnavailable
from runner.gpu.allocator import GpuAllocator
from runner.login_sessions import LoginLookup, no_logged_in_users
from runner.outage import SINGLE_JOB_ERRORS, TRANSIENT_ERRORS, EngineCallFailed, OutageGate
from runner.run_clock import StartTime, Uptime
from runner.settings import DeadManSettings, RunnerIntervals, WarmSettings
from runner.slots import Slots
from runner.tree_removal import remove_tree
from schemas.asset import Digest
from schemas.job import Claim, Job

T = TypeVar("T")


DISK_WALK_LIMIT = 2  # more would keep a slow disk from the jobs, and each may hold runner.disk.DEPTH_LIMIT descriptors


class RunnerContext(Struct, frozen=True, kw_only=True):
    """Everything an execution needs of its host. `now` is UTC; `up` no calendar moves; `jitter` draws from [0, 1).

    `jobs` is the folder that holds a folder for every container. `walks` bounds how many of these are counted at once.
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
    disk_walk_limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(DISK_WALK_LIMIT))

    def claim(self, attempt: int, gpus: Iterable[str] = ()) -> Claim:
        """This life's claim on an attempt, which has these cards."""
        return Claim(self.host, self.incarnation, attempt, ",".join(gpus) or None, self.engine.name)

    def moment(self) -> StartTime:
        """This moment, on both clocks."""
        return StartTime(self.now(), self.uptime())

    def bind_log(self, job: Job) -> FilteringBoundLogger:
        """The log, with the job's name on every line."""
        return self.log.bind(owner=job.owner, job_id=job.id, trace_id=job.trace_id)

    def log_unavailable(self, what: str, error: BusError) -> None:
        """Note that `what` did not happen and will be tried again. An outage is weather; the rest is told loudly."""
        tell = self.log.debug if isinstance(error, BrokerUnreachable) else self.log.error
        tell("not done", what=what, why=f"{type(error).__name__}: {error}")

    async def delete_folder(self, folder: Path) -> None:
        """Remove a container's folder. What cannot be removed is logged, and is tried again by the next life."""
        try:
            await anyio.to_thread.run_sync(remove_tree, folder)
        except OSError as error:
            self.log.warning("folder not removed", folder=str(folder), why=str(error))

    async def retry_while_unavailable(
        self, what: str, ask: Callable[[], Awaitable[T]], told: Callable[[str], None] = lambda _: None
    ) -> T:
        """`ask` until it is answered: a result is never given up because somebody is away.

        `told` hears why it is asked again.
        """
        wait = 0.0
        with self.outage.waiting() as waits:
            while True:
                try:
                    return await ask()
                except TRANSIENT_ERRORS as error:
                    if not wait:
                        self.log.warning("waiting", what=what, why=str(error))
                    waits(not isinstance(error, SINGLE_JOB_ERRORS), f"{what}: {error}")
                    told(str(error))
                    if isinstance(error, EngineUnavailable) and not isinstance(error, EngineCallFailed):
                        self.outage.engine_suspected.set()
                wait = min(wait * 2, self.intervals.retry_most_s) or self.intervals.retry_least_s
                await anyio.sleep(wait)

    async def retry_engine_call(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        """The same for a call to the engine that has to succeed in the end, whatever it answers meanwhile."""

        async def once() -> T:
            try:
                return await ask()
            except EngineUnavailable:
                raise
            except EngineError as error:
                raise EngineCallFailed(str(error)) from error

        return await self.retry_while_unavailable(what, once)


# MERGED runner/means.py: What a life works with, besides those it talks to.


DropAssets = Callable[[Collection[Digest]], Awaitable[None]]
EdgeCheck = Callable[[], Awaitable[bool]]


async def is_always_alive() -> bool:
    """An edge that is never away."""
    return True


async def detect_nothing(_life: RunnerContext, _means: "HostContext") -> DetectedInjection | None:
    """An engine that gives no cards to containers."""
    return None


class HostContext(Struct, frozen=True, kw_only=True):
    """`kinds` can run, on `cards`, as many at once as there are `slots`.

    `forget` drops deleted assets from the host's cache; `leave`: the engine keeps containers running without us.
    `poweroff`: the owner's program that switches this machine off. `logins`: who is logged in here. `answers`: asks
    the edge for a sign of life. `try_injection`: finds the way in which the engine gives cards to containers, None
    where there is nothing to try. `run_as`: the user that jobs run as, None where they run in containers.
    Seconds: `grace_s` for jobs to end when drained, `settle_s` for the records of those that were stopped then.
    """

    endpoints: Mapping[str, LocalEndpoint]
    gpu_allocator: GpuAllocator
    slots: Slots
    drop_assets: DropAssets
    containers_outlive_runner: bool
    warm: WarmSettings = WarmSettings()
    grace_s: float = 10.0
    settle_s: float = 20.0
    poweroff: tuple[str, ...] = ()
    detect_injection: Callable[[RunnerContext, "HostContext"], Awaitable[DetectedInjection | None]] = detect_nothing
    run_as: str | None = None
    dead_man: DeadManSettings = DeadManSettings()
    find_logged_in_users: LoginLookup = no_logged_in_users
    is_edge_alive: EdgeCheck = is_always_alive
