"""The GPUs as containers use them: assessed with every reading, reserved for containers, metered while jobs run.

A job with a share of a GPU may use it by MPS, NVIDIA's Multi-Process Service. Without MPS the driver gives each process
on a GPU all of it in turns, and a share bounds only how many jobs there are. With MPS a job's kernels run beside those
of others, on at most its share of the GPU's multiprocessors. The names are those of NVIDIA's MPS documentation. MPS has
not run on a GPU yet (docs/gpu.md).
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import anyio
from msgspec import Struct
from msgspec.structs import replace

from runner.engines.port import GpuInjection, MpsClient
from runner.gpu import health
from runner.gpu.health import GpuHealthPolicy, MeterPrice, gpu_reports
from runner.gpu.placement import (
    Placed,
    PlacementCapacity,
    PlacementPolicy,
    Unplaceable,
    VramReservation,
    choose_kept_gpus,
    free_mb,
    free_share,
    place,
    share_of,
)
from runner.gpu.port import GpuMonitor
from runner.gpu.process_owner import OwnProcesses, ProcReader, read_proc
from schemas.endpoint import Endpoint, Resources
from schemas.gpu import GpuHealth, GpuHealthStatus, GpuMonitorState, GpuSample, GpuSnapshot, XidEvent
from schemas.host import GpuReport
from schemas.job import AttemptUsage

MPS_PID_FILE = "nvidia-cuda-mps-control.pid"  # in the pipe directory
MPS_DAEMON_NAME = "nvidia-cuda-mps"  # the first 15 characters, which is all that /proc/PID/comm has


class MpsSettings(Struct, frozen=True):
    """The `[gpu.mps]` section: MPS for jobs that have a share of a GPU."""

    use: Literal["auto", "on", "off"] = "auto"
    """`auto`: use MPS if its control daemon runs. `on`: use it without this check, which needs the host's pids."""
    pipe_dir: Path = Path("/tmp/nvidia-mps")  # noqa: S108 - the daemon's own default
    """The pipe directory of the control daemon (CUDA_MPS_PIPE_DIRECTORY)."""


