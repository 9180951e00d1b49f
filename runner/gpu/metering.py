"""GPU use of a job: peak VRAM, mean utilization, energy, cost. Pure: each meter is made from the one before it."""

from collections.abc import Iterable
from statistics import fmean

from msgspec import Struct
from msgspec.structs import replace

from runner.gpu.process_owner import OwnProcesses, is_own
from schemas.gpu import GpuSample
from schemas.job import AttemptUsage

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
