"""Which cards a container gets, or why none. Pure.

An endpoint asks for `gpus` cards with `vram_mb` free on each. With `gpu_optional` the CPU will do where the host has no
card; a card that is only busy or unfit is waited for.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from runner.gpu.lineage import Ours, belongs
from schemas.endpoint import Resources
from schemas.gpu import Fitness, GpuSample, Judgement, Snapshot, WatchState
from schemas.reasons import ORDER, Reason


class Reservation(Struct, frozen=True):
    """VRAM promised to one container on one card, from before it starts until it is removed.

    `container` and `pid` (process engine) name it once it runs: what it has taken already is not counted twice.
    `idle`: it waits for a job, and gives way to any other.
    """

    uuid: str
    vram_mb: int
    container: str | None = None
    pid: int | None = None
    idle: bool = False


class Supply(Struct, frozen=True):
    """What this host has to give just now. `disk_free_mb` is of the folder that jobs write to; None: not measured."""

    snapshot: Snapshot
    judgements: Mapping[str, Judgement]
    reservations: tuple[Reservation, ...] = ()
    disk_free_mb: int | None = None


class PlacementPolicy(Struct, frozen=True):
    """`reserve_mb` stays free on every card, for CUDA contexts and the desktop; `disk_reserve_mb` on the disk."""

    reserve_mb: int = 512
    disk_reserve_mb: int = 2048
    containers_per_gpu: int = 1


class Placed(Struct, frozen=True):
    """The UUIDs to inject; none for a container that runs on the CPU."""

    uuids: tuple[str, ...] = ()


class Refused(Struct, frozen=True):
    """Not now: a waiting job's reason, and the details for the log."""

    reason: Reason
    why: str


WITHOUT_CARDS = frozenset({WatchState.NONE, WatchState.NO_DRIVER})
REFUSALS = {
    Fitness.HOT: Reason.GPU_UNHEALTHY,
    Fitness.UNHEALTHY: Reason.GPU_UNHEALTHY,
    Fitness.LOST: Reason.GPU_UNHEALTHY,
    Fitness.BUSY_OWNER: Reason.GPU_BUSY_OWNER,
}
USUAL = PlacementPolicy()


def place(supply: Supply, need: Resources, policy: PlacementPolicy = USUAL, *, ahead: bool = False) -> Placed | Refused:
    """The cards for one container: least crowded first, then the tightest fit, so that large gaps stay whole.

    `ahead`: it is started before its job, takes no job's place, and nothing gives way to it.
    """
    snapshot = supply.snapshot
    if supply.disk_free_mb is not None and supply.disk_free_mb < need.disk_mb + policy.disk_reserve_mb:
        short = f"{supply.disk_free_mb} MB of disk are free, {need.disk_mb} + {policy.disk_reserve_mb} MB are needed"
        return Refused(Reason.DISK_SHORT, short)
    if need.gpus == 0 or (need.gpu_optional and snapshot.state in WITHOUT_CARDS and not snapshot.lost):
        return Placed()
    if snapshot.state is WatchState.NONE and not snapshot.lost:
        return Refused(Reason.GPU_NONE, snapshot.why)
    if snapshot.state is not WatchState.OK:
        return Refused(Reason.GPU_UNHEALTHY, snapshot.why)
    offers, refusals = [], []
    for sample in snapshot.samples:
        here = [reservation for reservation in supply.reservations if reservation.uuid == sample.uuid]
        jobs = [reservation for reservation in here if not reservation.idle]
        yielded = 0 if ahead else sum(_taken_mb(sample, one) for one in here if one.idle)
        free = free_mb(sample, here if ahead else jobs) + yielded - policy.reserve_mb
        full = not ahead and len(jobs) >= policy.containers_per_gpu
        refused = _refusal(supply.judgements.get(sample.uuid), sample.index, free, full, need)
        if refused is None:
            offers.append((len(here), free, sample.index, sample.uuid))
        else:
            refusals.append(refused)
    if len(offers) >= need.gpus:
        return Placed(tuple(uuid for *_, uuid in sorted(offers)[: need.gpus]))
    return _nearest(refusals, snapshot, need)


def free_mb(sample: GpuSample, held: Iterable[Reservation]) -> int:
    """What is free by the sample, less what was promised here and not taken yet. May be negative. MB."""
    return sample.memory_free_mb - sum(max(0, one.vram_mb - _taken_mb(sample, one)) for one in held)


def _taken_mb(sample: GpuSample, reservation: Reservation) -> int:
    """What the container's processes use now; an unknown amount counts as nothing, which promises too little."""
    mine = Ours(
        containers=frozenset({reservation.container} if reservation.container else ()),
        pids=frozenset({reservation.pid} if reservation.pid else ()),
    )
    return sum(process.used_mb or 0 for process in sample.processes if belongs(process, mine))


def _refusal(judgement: Judgement | None, index: int, free: int, full: bool, need: Resources) -> Refused | None:
    """Why this card cannot take it, gravest first; None when it can."""
    card = f"GPU {index}"
    if judgement is None:
        return Refused(Reason.GPU_UNHEALTHY, f"{card} was not judged yet")
    if judgement.fitness is not Fitness.FIT:
        return Refused(REFUSALS[judgement.fitness], f"{card}: {judgement.why}")
    if full:
        return Refused(Reason.BEHIND, f"{card} holds as many containers as it may")
    if free < need.vram_mb:
        return Refused(Reason.VRAM_SHORT, f"{card} has {free} MB to give, {need.vram_mb} MB are needed")
    return None


def _nearest(refusals: list[Refused], snapshot: Snapshot, need: Resources) -> Refused:
    """The card that is nearest to taking it tells why it does not: a lost card beside a full one is not the news."""
    if refusals and len(snapshot.samples) >= need.gpus:
        return max(refusals, key=lambda refused: ORDER.index(refused.reason))
    if not snapshot.lost:
        return Refused(Reason.GPU_NONE, f"{need.gpus} GPUs are needed, this host has {len(snapshot.samples)}")
    return Refused(
        Reason.GPU_UNHEALTHY, "; ".join(f"GPU {card.uuid or card.index}: {card.why}" for card in snapshot.lost)
    )
