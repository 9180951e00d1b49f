"""A sample of a healthy GPU, to vary."""

from msgspec.structs import replace

from schemas.gpu import (
    ClockReasons,
    GpuHealth,
    GpuHealthStatus,
    GpuMonitorState,
    GpuProcess,
    GpuRecoveryAction,
    GpuSample,
    GpuSnapshot,
    RemappedRows,
)

GPU_UUID = "GPU-0"
HEALTHY = GpuSample(
    index=0,
    uuid=GPU_UUID,
    name="A GPU",
    memory_total_mb=24576,
    memory_used_mb=0,
    memory_reserved_mb=256,
    memory_free_mb=24320,
    temperature_c=50,
    slowdown_c=90,
    clock_reasons=ClockReasons.IDLE,
    ecc_corrected=0,
    ecc_uncorrected=0,
    rows=RemappedRows(),
    retired_pending=False,
    recovery=GpuRecoveryAction.NONE,
    utilization=0,
    power_w=60.0,
    energy_mj=1000,
)


def make_sample(index: int = 0, **values: object) -> GpuSample:
    return replace(HEALTHY, index=index, uuid=f"GPU-{index}", **values)


def make_snapshot(*samples: GpuSample, state: GpuMonitorState = GpuMonitorState.OK, why: str = "") -> GpuSnapshot:
    return GpuSnapshot(state=state, at=1.0, samples=samples, why=why)


def fit_health(*indices: int) -> dict[str, GpuHealth]:
    return {f"GPU-{index}": GpuHealth(f"GPU-{index}", GpuHealthStatus.FIT) for index in indices}


FOREIGN_PROCESS = GpuProcess(99, used_mb=2000)
