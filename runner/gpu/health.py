"""Health of a GPU, and its use by jobs. Pure: each value follows from the one before it and one sample.

A GPU's own error keeps it unhealthy until a probe has succeeded (`clear_fault`), even if the error no longer shows.
Heat and foreign processes pass on their own, with a margin and a quiet time, so that a GPU at the limit does not flap.

The use of a job is its peak VRAM, mean utilization, energy and cost.
"""

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from runner.gpu.process_owner import NO_PROCESSES, OwnProcesses, is_foreign, is_own
from schemas.gpu import (
    ClockReasons,
    GpuHealth,
    GpuHealthStatus,
    GpuMonitorState,
    GpuRecoveryAction,
    GpuSample,
    GpuSnapshot,
    LostGpu,
    XidEvent,
)
from schemas.host import GpuReport
from schemas.job import AttemptUsage

HealthCheck = Callable[[GpuHealth, GpuSample], str]
"""Returns what this sample shows to be wrong; "" if nothing is."""

# What an XID means. Sources: NVIDIA's XID catalogue, and the skip list of its Kubernetes device plugin.
# Faults of the job: the driver ended its context, and the GPU is fine.
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})

# Faults of the GPU. An XID in neither table counts as one too: a probe is cheap, a bad GPU is not.
GPU_XIDS = {
    48: "double bit ECC error",
    61: "firmware breakpoint",
    62: "firmware halt",
    63: "memory row remapping recorded",
    64: "memory row remapping failed",
    74: "NVLink error",
    79: "fell off the bus",
    92: "high rate of single bit ECC errors",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "GSP firmware timeout",
    120: "GSP firmware error",
}


class GpuHealthPolicy(Struct, frozen=True):
    """Limits of the assessment. Temperatures are relative to the GPU's own slowdown threshold."""

    hot_margin_c: int = 5
    """A GPU is hot when it is this close to its slowdown temperature."""
    cool_margin_c: int = 15
    """A hot GPU is fit again when it is this far below its slowdown temperature."""
    slowdown_c: int = 90
    """The slowdown temperature of a GPU that publishes none."""
    brakes: int = ClockReasons.HW_SLOWDOWN | ClockReasons.HW_THERMAL | ClockReasons.HW_POWER_BRAKE
    """Bit mask of NVML's clock event reasons that count as hot: by default only slowdowns by the hardware. Many GPUs
    run at their software thermal target all day, and that is not a fault.
    """
    brake_quiet_s: float = 30.0
    """A GPU that was slowed down is fit again after this time without a slowdown."""
    owner_settle_s: float = 2.0
    """A foreign process counts after this time. The driver may list a process of ours for a moment after its container
    is gone.
    """
    owner_quiet_s: float = 60.0
    """A GPU is free again after this time without a foreign process."""
    drawing_mb: int = 1500
    """A graphics process counts as foreign if it uses this much GPU memory or more: a game does, a desktop does not."""
    application_xids: frozenset[int] = APPLICATION_XIDS
    """XID errors that a program causes; they are no fault of the GPU."""


DEFAULT_POLICY = GpuHealthPolicy()


def _check_recovery_action(_: GpuHealth, sample: GpuSample) -> str:
    action = sample.recovery
    return "" if action in {None, GpuRecoveryAction.NONE} else f"the driver asks for {str(action).replace('_', ' ')}"


def _check_rows_failed(_: GpuHealth, sample: GpuSample) -> str:
    return "a memory row could not be remapped: replace the GPU" if sample.rows and sample.rows.failed else ""


def _check_rows_pending(_: GpuHealth, sample: GpuSample) -> str:
    return "a memory row waits to be remapped: reset the GPU" if sample.rows and sample.rows.pending else ""


def _check_pages_pending(_: GpuHealth, sample: GpuSample) -> str:
    return "memory pages wait to be retired: reset the GPU" if sample.retired_pending else ""


def _check_ecc_growth(previous: GpuHealth, sample: GpuSample) -> str:
    """Return the errors since the last sample. The counter starts at 0 with the driver, and old errors do not count."""
    new = (sample.ecc_uncorrected or 0) - (previous.ecc_uncorrected or 0)
    return f"{new} uncorrected memory errors" if previous.ecc_uncorrected is not None and new > 0 else ""


