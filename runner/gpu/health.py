"""Is a card fit for work? Pure: a judgement is made from the one before it and one sample.

A card's own error poisons it: it stays unhealthy until `proved`, even when the error no longer shows. Heat and other
people's processes pass by themselves, with a margin and a quiet time, so that a card on the edge does not flap.
"""

from collections.abc import Callable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from runner.gpu import xid as xids
from runner.gpu.process_owner import NO_PROCESSES, OwnProcesses, is_foreign
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

HealthCheck = Callable[[GpuHealth, GpuSample], str]
"""What is wrong by this sample, or "" where nothing is."""


class GpuHealthPolicy(Struct, frozen=True):
    """Where the lines are drawn. Temperatures are degrees below the card's own slowdown threshold.

    `slowdown_c` stands in for a card that publishes no threshold. The clock reasons that make a card hot are the
    hardware's own brakes: many cards run at their software thermal target all day, and that is no fault.
    A foreign process counts once it has been there for `owner_settle_s`: the driver may list a process of ours for a
    moment after its container is gone. One that only draws counts from `drawing_mb` on (a game, not a desktop).
    """

    hot_margin_c: int = 5
    cool_margin_c: int = 15
    slowdown_c: int = 90
    brakes: int = ClockReasons.HW_SLOWDOWN | ClockReasons.HW_THERMAL | ClockReasons.HW_POWER_BRAKE
    brake_quiet_s: float = 30.0
    owner_settle_s: float = 2.0
    owner_quiet_s: float = 60.0
    drawing_mb: int = 1500
    application_xids: frozenset[int] = xids.APPLICATION_XIDS


DEFAULT_POLICY = GpuHealthPolicy()


def _check_recovery_action(_: GpuHealth, sample: GpuSample) -> str:
    asked = sample.recovery
    return "" if asked in {None, GpuRecoveryAction.NONE} else f"the driver asks for {str(asked).replace('_', ' ')}"


def _check_rows_failed(_: GpuHealth, sample: GpuSample) -> str:
    return "a memory row could not be remapped: replace the card" if sample.rows and sample.rows.failed else ""


def _check_rows_pending(_: GpuHealth, sample: GpuSample) -> str:
    return "a memory row waits to be remapped: reset the card" if sample.rows and sample.rows.pending else ""


def _check_pages_pending(_: GpuHealth, sample: GpuSample) -> str:
    return "memory pages wait to be retired: reset the card" if sample.retired_pending else ""


def _check_ecc_growth(previous: GpuHealth, sample: GpuSample) -> str:
    """The counter starts at 0 with the driver and only grows: old errors are history, new ones are not."""
    new = (sample.ecc_uncorrected or 0) - (previous.ecc_uncorrected or 0)
    return f"{new} uncorrected memory errors" if previous.ecc_uncorrected is not None and new > 0 else ""


# What shows in a sample and poisons the card, worst first.
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
    ours: OwnProcesses = NO_PROCESSES,
    policy: GpuHealthPolicy = DEFAULT_POLICY,
) -> dict[str, GpuHealth]:
    """Every card of the snapshot, by UUID. While the watch is not ok, nothing new is known: they stay as judged."""
    judgements = dict(previous)
    if snapshot.state is not GpuMonitorState.OK:
        return judgements
    for sample in snapshot.samples:
        before = judgements.get(sample.uuid) or GpuHealth(sample.uuid, since=now)
        judgements[sample.uuid] = assess(before, sample, now, ours, policy)
    for card in (card for card in snapshot.lost if card.uuid):
        before = judgements.get(card.uuid) or GpuHealth(card.uuid, since=now)
        judgements[card.uuid] = assess_lost(before, card, now)
    return judgements


def assess(
    previous: GpuHealth,
    sample: GpuSample,
    now: float,
    ours: OwnProcesses = NO_PROCESSES,
    policy: GpuHealthPolicy = DEFAULT_POLICY,
) -> GpuHealth:
    """The card's fitness by this sample. `now` is in seconds, on any one clock that does not jump back."""
    sign = next((words for sign in HEALTH_CHECKS if (words := sign(previous, sample))), "")
    since = _foreign_since(previous, sample, now, ours, policy)
    settled = since is not None and now - since >= policy.owner_settle_s
    seen = replace(
        previous,
        fault=sign or previous.fault,
        fault_persists=bool(sign),
        ecc_uncorrected=sample.ecc_uncorrected,
        slowed_at=now if (sample.clock_reasons or 0) & policy.brakes else previous.slowed_at,
        foreign_since=since,
        foreign_seen_at=now if settled else previous.foreign_seen_at,
    )
    return _with_worst_status(previous, seen, sample, now, policy)


