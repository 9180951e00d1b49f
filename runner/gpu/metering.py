"""What a job took of its cards: peak VRAM, mean utilisation, energy, cost. Pure: each meter is made from another."""

from collections.abc import Iterable
from statistics import fmean

from msgspec import Struct
from msgspec.structs import replace

from runner.gpu.process_owner import OwnProcesses, is_own
from schemas.gpu import GpuSample
from schemas.job import AttemptUsage

JOULES_PER_KWH = 3_600_000


class MeterPrice(Struct, frozen=True):
    """What the host costs, by the hour it runs a job and by the energy its cards take; either may be unknown."""

    per_hour: float | None = None
    per_kwh: float | None = None


NO_PRICE = MeterPrice()


class UtilizationMean(Struct, frozen=True):
    """A running mean of the utilisation, percent over `readings`."""

    readings: int = 0
    mean: float = 0.0


class EnergyCounter(Struct, frozen=True):
    """A card's energy counter, mJ: at the start of the job and at the latest reading."""

    first: int
    latest: int


class GpuMeter(Struct, frozen=True):
    """One job on its cards. `started` and all later times are on one monotonic clock, seconds.

    `energy` is by card; None from the moment that the job's energy cannot be told: two jobs on one card, no counter,
    or one that went back (the driver was reloaded). `charged_s` is the run time, each second divided by the jobs that
    shared these cards in it, so that two jobs at once do not pay the hour twice.
    """

    uuids: frozenset[str]
    own_processes: OwnProcesses
    started: float
    at: float
    charged_s: float = 0.0
    vram_peak_mb: int | None = None
    load: UtilizationMean = UtilizationMean()
    energy: dict[str, EnergyCounter] | None = {}


def start_meter(uuids: Iterable[str], mine: OwnProcesses, samples: Iterable[GpuSample], now: float) -> GpuMeter:
    """A meter for a container that starts on these cards now; `mine` names its processes alone."""
    chosen = frozenset(uuids)
    cards = [sample for sample in samples if sample.uuid in chosen]
    return GpuMeter(uuids=chosen, own_processes=mine, started=now, at=now, energy=_add_energy({}, cards))


def record_sample(meter: GpuMeter, samples: Iterable[GpuSample], now: float, sharers: int = 1) -> GpuMeter:
    """Take in one reading. `sharers`: jobs on these cards since the last one, this one included."""
    cards = [sample for sample in samples if sample.uuid in meter.uuids]
    return replace(
        meter,
        at=now,
        charged_s=meter.charged_s + (now - meter.at) / sharers,
        vram_peak_mb=_peak(meter, cards),
        load=_add_utilization(meter.load, cards),
        energy=None if sharers > 1 or meter.energy is None else _add_energy(meter.energy, cards),
    )


def compute_usage(meter: GpuMeter, now: float, price: MeterPrice = NO_PRICE, sharers: int = 1) -> AttemptUsage:
    """What the job took, once its container has ended. `queued_s` is not the meter's to know."""
    final = record_sample(meter, (), now, sharers)
    energy_j = _joules(final)
    return AttemptUsage(
        run_s=now - meter.started,
        gpu_energy_j=energy_j,
        gpu_utilization=final.load.mean if final.load.readings else None,
        vram_peak_mb=final.vram_peak_mb,
        cost=_cost(final.charged_s, energy_j, price),
    )


def _peak(meter: GpuMeter, cards: list[GpuSample]) -> int | None:
    """The sum over all cards and all the job's processes at one moment; None until one of them told its memory."""
    mine = [process for card in cards for process in card.processes if is_own(process, meter.own_processes)]
    known = [process.used_mb for process in mine if process.used_mb is not None]
    return max(meter.vram_peak_mb or 0, sum(known)) if known else meter.vram_peak_mb


def _add_utilization(before: UtilizationMean, cards: list[GpuSample]) -> UtilizationMean:
    told = [card.utilization for card in cards if card.utilization is not None]
    if not told:
        return before
    readings = before.readings + 1
    return UtilizationMean(readings, before.mean + (fmean(told) - before.mean) / readings)


def _add_energy(before: dict[str, EnergyCounter], cards: list[GpuSample]) -> dict[str, EnergyCounter] | None:
    after = dict(before)
    for card in cards:
        counter = after.get(card.uuid)
        if card.energy_mj is None or (counter and card.energy_mj < counter.latest):
            return None
        after[card.uuid] = EnergyCounter(counter.first if counter else card.energy_mj, card.energy_mj)
    return after


def _joules(meter: GpuMeter) -> float | None:
    """None as well for a job so short that a counter has not moved: a card that is on always draws something."""
    counters = meter.energy or {}
    if set(counters) != meter.uuids or any(counter.latest == counter.first for counter in counters.values()):
        return None
    return sum(counter.latest - counter.first for counter in counters.values()) / 1000 if counters else None


def _cost(charged_s: float, energy_j: float | None, price: MeterPrice) -> float | None:
    """Rent and electricity; None when there is no price, or when the energy that is priced is unknown."""
    parts: list[float] = []
    if price.per_hour is not None:
        parts.append(price.per_hour * charged_s / 3600)
    if price.per_kwh is not None:
        if energy_j is None:
            return None
        parts.append(price.per_kwh * energy_j / JOULES_PER_KWH)
    return sum(parts) if parts else None