# Errors that a sample shows and that need a probe, worst first.
HEALTH_CHECKS: tuple[HealthCheck, ...] = (
    _check_rows_failed,
    _check_recovery_action,
    _check_rows_pending,
    _check_pages_pending,
    _check_ecc_growth,
)


def assess_all(
    previous: Mapping[str, GpuHealth],
    snapshot: GpuSnapshot,
    now: float,
    own: OwnProcesses = NO_PROCESSES,
    policy: GpuHealthPolicy = DEFAULT_POLICY,
) -> dict[str, GpuHealth]:
    """Assess every GPU of the snapshot, by UUID. While the monitor is not OK, the health stays as it was."""
    healths = dict(previous)
    if snapshot.state is not GpuMonitorState.OK:
        return healths
    for sample in snapshot.samples:
        health = healths.get(sample.uuid) or GpuHealth(sample.uuid, since=now)
        healths[sample.uuid] = assess(health, sample, now, own, policy)
    for gpu in (gpu for gpu in snapshot.lost if gpu.uuid):
        health = healths.get(gpu.uuid) or GpuHealth(gpu.uuid, since=now)
        healths[gpu.uuid] = assess_lost(health, gpu, now)
    return healths


def assess(
    previous: GpuHealth,
    sample: GpuSample,
    now: float,
    own: OwnProcesses = NO_PROCESSES,
    policy: GpuHealthPolicy = DEFAULT_POLICY,
) -> GpuHealth:
    """Assess one GPU by this sample. `now` is in seconds, on any clock that does not jump back."""
    fault = next((text for check in HEALTH_CHECKS if (text := check(previous, sample))), "")
    foreign_since = _foreign_since(previous, sample, now, own, policy)
    is_settled = foreign_since is not None and now - foreign_since >= policy.owner_settle_s
    current = replace(
        previous,
        fault=fault or previous.fault,
        fault_persists=bool(fault),
        ecc_uncorrected=sample.ecc_uncorrected,
        slowed_at=now if (sample.clock_reasons or 0) & policy.brakes else previous.slowed_at,
        foreign_since=foreign_since,
        foreign_seen_at=now if is_settled else previous.foreign_seen_at,
    )
    return _with_worst_status(previous, current, sample, now, policy)


def _with_worst_status(
    previous: GpuHealth, current: GpuHealth, sample: GpuSample, now: float, policy: GpuHealthPolicy
) -> GpuHealth:
    """Set the worst status that holds."""
    findings = (
        (GpuHealthStatus.UNHEALTHY, current.fault),
        (GpuHealthStatus.HOT, _describe_heat(previous, current, sample, now, policy)),
        (GpuHealthStatus.BUSY_OWNER, describe_foreign_use(current, now, policy)),
    )
    status, reason = next(((status, reason) for status, reason in findings if reason), (GpuHealthStatus.FIT, ""))
    return _with_status(current, status, reason, now)


def _describe_heat(
    previous: GpuHealth, current: GpuHealth, sample: GpuSample, now: float, policy: GpuHealthPolicy
) -> str:
    if _is_recent(current.slowed_at, now, policy.brake_quiet_s):
        return "the hardware slows the GPU down (heat or power brake)"
    if sample.temperature_c is None:
        return ""
    limit = sample.slowdown_c or policy.slowdown_c
    margin = policy.cool_margin_c if previous.status is GpuHealthStatus.HOT else policy.hot_margin_c
    too_hot = sample.temperature_c >= limit - margin
    return f"{sample.temperature_c} °C, slows down at {limit} °C" if too_hot else ""


def describe_foreign_use(current: GpuHealth, now: float, policy: GpuHealthPolicy) -> str:
    """Return that another program uses the GPU, or did a moment ago, whatever else is wrong with it; else ""."""
    recent = _is_recent(current.foreign_seen_at, now, policy.owner_quiet_s)
    return "another program uses the GPU" if recent else ""


def _is_recent(at: float | None, now: float, quiet_s: float) -> bool:
    return at is not None and now - at < quiet_s


def _foreign_since(
    previous: GpuHealth, sample: GpuSample, now: float, own: OwnProcesses, policy: GpuHealthPolicy
) -> float | None:
    has_foreign = any(
        is_foreign(process, sample.uuid, own)
        for process in sample.processes
        if not process.graphics or (process.used_mb or 0) >= policy.drawing_mb
    )
    if not has_foreign:
        return None
    return now if previous.foreign_since is None else previous.foreign_since


