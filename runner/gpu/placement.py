"""Which cards a container gets, or why none. Pure.

An endpoint asks for `gpus` cards with `vram_mb` free on each. With `gpu_optional` the CPU will do where the host has no
card; a card that is only busy or unfit is waited for.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from runner.gpu.process_owner import OwnProcesses, is_own
from schemas.endpoint import Resources
from schemas.gpu import GpuHealth, GpuHealthStatus, GpuMonitorState, GpuSample, GpuSnapshot
from schemas.status import WAIT_REASON_ORDER, WaitReason


class VramReservation(Struct, frozen=True):
    """VRAM promised to one container on one card, from before it starts until it is removed.

    `container` and `pid` (process engine) name it once it runs: what it has taken already is not counted twice.
    `idle`: it waits for a job, and gives way to any other.
    """

    uuid: str
    vram_mb: int
    container: str | None = None
    pid: int | None = None
    is_idle: bool = False


class PlacementCapacity(Struct, frozen=True):
    """What this host has to give just now. `disk_free_mb` is of the folder that jobs write to; None: not measured."""

    snapshot: GpuSnapshot
    health_by_uuid: Mapping[str, GpuHealth]
    reservations: tuple[VramReservation, ...] = ()
    disk_free_mb: int | None = None


class PlacementPolicy(Struct, frozen=True):
    """`reserve_mb` stays free on every card, for CUDA contexts and the desktop; `disk_reserve_mb` on the disk."""

    reserve_mb: int = 512
    disk_reserve_mb: int = 2048
    containers_per_gpu: int = 1


class Placed(Struct, frozen=True):
    """The UUIDs to inject; none for a container that runs on the CPU."""

    uuids: tuple[str, ...] = ()


class Unplaceable(Struct, frozen=True):
    """Not now: a waiting job's reason, and the details for the log."""

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


def place(
    supply: PlacementCapacity, need: Resources, policy: PlacementPolicy = DEFAULT_POLICY, *, ahead: bool = False
) -> Placed | Unplaceable:
    """The cards for one container: least crowded first, then the tightest fit, so that large gaps stay whole.

    `ahead`: it is started before its job, takes no job's place, and nothing gives way to it.
    """
    snapshot = supply.snapshot
    if supply.disk_free_mb is not None and supply.disk_free_mb < need.disk_mb + policy.disk_reserve_mb:
        short = f"{supply.disk_free_mb} MB of disk are free, {need.disk_mb} + {policy.disk_reserve_mb} MB are needed"
        return Unplaceable(WaitReason.DISK_SHORT, short)
    if need.gpus == 0 or (need.gpu_optional and snapshot.state in NO_GPU_STATES and not snapshot.lost):
        return Placed()
    if snapshot.state is GpuMonitorState.NONE and not snapshot.lost:
        return Unplaceable(WaitReason.GPU_NONE, snapshot.why)
    if snapshot.state is not GpuMonitorState.OK:
        return Unplaceable(WaitReason.GPU_UNHEALTHY, snapshot.why)
    offers, refusals = [], []
    for sample in snapshot.samples:
        here = [reservation for reservation in supply.reservations if reservation.uuid == sample.uuid]
        jobs = [reservation for reservation in here if not reservation.is_idle]
        yielded = 0 if ahead else sum(_used_mb(sample, one) for one in here if one.is_idle)
        free = free_mb(sample, here if ahead else jobs) + yielded - policy.reserve_mb
        full = not ahead and len(jobs) >= policy.containers_per_gpu
        refused = _explain_refusal(supply.health_by_uuid.get(sample.uuid), sample.index, free, full, need)
        if refused is None:
            offers.append((len(here), free, sample.index, sample.uuid))
        else:
            refusals.append(refused)
    if len(offers) >= need.gpus:
        return Placed(tuple(uuid for *_, uuid in sorted(offers)[: need.gpus]))
    return _choose_reason(refusals, snapshot, need)


def free_mb(sample: GpuSample, held: Iterable[VramReservation]) -> int:
    """What is free by the sample, less what was promised here and not taken yet. May be negative. MB."""
    return sample.memory_free_mb - sum(max(0, one.vram_mb - _used_mb(sample, one)) for one in held)


def _used_mb(sample: GpuSample, reservation: VramReservation) -> int:
    """What the container's processes use now; an unknown amount counts as nothing, which promises too little."""
    mine = OwnProcesses(
        containers=frozenset({reservation.container} if reservation.container else ()),
        pids=frozenset({reservation.pid} if reservation.pid else ()),
    )
    return sum(process.used_mb or 0 for process in sample.processes if is_own(process, mine))


def _explain_refusal(
    judgement: GpuHealth | None, index: int, free: int, full: bool, need: Resources
) -> Unplaceable | None:
    """Why this card cannot take it, gravest first; None when it can."""
    card = f"GPU {index}"
    if judgement is None:
        return Unplaceable(WaitReason.GPU_UNHEALTHY, f"{card} was not judged yet")
    if judgement.status is not GpuHealthStatus.FIT:
        return Unplaceable(REASON_BY_STATUS[judgement.status], f"{card}: {judgement.why}")
    if full:
        return Unplaceable(WaitReason.BEHIND, f"{card} holds as many containers as it may")
    if free < need.vram_mb:
        return Unplaceable(WaitReason.VRAM_SHORT, f"{card} has {free} MB to give, {need.vram_mb} MB are needed")
    return None


def _choose_reason(refusals: list[Unplaceable], snapshot: GpuSnapshot, need: Resources) -> Unplaceable:
    """The card that is nearest to taking it tells why it does not: a lost card beside a full one is not the news."""
    if refusals and len(snapshot.samples) >= need.gpus:
        return max(refusals, key=lambda refused: WAIT_REASON_ORDER.index(refused.reason))
    if not snapshot.lost:
        return Unplaceable(WaitReason.GPU_NONE, f"{need.gpus} GPUs are needed, this host has {len(snapshot.samples)}")
    return Unplaceable(
        WaitReason.GPU_UNHEALTHY, "; ".join(f"GPU {card.uuid or card.index}: {card.why}" for card in snapshot.lost)
    )
