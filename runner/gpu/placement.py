"""Which GPUs a container gets, or why none. Pure.

An endpoint asks for `gpus` GPUs with `vram_mb` free on each. With `gpu_optional` it runs on the CPU if the host has no
GPU; a GPU that is only busy or unhealthy is waited for.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from runner.gpu.process_owner import OwnProcesses, is_own
from schemas.endpoint import Resources
from schemas.gpu import GpuHealth, GpuHealthStatus, GpuMonitorState, GpuSample, GpuSnapshot
from schemas.requirements import CardRequirement
from schemas.status import WAIT_REASON_ORDER, WaitReason


class VramReservation(Struct, frozen=True):
    """VRAM reserved for one container on one GPU, from before its start until its removal.

    `container` or `pid` (process engine) identifies the running container, so that memory in use is not counted twice.
    `is_idle`: the container is warm and is evicted for any job.
    """

    uuid: str
    vram_mb: int
    container: str | None = None
    pid: int | None = None
    is_idle: bool = False


class PlacementCapacity(Struct, frozen=True):
    """Free resources of this host. `disk_free_mb` is measured where jobs write; None: not measured."""

    snapshot: GpuSnapshot
    health_by_uuid: Mapping[str, GpuHealth]
    reservations: tuple[VramReservation, ...] = ()
    disk_free_mb: int | None = None


class PlacementPolicy(Struct, frozen=True):
    """Memory and disk that stay free on a host, and how many containers share a GPU."""

    reserve_mb: int = 512
    """Memory that stays free on every GPU, for CUDA contexts and the desktop."""
    disk_reserve_mb: int = 2048
    """Space that stays free on the disk."""
    containers_per_gpu: int = 1
    """Containers that may share one GPU."""


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
ANY_CARD = CardRequirement()


def place(
    capacity: PlacementCapacity,
    need: Resources,
    policy: PlacementPolicy = DEFAULT_POLICY,
    *,
    warm: bool = False,
    cards: CardRequirement = ANY_CARD,
) -> Placed | Unplaceable:
    """Choose the GPUs for one container: the least crowded first, then the tightest fit, so that large gaps stay whole.

    Only GPUs that meet `cards` are used. Without one, work that can do without a GPU does so.
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
    if (unmet := describe_unmet_cards(snapshot, need, cards)) is not None:
        return Placed() if need.gpu_optional else Unplaceable(WaitReason.REQUIREMENT_UNMET, unmet)
    snapshot = _keep_suitable(snapshot, cards)
    offers, refusals = [], []
    for sample in snapshot.samples:
        reservations = [reservation for reservation in capacity.reservations if reservation.uuid == sample.uuid]
        jobs = [reservation for reservation in reservations if not reservation.is_idle]
        reclaimable_mb = (
            0 if warm else sum(_used_mb(sample, reservation) for reservation in reservations if reservation.is_idle)
        )
        available_mb = free_mb(sample, reservations if warm else jobs) + reclaimable_mb - policy.reserve_mb
        is_full = not warm and len(jobs) >= policy.containers_per_gpu
        refusal = _explain_refusal(capacity.health_by_uuid.get(sample.uuid), sample.index, available_mb, is_full, need)
        if refusal is None:
            offers.append((len(reservations), available_mb, sample.index, sample.uuid))
        else:
            refusals.append(refusal)
    if len(offers) >= need.gpus:
        return Placed(tuple(uuid for *_, uuid in sorted(offers)[: need.gpus]))
    return _choose_reason(refusals, snapshot, need)


def describe_unmet_cards(snapshot: GpuSnapshot, need: Resources, cards: CardRequirement) -> str | None:
    """Return which cards this host does not have, or None if it has them, whether they are free or not."""
    if cards.is_any or not need.gpus:
        return None
    suitable = _keep_suitable(snapshot, cards)
    if len(suitable.samples) + len(suitable.lost) >= need.gpus:
        return None
    found = [f"{sample.name}, {sample.compute_capability or 'unknown'}" for sample in snapshot.samples]
    wanted = "a GPU" if need.gpus == 1 else f"{need.gpus} GPUs"
    return f"{wanted} ({cards.describe()}) (it has {'; '.join(found) or 'no GPU'})"


def _keep_suitable(snapshot: GpuSnapshot, cards: CardRequirement) -> GpuSnapshot:
    """Return the snapshot with the GPUs that meet the requirement, or may: a lost one does not say."""
    if cards.is_any:
        return snapshot
    samples = tuple(one for one in snapshot.samples if cards.is_met_by(one.name, one.compute_capability))
    return replace(snapshot, samples=samples, lost=tuple(one for one in snapshot.lost if cards.may_be(one.name)))


def free_mb(sample: GpuSample, reservations: Iterable[VramReservation]) -> int:
    """Return the free VRAM of the sample less what is reserved and not used yet. MB; may be negative."""
    return sample.memory_free_mb - sum(
        max(0, reservation.vram_mb - _used_mb(sample, reservation)) for reservation in reservations
    )


def _used_mb(sample: GpuSample, reservation: VramReservation) -> int:
    """Return what the container's processes use now; an unknown amount counts as 0, which offers too little."""
    own = OwnProcesses(
        containers=frozenset({reservation.container} if reservation.container else ()),
        pids=frozenset({reservation.pid} if reservation.pid else ()),
    )
    return sum(process.used_mb or 0 for process in sample.processes if is_own(process, own))


def _explain_refusal(
    health: GpuHealth | None, index: int, available_mb: int, is_full: bool, need: Resources
) -> Unplaceable | None:
    """Return why this GPU cannot take the container, worst reason first; None if it can."""
    gpu = f"GPU {index}"
    if health is None:
        return Unplaceable(WaitReason.GPU_UNHEALTHY, f"{gpu} was not assessed yet")
    if health.status is not GpuHealthStatus.FIT:
        return Unplaceable(REASON_BY_STATUS[health.status], f"{gpu}: {health.why}")
    if is_full:
        return Unplaceable(WaitReason.BEHIND, f"{gpu} has its limit of containers")
    if available_mb < need.vram_mb:
        return Unplaceable(
            WaitReason.VRAM_SHORT, f"{gpu} has {available_mb} MB available, {need.vram_mb} MB are needed"
        )
    return None


def _choose_reason(refusals: list[Unplaceable], snapshot: GpuSnapshot, need: Resources) -> Unplaceable:
    """Return the reason of the GPU closest to accepting the job: a full GPU is more informative than a lost one."""
    if refusals and len(snapshot.samples) >= need.gpus:
        return max(refusals, key=lambda refusal: WAIT_REASON_ORDER.index(refusal.reason))
    if not snapshot.lost:
        return Unplaceable(WaitReason.GPU_NONE, f"{need.gpus} GPUs are needed, this host has {len(snapshot.samples)}")
    return Unplaceable(
        WaitReason.GPU_UNHEALTHY, "; ".join(f"GPU {gpu.uuid or gpu.index}: {gpu.why}" for gpu in snapshot.lost)
    )