def assess_lost(previous: GpuHealth, gpu: LostGpu, now: float) -> GpuHealth:
    """Mark the GPU as lost: it does not answer. It needs a probe when it answers again."""
    return _with_status(replace(previous, fault=gpu.why, fault_persists=True), GpuHealthStatus.LOST, gpu.why, now)


def describe_xid(xid: int) -> str:
    """Return a phrase for logs and reasons, such as "XID 79, fell off the bus"."""
    meaning = "application fault" if xid in APPLICATION_XIDS else GPU_XIDS.get(xid, "GPU fault")
    return f"XID {xid}, {meaning}"


def handle_xid(previous: GpuHealth, event: XidEvent, now: float, policy: GpuHealthPolicy = DEFAULT_POLICY) -> GpuHealth:
    """Apply an XID that the driver reported. An application's fault says nothing about the GPU."""
    if event.xid in policy.application_xids:
        return previous
    return mark_faulty(previous, describe_xid(event.xid), now)


def mark_faulty(previous: GpuHealth, reason: str, now: float) -> GpuHealth:
    """Mark the GPU as faulty, as a job (exit code 69) or a failed probe reported it."""
    status = GpuHealthStatus.LOST if previous.status is GpuHealthStatus.LOST else GpuHealthStatus.UNHEALTHY
    return _with_status(replace(previous, fault=reason), status, reason, now)


def clear_fault(previous: GpuHealth, now: float) -> GpuHealth:
    """Clear the fault after a successful probe, unless the error still shows (`fault_persists`) or the GPU is lost."""
    if not previous.needs_probe or previous.status is GpuHealthStatus.LOST:
        return previous
    return _with_status(replace(previous, fault=""), GpuHealthStatus.FIT, "", now)


def _with_status(health: GpuHealth, status: GpuHealthStatus, reason: str, now: float) -> GpuHealth:
    """Set the status; `since` changes only with it."""
    since = health.since if health.status is status else now
    return replace(health, status=status, why=reason, since=since)


def gpu_reports(snapshot: GpuSnapshot, healths: Mapping[str, GpuHealth]) -> tuple[GpuReport, ...]:
    """Return every GPU that answers or once did, ordered by index, as the heartbeat and the API show it."""
    answering = [
        (
            sample.index,
            GpuReport(
                uuid=sample.uuid,
                name=sample.name,
                memory_total_mb=sample.memory_total_mb,
                memory_free_mb=sample.memory_free_mb,
                temperature_c=sample.temperature_c,
                utilization=sample.utilization,
                power_w=sample.power_w,
                compute_capability=sample.compute_capability,
                **_health_fields(healths.get(sample.uuid)),
            ),
        )
        for sample in snapshot.samples
    ]
    lost = [
        (gpu.index or 0, GpuReport(gpu.uuid, gpu.name, fitness=GpuHealthStatus.LOST.value, reason=gpu.why))
        for gpu in snapshot.lost
    ]
    return tuple(report for _, report in sorted(answering + lost, key=lambda row: row[0]))


def _health_fields(health: GpuHealth | None) -> dict[str, Any]:
    if health is None:
        return {"fitness": GpuHealthStatus.UNHEALTHY.value, "reason": "not assessed yet"}
    return {"fitness": health.status.value} | ({"reason": health.why} if health.why else {})


JOULES_PER_KWH = 3_600_000


class MeterPrice(Struct, frozen=True):
    """The cost of the host while it runs jobs. Either may be unknown."""

    per_hour: float | None = None
    """Price of an hour in which the host runs a job, for the cost of each job."""
    per_kwh: float | None = None
    """Price of a kilowatt-hour that its GPUs use."""


NO_PRICE = MeterPrice()


class UtilizationMean(Struct, frozen=True):
    """A running mean of the utilization: percent over `readings`."""

    readings: int = 0
    mean: float = 0.0


class EnergyCounter(Struct, frozen=True):
    """A GPU's energy counter in mJ, at the start of the job and at the latest reading."""

    first: int
    latest: int


