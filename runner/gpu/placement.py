"""Which GPUs a container gets, or why none, and whose turn it is. Pure.

Jobs share a GPU if their shares add up to 1 at most and their VRAM fits. An endpoint without `share` takes
1 / `containers_per_gpu`, so by default the whole GPU. A container that waits for its job computes nothing. It holds its
share against other waiting containers, never against a job.

An endpoint asks for `gpus` GPUs with `vram_mb` free on each. With `gpu_optional` it runs on the CPU if the host has no
GPU; a GPU that is only busy or unhealthy is waited for.

Jobs with small shares must not start past a job with a large one for ever: a GPU on which small jobs come and go is
never empty, so a job that needs all of it would not start. When an endpoint was refused for its share for
`turn_after_s` and a job of it waits, GPUs are kept for it: no other endpoint starts there until it has started, or
until no job of it waits any more. GPUs are kept for one endpoint at a time, the one that was refused first. A job of
priority `low` gets no turn.

A runner sees only the first message of a pool. In the pool of several endpoints this may be a message of another one,
and a message that was returned because its job cannot start is hidden for `hidden_s`. So a job that was seen counts as
waiting for twice that time, and one look at such a pool that finds no job of the endpoint proves nothing.

Without a job, `turn_after_s` begins again. So a job waits at most twice that time, and then for the jobs that run on
these GPUs already.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from runner.gpu.process_owner import OwnProcesses, is_own
from schemas.endpoint import Resources
from schemas.endpoint_parts import GpuRequirement
from schemas.gpu import GpuHealth, GpuHealthStatus, GpuMonitorState, GpuSample, GpuSnapshot
from schemas.job import WAIT_REASON_ORDER, WaitReason

SHARE_TOLERANCE = 1e-6  # ten shares of 0.1 add up to 1, whatever floating-point numbers say


class VramReservation(Struct, frozen=True):
    """VRAM and share reserved for one container on one GPU, from before its start until its removal.

    `container` or `pid` (process engine) identifies the running container, so that memory in use is not counted twice.
    `is_idle`: the container is warm and is evicted for any job.
    """

    uuid: str
    vram_mb: int
    container: str | None = None
    pid: int | None = None
    is_idle: bool = False
    share: float = 1.0


class PlacementCapacity(Struct, frozen=True):
    """Free resources of this host. `disk_free_mb` is measured where jobs write; None: not measured.

    `kept`: UUIDs of GPUs that are kept for a job of another endpoint (`runner.gpu.placement`).
    """

    snapshot: GpuSnapshot
    health_by_uuid: Mapping[str, GpuHealth]
    reservations: tuple[VramReservation, ...] = ()
    disk_free_mb: int | None = None
    kept: frozenset[str] = frozenset()


class PlacementPolicy(Struct, frozen=True):
    """Memory and disk that stay free on a host, and how many containers share a GPU."""

    reserve_mb: int = 512
    """Memory that stays free on every GPU, for CUDA contexts and the desktop."""
    disk_reserve_mb: int = 2048
    """Space that stays free on the disk."""
    containers_per_gpu: Annotated[int, Meta(ge=1)] = 1
    """Jobs of endpoints without `share` that may use one GPU at once. Each takes 1 / `containers_per_gpu` of it."""
    turn_after_s: Annotated[float, Meta(ge=0)] = 60.0
    """How long smaller jobs may start past a job that needs a larger share of a GPU than is free."""


class Placed(Struct, frozen=True):
    """The UUIDs of the GPUs to inject; none for a container that runs on the CPU."""

    uuids: tuple[str, ...] = ()


class Unplaceable(Struct, frozen=True):
    """No placement now. `reason` is shown for waiting jobs, `why` goes to the log."""

    reason: WaitReason
    why: str


NO_GPU_STATES = frozenset({GpuMonitorState.NONE, GpuMonitorState.NO_DRIVER})
REASON_BY_STATUS = {
    GpuHealthStatus.HOT: WaitReason.GPU_UNHEALTHY,
    GpuHealthStatus.UNHEALTHY: WaitReason.GPU_UNHEALTHY,
    GpuHealthStatus.LOST: WaitReason.GPU_UNHEALTHY,
    GpuHealthStatus.BUSY_OWNER: WaitReason.GPU_BUSY_OWNER,
}
DEFAULT_POLICY = PlacementPolicy()
ANY_GPU = GpuRequirement()


def place(
    capacity: PlacementCapacity,
    need: Resources,
    policy: PlacementPolicy = DEFAULT_POLICY,
    *,
    warm: bool = False,
    required: GpuRequirement = ANY_GPU,
) -> Placed | Unplaceable:
    """Choose the GPUs for one container: the least crowded first, then the tightest fit, so that large gaps stay whole.

    An endpoint with `share` gets the GPU with the least free share that is enough: others stay free for whole jobs.

    Only GPUs that meet `required` are used. Without one, work that can do without a GPU does so.
    `warm`: the container is started before its job, takes no job's place, and evicts nothing.
    """
    snapshot = capacity.snapshot
    if capacity.disk_free_mb is not None and capacity.disk_free_mb < need.disk_mb + policy.disk_reserve_mb:
        short = f"{capacity.disk_free_mb} MB of disk are free, {need.disk_mb} + {policy.disk_reserve_mb} MB are needed"
        return Unplaceable(WaitReason.DISK_SHORT, short)
    if need.gpus == 0 or (need.gpu_optional and snapshot.state in NO_GPU_STATES and not snapshot.lost):
        return Placed()
    if snapshot.state is not GpuMonitorState.OK:
        is_absent = snapshot.state is GpuMonitorState.NONE and not snapshot.lost
        return Unplaceable(WaitReason.GPU_NONE if is_absent else WaitReason.GPU_UNHEALTHY, snapshot.why)
    if (unmet := describe_unmet_gpus(snapshot, need, required)) is not None:
        return Placed() if need.gpu_optional else Unplaceable(WaitReason.REQUIREMENT_UNMET, unmet)
    snapshot = _keep_suitable(snapshot, required)
    share = share_of(need, policy)
    offers, refusals = [], []
    for sample in snapshot.samples:
        reservations = [reservation for reservation in capacity.reservations if reservation.uuid == sample.uuid]
        jobs = [reservation for reservation in reservations if not reservation.is_idle]
        reclaimable_mb = (
            0 if warm else sum(_used_mb(sample, reservation) for reservation in reservations if reservation.is_idle)
        )
        available_mb = free_mb(sample, reservations if warm else jobs) + reclaimable_mb - policy.reserve_mb
        left = free_share(reservations if warm else jobs)
        # A waiting container without a share of its own may load beside a job, to take its place.
        missing = 0.0 if warm and need.share is None else share - left
        refusal = _explain_unfitness(capacity.health_by_uuid.get(sample.uuid), sample.index)
        refusal = refusal or _explain_share(capacity, sample, left, missing)
        refusal = refusal or _explain_vram(sample.index, available_mb, need)
        if refusal is None:
            crowding = len(reservations) if need.share is None else free_share(jobs)
            offers.append((crowding, available_mb, sample.index, sample.uuid))
        else:
            refusals.append(refusal)
    if len(offers) >= need.gpus:
        return Placed(tuple(uuid for *_, uuid in sorted(offers)[: need.gpus]))
    return _choose_reason(refusals, snapshot, need)


def describe_unmet_gpus(snapshot: GpuSnapshot, need: Resources, required: GpuRequirement) -> str | None:
    """Return which GPUs this host does not have, or None if it has them, whether they are free or not."""
    if required.is_any or not need.gpus:
        return None
    suitable = _keep_suitable(snapshot, required)
    if len(suitable.samples) + len(suitable.lost) >= need.gpus:
        return None
    found = [f"{sample.name}, {sample.compute_capability or 'unknown'}" for sample in snapshot.samples]
    wanted = "a GPU" if need.gpus == 1 else f"{need.gpus} GPUs"
    return f"{wanted} ({required.describe()}) (it has {'; '.join(found) or 'no GPU'})"


def _keep_suitable(snapshot: GpuSnapshot, required: GpuRequirement) -> GpuSnapshot:
    """Return the snapshot with the GPUs that meet the requirement, or may: a lost one does not say."""
    if required.is_any:
        return snapshot
    samples = tuple(one for one in snapshot.samples if required.is_met_by(one.name, one.compute_capability))
    return replace(snapshot, samples=samples, lost=tuple(one for one in snapshot.lost if required.may_be(one.name)))


def share_of(need: Resources, policy: PlacementPolicy) -> float:
    """Return the part of each of its GPUs that a container takes."""
    return need.share if need.share is not None else 1 / policy.containers_per_gpu


def free_share(reservations: Iterable[VramReservation]) -> float:
    """Return the part of a GPU that these reservations leave; below 0 if adopted jobs have more than the whole."""
    left = 1 - sum(reservation.share for reservation in reservations)
    return 0.0 if abs(left) < SHARE_TOLERANCE else left


def free_mb(sample: GpuSample, reservations: Iterable[VramReservation]) -> int:
    """Return the free VRAM of the sample less what is reserved and not used yet. MB; may be negative."""
    return sample.memory_free_mb - sum(
        max(0, reservation.vram_mb - _used_mb(sample, reservation)) for reservation in reservations
    )


def is_fit(capacity: PlacementCapacity, sample: GpuSample) -> bool:
    """Return whether the health of this GPU allows work on it."""
    health = capacity.health_by_uuid.get(sample.uuid)
    return health is not None and health.status is GpuHealthStatus.FIT


def _used_mb(sample: GpuSample, reservation: VramReservation) -> int:
    """Return what the container's processes use now; an unknown amount counts as 0, which offers too little."""
    own = OwnProcesses(
        containers=frozenset({reservation.container} if reservation.container else ()),
        pids=frozenset({reservation.pid} if reservation.pid else ()),
    )
    return sum(process.used_mb or 0 for process in sample.processes if is_own(process, own))