def find_control_daemon(settings: MpsSettings, proc: ProcReader = read_proc) -> int | None:
    """Return the pid of the control daemon that serves the pipe directory; None if none runs. Blocking, but short."""
    if settings.use == "off":
        return None
    try:
        pid = int((settings.pipe_dir / MPS_PID_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pid if (proc(pid, "comm") or "").startswith(MPS_DAEMON_NAME) else None


def is_memory_shared(settings: MpsSettings) -> bool:
    """Return whether jobs may get all of /dev/shm, by which CUDA talks to the MPS server. Blocking, but short."""
    return settings.use == "on" or find_control_daemon(settings) is not None


def mps_client(settings: MpsSettings, share: float, *, daemon_pid: int | None) -> MpsClient | None:
    """Return what a container with this share gets of MPS; None for a whole GPU, and where MPS is not used."""
    if share >= 1 or not (settings.use == "on" or daemon_pid is not None):
        return None
    return MpsClient(str(settings.pipe_dir.absolute()), max(1, int(share * 100 + 1e-6)))


PidLookup = Callable[[str], Awaitable[int | None]]
"""Returns the pid behind a handle of the process engine; None where the handle is a container."""

WARM_STATUSES = frozenset({GpuHealthStatus.FIT, GpuHealthStatus.HOT})  # a warm container may stay on such a GPU


async def no_pid(_: str) -> int | None:
    """Return None: the lookup for an engine whose handles are containers."""
    return None


class GpuProbeSettings(Struct, frozen=True):
    """The `[gpu.probe]` section: when a GPU is probed."""

    patience_s: float = 300.0
    """How long a probe of a GPU may take."""
    first_s: float = 10.0
    """The pause after a failed probe. It doubles each time."""
    most_s: float = 600.0
    """The longest pause after failed probes."""


class GpuSettings(Struct, frozen=True):
    """The GPUs of the host, and what the runner does with them."""

    watch: bool = True
    """Monitor the GPUs. Off: the runner works as on a host without GPUs."""
    visible: str = "auto"
    """The GPUs for jobs: numbers or UUIDs, as in `0,2`, `all`, or `auto`: those that Slurm, Kubernetes or CUDA name."""
    injection: GpuInjection | Literal["auto"] = "auto"
    """How Docker gives GPUs to containers. `auto` tries each way at the start."""
    fitness: GpuHealthPolicy = GpuHealthPolicy()
    placement: PlacementPolicy = PlacementPolicy()
    price: MeterPrice = MeterPrice()
    mps: MpsSettings = MpsSettings()
    probe: GpuProbeSettings = GpuProbeSettings()


class GpuAllocation:
    """The GPUs of one container, from before its start until its removal. `is_idle`: it waits for its job."""

    def __init__(
        self, allocator: "GpuAllocator", uuids: tuple[str, ...], resources: Resources, *, is_idle: bool = False
    ) -> None:
        self._allocator = allocator
        self._resources = resources
        self._meter: health.GpuMeter | None = None
        self._pid: int | None = None
        self.uuids = uuids
        self.is_idle = is_idle
        self.is_released = False
        self.container: str | None = None
        self.xid: int | None = None

    async def container_started(self, handle: str) -> None:
        """Record that the container of this handle exists. It does not run a job yet. Raises EngineUnavailable."""
        self._pid = await self._allocator.pid_of(handle)
        self.container = handle

    async def job_started(self, handle: str, now: float) -> None:
        """Start metering: the container of this handle runs its job from `now` on (monotonic seconds).

        Raises EngineUnavailable.
        """
        if self.container != handle:
            await self.container_started(handle)
        self.is_idle = False
        self._meter = health.start_meter(self.uuids, self.own_processes, self._allocator.snapshot.samples, now)

    def usage(self, now: float) -> AttemptUsage:
        """Return what the container used until its exit; blank if it never ran."""
        if self._meter is None:
            return AttemptUsage()
        return health.compute_usage(
            self._meter, now, self._allocator.settings.price, self._allocator.count_sharers(self)
        )

    def mark_faulty(self, reason: str) -> None:
        """Mark these GPUs as faulty: the job reported that it cannot use them."""
        self._allocator.mark_faulty(self.uuids, reason)

    def release(self) -> None:
        """Release the GPUs: the container has exited or is gone. Repeated calls do nothing."""
        self.is_released = True
        self._allocator.free(self)

    @property
    def own_processes(self) -> OwnProcesses:
        """Return the identifiers by which the container's GPU processes are recognized."""
        return OwnProcesses(
            containers=frozenset({self.container} if self.container else ()),
            pids=frozenset({self._pid} if self._pid else ()),
            gpus=frozenset(self.uuids),
        )

    def reservations(self) -> list[VramReservation]:
        """Return the reserved VRAM and share, one entry per GPU.

        A container that waits for its job holds a share only if its endpoint names one.
        """
        vram_mb, share = self._resources.vram_mb, self.share
        if self.is_idle and self._resources.share is None:
            share = 0.0
        return [VramReservation(uuid, vram_mb, self.container, self._pid, self.is_idle, share) for uuid in self.uuids]

    @property
    def share(self) -> float:
        """Return the part of each of its GPUs that the container has while it runs a job."""
        return share_of(self._resources, self._allocator.settings.placement)

    @property
    def mps(self) -> MpsClient | None:
        """Return what the container gets of MPS if it starts now; None for a whole GPU, or without MPS."""
        settings = self._allocator.settings.mps
        return mps_client(settings, self.share, daemon_pid=find_control_daemon(settings)) if self.uuids else None

    def record(self, samples: tuple[GpuSample, ...], now: float, sharers: int) -> None:
        """Add one reading of the GPUs to the meter."""
        if self._meter is not None:
            self._meter = health.record_sample(self._meter, samples, now, sharers)


class GpuAllocator:
    """Assesses, reserves and meters the GPUs. `clock` is monotonic, in seconds."""

    def __init__(
        self, gpus: GpuMonitor, settings: GpuSettings, clock: Callable[[], float], pid_of: PidLookup = no_pid
    ) -> None:
        self._monitor = gpus
        self._clock = clock
        self._health: dict[str, GpuHealth] = {}
        self._allocations: list[GpuAllocation] = []
        self._kept_for = ""
        self._kept: frozenset[str] = frozenset()
        self.settings = settings
        self.pid_of = pid_of

    @property
    def snapshot(self) -> GpuSnapshot:
        """Return the latest reading of all GPUs."""
        return self._monitor.snapshot()

    async def run(self) -> None:
        """Assess every reading and every XID. Runs forever."""
        with self._monitor.events() as events:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._follow_snapshots)
                async for event in events:
                    self._handle_xid(event)

    def place(self, endpoint: Endpoint, disk_free_mb: int | None, *, warm: bool = False) -> Placed | Unplaceable:
        """Return the GPUs that a container of `endpoint` would get now.

        `disk_free_mb` is the free disk space in MiB where jobs write; None skips the check. `warm`: the container is to
        be started before its job.
        """
        capacity = self._capacity(endpoint, disk_free_mb)
        return place(capacity, endpoint.resources, self.settings.placement, warm=warm, required=endpoint.required_gpu)

    def can_start(self, allocation: GpuAllocation, endpoint: Endpoint) -> bool:
        """Return whether the warm container on these GPUs could start its job now."""
        snapshot = self.snapshot
        samples = tuple(sample for sample in snapshot.samples if sample.uuid in allocation.uuids)
        capacity = replace(self._capacity(endpoint), snapshot=replace(snapshot, samples=samples))
        placed = place(capacity, endpoint.resources, self.settings.placement, required=endpoint.required_gpu)
        return isinstance(placed, Placed)

    def keep_gpus(self, endpoint: Endpoint | None) -> None:
        """Keep the GPUs that are soonest free for this endpoint: no other one starts there. None: keep none."""
        if endpoint is None:
            self._kept_for, self._kept = "", frozenset()
        elif endpoint.name != self._kept_for or not self._kept:
            self._kept_for = endpoint.name
            self._kept = choose_kept_gpus(
                self._capacity(endpoint), endpoint.resources, self.settings.placement, endpoint.required_gpu
            )

    def _capacity(self, endpoint: Endpoint, disk_free_mb: int | None = None) -> PlacementCapacity:
        kept = frozenset[str]() if endpoint.name == self._kept_for else self._kept
        return PlacementCapacity(self.snapshot, self._health, self._reservations, disk_free_mb, kept)

    def is_unfit(self, allocation: GpuAllocation) -> bool:
        """Return whether a warm container should give these GPUs up: one erred, or the machine's owner uses it."""
        all_fit = all(self._health_of(uuid).status in WARM_STATUSES for uuid in allocation.uuids)
        return allocation.xid is not None or not all_fit

    def must_evict_warm(self, allocation: GpuAllocation) -> bool:
        """Return whether warm containers on these GPUs must go so that this container finds its VRAM."""
        reserve = self.settings.placement.reserve_mb
        samples = [sample for sample in self.snapshot.samples if sample.uuid in allocation.uuids]
        return any(
            free_mb(sample, [reservation for reservation in self._reservations if reservation.uuid == sample.uuid])
            < reserve
            for sample in samples
        )

    def allocate(self, uuids: tuple[str, ...], endpoint: Endpoint | None, *, is_idle: bool = False) -> GpuAllocation:
        """Reserve these GPUs for one container."""
        allocation = GpuAllocation(self, uuids, endpoint.resources if endpoint else Resources(), is_idle=is_idle)
        self._allocations.append(allocation)
        return allocation

    def is_in_use(self, uuid: str) -> bool:
        """Return whether any container has this GPU."""
        return any(uuid in allocation.uuids for allocation in self._allocations)

    def foreign_gpus(self) -> tuple[str, ...]:
        """Return the GPUs that programs of other people use, or used a moment ago."""
        now = self._clock()
        return tuple(
            gpu.uuid for gpu in self._health.values() if health.describe_foreign_use(gpu, now, self.settings.fitness)
        )

    def probe_candidates(self) -> tuple[str, ...]:
        """Return the GPUs that erred and may be probed now: the error no longer shows, and no container has them."""
        return tuple(
            gpu.uuid
            for gpu in self._health.values()
            if gpu.needs_probe and gpu.status is not GpuHealthStatus.LOST and not self.is_in_use(gpu.uuid)
        )

    def clear_fault(self, uuid: str) -> None:
        """Clear the fault of this GPU: a probe succeeded on it."""
        self._health[uuid] = health.clear_fault(self._health_of(uuid), self._clock())

    def free(self, allocation: GpuAllocation) -> None:
        """Remove an allocation. Only `GpuAllocation` calls this."""
        if allocation in self._allocations:
            self._allocations.remove(allocation)

    def count_sharers(self, allocation: GpuAllocation) -> int:
        """Return how many jobs use the GPUs of `allocation`, itself included."""
        return sum(
            1
            for other in self._allocations
            if other is allocation or (not other.is_idle and set(other.uuids) & set(allocation.uuids))
        )

    def mark_faulty(self, uuids: tuple[str, ...], reason: str) -> None:
        """Mark these GPUs as faulty: nothing starts there until a probe has succeeded."""
        for uuid in uuids:
            self._health[uuid] = health.mark_faulty(self._health_of(uuid), reason, self._clock())

    def reports(self) -> tuple[GpuReport, ...]:
        """Return the GPUs as `GET /v1/hosts` shows them."""
        reports, jobs = gpu_reports(self.snapshot, self._health), [job for job in self._reservations if not job.is_idle]
        lost = {gpu.uuid for gpu in self.snapshot.lost}
        return tuple(
            replace(report, share_free=round(max(0.0, free_share(job for job in jobs if job.uuid == report.uuid)), 4))
            if report.uuid not in lost
            else report
            for report in reports
        )

    async def _follow_snapshots(self) -> None:
        snapshot = self._monitor.snapshot()
        while True:
            self._apply_snapshot(snapshot)
            snapshot = await self._monitor.wait_for_change(snapshot)

    def _apply_snapshot(self, snapshot: GpuSnapshot) -> None:
        now = self._clock()
        self._health = health.assess_all(self._health, snapshot, now, self._own_processes, self.settings.fitness)
        if snapshot.state is GpuMonitorState.OK:  # otherwise the samples are old
            for allocation in self._allocations:
                allocation.record(snapshot.samples, now, self.count_sharers(allocation))

    @property
    def _own_processes(self) -> OwnProcesses:
        containers = [allocation.own_processes for allocation in self._allocations]
        # The MPS server is a child of its control daemon, and works for our jobs.
        mps = frozenset({pid} if (pid := find_control_daemon(self.settings.mps)) is not None else ())
        return OwnProcesses(
            containers=frozenset().union(*(container.containers for container in containers)),
            pids=mps.union(*(container.pids for container in containers)),
            gpus=frozenset().union(*(container.gpus for container in containers)),
        )

    @property
    def _reservations(self) -> tuple[VramReservation, ...]:
        return tuple(reservation for allocation in self._allocations for reservation in allocation.reservations())

    def _handle_xid(self, event: XidEvent) -> None:
        if not event.uuid:  # the driver did not name the GPU, so none can be blamed
            return
        self._health[event.uuid] = health.handle_xid(
            self._health_of(event.uuid), event, self._clock(), self.settings.fitness
        )
        is_gpu_fault = event.xid not in self.settings.fitness.application_xids
        for allocation in self._allocations:
            if event.uuid in allocation.uuids and (allocation.xid is None or is_gpu_fault):
                allocation.xid = event.xid

    def _health_of(self, uuid: str) -> GpuHealth:
        return self._health.get(uuid) or GpuHealth(uuid)
