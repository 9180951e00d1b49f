"""A healthy card to vary."""

from msgspec.structs import replace

from schemas.gpu import (
    ClockReasons,
    Fitness,
    GpuProcess,
    GpuSample,
    Judgement,
    Recovery,
    RemappedRows,
    Snapshot,
    WatchState,
)

CARD = "GPU-0"
HEALTHY = GpuSample(
    index=0,
    uuid=CARD,
    name="Card",
    memory_total_mb=24576,
    memory_used_mb=0,
    memory_reserved_mb=256,
    memory_free_mb=24320,
    temperature_c=50,
    slowdown_c=90,
    reasons=ClockReasons.IDLE,
    ecc_corrected=0,
    ecc_uncorrected=0,
    rows=RemappedRows(),
    retired_pending=False,
    recovery=Recovery.NONE,
    utilization=0,
    power_w=60.0,
    energy_mj=1000,
)


def sample(index: int = 0, **values: object) -> GpuSample:
    return replace(HEALTHY, index=index, uuid=f"GPU-{index}", **values)


def snapshot(*samples: GpuSample, state: WatchState = WatchState.OK, why: str = "") -> Snapshot:
    return Snapshot(state=state, at=1.0, samples=samples, why=why)


def fit(*indices: int) -> dict[str, Judgement]:
    return {f"GPU-{index}": Judgement(f"GPU-{index}", Fitness.FIT) for index in indices}


STRANGER = GpuProcess(99, used_mb=2000)