def _explain_unfitness(health: GpuHealth | None, index: int) -> Unplaceable | None:
    """Return why nothing may start on this GPU; None if something may."""
    if health is None:
        return Unplaceable(WaitReason.GPU_UNHEALTHY, f"GPU {index} was not assessed yet")
    if health.status is not GpuHealthStatus.FIT:
        return Unplaceable(REASON_BY_STATUS[health.status], f"GPU {index}: {health.why}")
    return None


def _explain_share(capacity: PlacementCapacity, sample: GpuSample, left: float, missing: float) -> Unplaceable | None:
    """Return why this GPU has no share for the job; None if it has.

    `left`: the share that is free; `missing`: how much more the job needs.
    """
    if sample.uuid in capacity.kept:
        return Unplaceable(WaitReason.BEHIND, f"GPU {sample.index} is kept for a job that needs a larger share")
    if missing <= SHARE_TOLERANCE:
        return None
    if left <= 0:
        return Unplaceable(WaitReason.BEHIND, f"GPU {sample.index} is taken")
    need = f"{left + missing:.0%} of it are needed"
    return Unplaceable(WaitReason.GPU_SHARE_SHORT, f"{left:.0%} of GPU {sample.index} are free, {need}")


def _explain_vram(index: int, available_mb: int, need: Resources) -> Unplaceable | None:
    if available_mb >= need.vram_mb:
        return None
    return Unplaceable(
        WaitReason.VRAM_SHORT, f"GPU {index} has {available_mb} MB available, {need.vram_mb} MB are needed"
    )