def _with_worst_status(
    previous: GpuHealth, seen: GpuHealth, sample: GpuSample, now: float, policy: GpuHealthPolicy
) -> GpuHealth:
    """Of all that holds, the gravest is told."""
    claims = (
        (GpuHealthStatus.UNHEALTHY, seen.fault),
        (GpuHealthStatus.HOT, _describe_heat(previous, seen, sample, now, policy)),
        (GpuHealthStatus.BUSY_OWNER, describe_foreign_use(seen, now, policy)),
    )
    fitness, why = next(((fitness, why) for fitness, why in claims if why), (GpuHealthStatus.FIT, ""))
    return _with_status(seen, fitness, why, now)


def _describe_heat(previous: GpuHealth, seen: GpuHealth, sample: GpuSample, now: float, policy: GpuHealthPolicy) -> str:
    if _is_recent(seen.slowed_at, now, policy.brake_quiet_s):
        return "the hardware slows the card down (heat or power brake)"
    if sample.temperature_c is None:
        return ""
    limit = sample.slowdown_c or policy.slowdown_c
    margin = policy.cool_margin_c if previous.status is GpuHealthStatus.HOT else policy.hot_margin_c
    too_hot = sample.temperature_c >= limit - margin
    return f"{sample.temperature_c} °C, slows down at {limit} °C" if too_hot else ""


def describe_foreign_use(seen: GpuHealth, now: float, policy: GpuHealthPolicy) -> str:
    """Who else uses the card, or did a moment ago, whatever else is wrong with it; "" for nobody."""
    recent = _is_recent(seen.foreign_seen_at, now, policy.owner_quiet_s)
    return "another program uses the card" if recent else ""


def _is_recent(at: float | None, now: float, quiet_s: float) -> bool:
    return at is not None and now - at < quiet_s


def _foreign_since(
    previous: GpuHealth, sample: GpuSample, now: float, ours: OwnProcesses, policy: GpuHealthPolicy
) -> float | None:
    strange = any(
        is_foreign(process, sample.uuid, ours)
        for process in sample.processes
        if not process.graphics or (process.used_mb or 0) >= policy.drawing_mb
    )
    if not strange:
        return None
    return now if previous.foreign_since is None else previous.foreign_since


def assess_lost(previous: GpuHealth, card: LostGpu, now: float) -> GpuHealth:
    """The card does not answer. When it does again, it must prove itself."""
    return _with_status(replace(previous, fault=card.why, fault_persists=True), GpuHealthStatus.LOST, card.why, now)


def handle_xid(previous: GpuHealth, event: XidEvent, now: float, policy: GpuHealthPolicy = DEFAULT_POLICY) -> GpuHealth:
    """The driver reported an XID on this card. An application's fault is the job's affair, not the card's."""
    if event.xid in policy.application_xids:
        return previous
    return mark_faulty(previous, xids.describe_xid(event.xid), now)


def mark_faulty(previous: GpuHealth, why: str, now: float) -> GpuHealth:
    """A job or a probe says that the card erred (the image's exit code 69, a probe that failed)."""
    fitness = GpuHealthStatus.LOST if previous.status is GpuHealthStatus.LOST else GpuHealthStatus.UNHEALTHY
    return _with_status(replace(previous, fault=why), fitness, why, now)


def clear_fault(previous: GpuHealth, now: float) -> GpuHealth:
    """A probe container ran well. Clears nothing that still shows (`standing`), nor a card that is lost."""
    if not previous.needs_probe or previous.status is GpuHealthStatus.LOST:
        return previous
    return _with_status(replace(previous, fault=""), GpuHealthStatus.FIT, "", now)


def _with_status(judgement: GpuHealth, fitness: GpuHealthStatus, why: str, now: float) -> GpuHealth:
    """`since` moves only when the fitness does."""
    since = judgement.since if judgement.status is fitness else now
    return replace(judgement, status=fitness, why=why, since=since)


# MERGED runner/gpu/report.py: The cards as a host's presence shows them. Pure.


def gpu_reports(snapshot: GpuSnapshot, judgements: Mapping[str, GpuHealth]) -> tuple[GpuReport, ...]:
    """Every card that answers or once did, in the order of their indices."""
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
                **_health_fields(judgements.get(sample.uuid)),
            ),
        )
        for sample in snapshot.samples
    ]
    lost = [
        (card.index or 0, GpuReport(card.uuid, card.name, fitness=GpuHealthStatus.LOST.value, reason=card.why))
        for card in snapshot.lost
    ]
    return tuple(report for _, report in sorted(answering + lost, key=lambda placed: placed[0]))


def _health_fields(judgement: GpuHealth | None) -> dict[str, str]:
    if judgement is None:
        return {"fitness": GpuHealthStatus.UNHEALTHY.value, "reason": "not judged yet"}
    return {"fitness": judgement.status.value} | ({"reason": judgement.why} if judgement.why else {})