class GpuMeter(Struct, frozen=True):
    """One job on its GPUs. `started` and all later times are seconds on one monotonic clock.

    `energy` is by GPU. It becomes None when the job's energy is unknown: two jobs on one GPU, no counter, or a counter
    that went back because the driver was reloaded. `charged_s` is the run time, each second divided by the jobs that
    shared these GPUs in it, so that two jobs at once do not pay the hour twice.
    """

    uuids: frozenset[str]
    own_processes: OwnProcesses
    started: float
    at: float
    charged_s: float = 0.0
    vram_peak_mb: int | None = None
    load: UtilizationMean = UtilizationMean()
    energy: dict[str, EnergyCounter] | None = {}


def start_meter(uuids: Iterable[str], own: OwnProcesses, samples: Iterable[GpuSample], now: float) -> GpuMeter:
    """Return a meter for a container that starts on these GPUs now; `own` identifies its processes."""
    wanted = frozenset(uuids)
    readings = [sample for sample in samples if sample.uuid in wanted]
    return GpuMeter(uuids=wanted, own_processes=own, started=now, at=now, energy=_add_energy({}, readings))


def record_sample(meter: GpuMeter, samples: Iterable[GpuSample], now: float, sharers: int = 1) -> GpuMeter:
    """Add one reading. `sharers` is the number of jobs on these GPUs since the last one, this job included."""
    readings = [sample for sample in samples if sample.uuid in meter.uuids]
    return replace(
        meter,
        at=now,
        charged_s=meter.charged_s + (now - meter.at) / sharers,
        vram_peak_mb=_peak(meter, readings),
        load=_add_utilization(meter.load, readings),
        energy=None if sharers > 1 or meter.energy is None else _add_energy(meter.energy, readings),
    )


def compute_usage(meter: GpuMeter, now: float, price: MeterPrice = NO_PRICE, sharers: int = 1) -> AttemptUsage:
    """Return the use of the job once its container has ended. `queued_s` is not known here."""
    final = record_sample(meter, (), now, sharers)
    energy_j = _joules(final)
    return AttemptUsage(
        run_s=now - meter.started,
        gpu_energy_j=energy_j,
        gpu_utilization=final.load.mean if final.load.readings else None,
        vram_peak_mb=final.vram_peak_mb,
        cost=_cost(final.charged_s, energy_j, price),
    )


def _peak(meter: GpuMeter, samples: list[GpuSample]) -> int | None:
    """Return the peak of the sum over all GPUs and processes of the job; None until a process reported its memory."""
    own = [process for sample in samples for process in sample.processes if is_own(process, meter.own_processes)]
    known = [process.used_mb for process in own if process.used_mb is not None]
    return max(meter.vram_peak_mb or 0, sum(known)) if known else meter.vram_peak_mb


def _add_utilization(before: UtilizationMean, samples: list[GpuSample]) -> UtilizationMean:
    values = [sample.utilization for sample in samples if sample.utilization is not None]
    if not values:
        return before
    readings = before.readings + 1
    return UtilizationMean(readings, before.mean + (fmean(values) - before.mean) / readings)


def _add_energy(before: dict[str, EnergyCounter], samples: list[GpuSample]) -> dict[str, EnergyCounter] | None:
    after = dict(before)
    for sample in samples:
        counter = after.get(sample.uuid)
        if sample.energy_mj is None or (counter and sample.energy_mj < counter.latest):
            return None
        after[sample.uuid] = EnergyCounter(counter.first if counter else sample.energy_mj, sample.energy_mj)
    return after


def _joules(meter: GpuMeter) -> float | None:
    """Return the energy in joules, or None if it is unknown.

    It is unknown also if a counter has not moved: a GPU always draws power, so the job was too short to measure.
    """
    counters = meter.energy or {}
    if set(counters) != meter.uuids or any(counter.latest == counter.first for counter in counters.values()):
        return None
    return sum(counter.latest - counter.first for counter in counters.values()) / 1000 if counters else None


def _cost(charged_s: float, energy_j: float | None, price: MeterPrice) -> float | None:
    """Return rent and electricity; None without a price, or when priced energy is unknown."""
    parts: list[float] = []
    if price.per_hour is not None:
        parts.append(price.per_hour * charged_s / 3600)
    if price.per_kwh is not None:
        if energy_j is None:
            return None
        parts.append(price.per_kwh * energy_j / JOULES_PER_KWH)
    return sum(parts) if parts else None