def _choose_reason(refusals: list[Unplaceable], snapshot: GpuSnapshot, need: Resources) -> Unplaceable:
    """Return the reason of the GPU closest to accepting the job: a full GPU is more informative than a lost one."""
    if refusals and len(snapshot.samples) >= need.gpus:
        return max(refusals, key=lambda refusal: WAIT_REASON_ORDER.index(refusal.reason))
    if not snapshot.lost:
        return Unplaceable(WaitReason.GPU_NONE, f"{need.gpus} GPUs are needed, this host has {len(snapshot.samples)}")
    return Unplaceable(
        WaitReason.GPU_UNHEALTHY, "; ".join(f"GPU {gpu.uuid or gpu.index}: {gpu.why}" for gpu in snapshot.lost)
    )


LOOK_INTERVAL_S = 5.0  # how often the queue of an endpoint is looked at, at most


class ShareTurns:
    """Endpoints that were refused for their share, and the one for which GPUs are kept. Times are in seconds."""

    def __init__(self, patience_s: float, hidden_s: float) -> None:
        self._patience_s = patience_s
        self._seen_for_s = 2 * hidden_s
        self._refused_since: dict[str, float] = {}
        self._looked_at: dict[str, float] = {}
        self._seen_at: dict[str, float] = {}  # when a job of the endpoint was last seen to wait
        self._unseen_at: dict[str, float] = {}  # from this time on, no job of the endpoint counts as waiting
        self.kept_for: str | None = None

    def note_refused(self, refused: Mapping[str, WaitReason], gpus_needed: Mapping[str, int], now: float) -> None:
        """Record which endpoints cannot start now, and why. `gpus_needed`: the number of GPUs that each endpoint needs.

        An endpoint that cannot start for another reason than its share, or that was removed, loses its turn.
        """
        self._refused_since = {
            name: self._refused_since.get(name, now)
            for name, reason in refused.items()
            if reason is WaitReason.GPU_SHARE_SHORT
            or (reason is WaitReason.BEHIND and (name in self._refused_since or gpus_needed[name] > 1))
        }
        is_refused_otherwise = self.kept_for in refused and self.kept_for not in self._refused_since
        if is_refused_otherwise or self.kept_for not in gpus_needed:
            self.kept_for = None
        for name in (self._looked_at.keys() | self._seen_at) - self._refused_since.keys() - {self.kept_for}:
            self._forget_looks(name)

    def name_to_check(self, now: float) -> str | None:
        """Return the endpoint whose queue must be looked at now; None without one."""
        names, pause_s = self._due(now), min(LOOK_INTERVAL_S, self._patience_s)
        if self.kept_for is not None:
            names, pause_s = [self.kept_for], LOOK_INTERVAL_S
        looked_at = {name: self._looked_at.get(name, -math.inf) for name in names}
        return min(
            (name for name in names if now - looked_at[name] >= pause_s), key=looked_at.__getitem__, default=None
        )

    def note_looked(self, name: str, found: str | None, now: float, *, is_shared: bool) -> None:
        """Record a look at the queue of `name`. `found`: the endpoint of the first job there; None if no job is there.

        `is_shared`: other endpoints may have the same pool.
        """
        self._looked_at[name] = now
        if found is not None:
            self.note_waiting(found, now)
        if found != name:
            self._unseen_at.setdefault(name, now + self._seen_for_s if is_shared else now)

    def note_waiting(self, name: str, now: float) -> None:
        """Record that a job of this endpoint waits: its message was seen."""
        self._seen_at[name] = now
        self._unseen_at.pop(name, None)

    def choose(self, now: float) -> None:
        """Give the turn to the endpoint that was refused first and has a job. Without a job, its patience restarts."""
        for name in [self.kept_for] if self.kept_for is not None else self._due(now):
            if now >= self._unseen_at.get(name, math.inf):
                self._restart(name, now)
            elif self.kept_for is None and now - self._seen_at.get(name, -math.inf) < self._seen_for_s:
                self.kept_for = name

    def note_started(self, name: str) -> None:
        """Record that a job of this endpoint has started: its turn is over."""
        self._refused_since.pop(name, None)
        self._forget_looks(name)
        if self.kept_for == name:
            self.kept_for = None

    def _due(self, now: float) -> list[str]:
        """Return the endpoints whose patience is over, first the one that was refused first."""
        due = [name for name, since in self._refused_since.items() if now - since >= self._patience_s]
        return sorted(due, key=self._refused_since.__getitem__)

    def _restart(self, name: str, now: float) -> None:
        self._forget_looks(name)
        if name in self._refused_since:
            self._refused_since[name] = now
        if self.kept_for == name:
            self.kept_for = None

    def _forget_looks(self, name: str) -> None:
        for times in (self._looked_at, self._seen_at, self._unseen_at):
            times.pop(name, None)


def choose_kept_gpus(
    capacity: PlacementCapacity, need: Resources, policy: PlacementPolicy, required: GpuRequirement = ANY_GPU
) -> frozenset[str]:
    """Return the GPUs to keep for a job: those with the most share free. None if too few could ever take it."""
    offers = [
        (-free_share(one for one in capacity.reservations if one.uuid == sample.uuid and not one.is_idle), sample.index)
        for sample in capacity.snapshot.samples
        if is_fit(capacity, sample)
        and required.is_met_by(sample.name, sample.compute_capability)
        and sample.memory_total_mb - policy.reserve_mb >= need.vram_mb
    ]
    chosen = {index for _, index in sorted(offers)[: need.gpus]}
    if len(chosen) < need.gpus:
        return frozenset()
    return frozenset(sample.uuid for sample in capacity.snapshot.samples if sample.index in chosen)
