"""Is a card fit for work? Pure: a judgement is made from the one before it and one sample.

A card's own error poisons it: it stays unhealthy until `proved`, even when the error no longer shows. Heat and other
people's processes pass by themselves, with a margin and a quiet time, so that a card on the edge does not flap.
"""

from collections.abc import Callable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from runner.gpu import xid as xids
from runner.gpu.lineage import NOTHING, Ours, is_foreign
from schemas.gpu import ClockReasons, Fitness, GpuSample, Judgement, LostGpu, Recovery, Snapshot, WatchState, XidEvent

Sign = Callable[[Judgement, GpuSample], str]
"""What is wrong by this sample, or "" where nothing is."""


class FitnessPolicy(Struct, frozen=True):
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
    application_xids: frozenset[int] = xids.APPLICATION


USUAL = FitnessPolicy()


def _asked_for(_: Judgement, sample: GpuSample) -> str:
    asked = sample.recovery
    return "" if asked in {None, Recovery.NONE} else f"the driver asks for {str(asked).replace('_', ' ')}"


def _rows_failed(_: Judgement, sample: GpuSample) -> str:
    return "a memory row could not be remapped: replace the card" if sample.rows and sample.rows.failed else ""


def _rows_pending(_: Judgement, sample: GpuSample) -> str:
    return "a memory row waits to be remapped: reset the card" if sample.rows and sample.rows.pending else ""


def _pages_pending(_: Judgement, sample: GpuSample) -> str:
    return "memory pages wait to be retired: reset the card" if sample.retired_pending else ""


def _ecc_grew(previous: Judgement, sample: GpuSample) -> str:
    """The counter starts at 0 with the driver and only grows: old errors are history, new ones are not."""
    new = (sample.ecc_uncorrected or 0) - (previous.ecc_uncorrected or 0)
    return f"{new} uncorrected memory errors" if previous.ecc_uncorrected is not None and new > 0 else ""


# What shows in a sample and poisons the card, worst first.
SIGNS: tuple[Sign, ...] = (_rows_failed, _asked_for, _rows_pending, _pages_pending, _ecc_grew)


def judge_all(
    previous: Mapping[str, Judgement],
    snapshot: Snapshot,
    now: float,
    ours: Ours = NOTHING,
    policy: FitnessPolicy = USUAL,
) -> dict[str, Judgement]:
    """Every card of the snapshot, by UUID. While the watch is not ok, nothing new is known: they stay as judged."""
    judgements = dict(previous)
    if snapshot.state is not WatchState.OK:
        return judgements
    for sample in snapshot.samples:
        before = judgements.get(sample.uuid) or Judgement(sample.uuid, since=now)
        judgements[sample.uuid] = judge(before, sample, now, ours, policy)
    for card in (card for card in snapshot.lost if card.uuid):
        before = judgements.get(card.uuid) or Judgement(card.uuid, since=now)
        judgements[card.uuid] = judge_lost(before, card, now)
    return judgements


def judge(
    previous: Judgement,
    sample: GpuSample,
    now: float,
    ours: Ours = NOTHING,
    policy: FitnessPolicy = USUAL,
) -> Judgement:
    """The card's fitness by this sample. `now` is in seconds, on any one clock that does not jump back."""
    sign = next((words for sign in SIGNS if (words := sign(previous, sample))), "")
    since = _stranger_since(previous, sample, now, ours, policy)
    settled = since is not None and now - since >= policy.owner_settle_s
    seen = replace(
        previous,
        poison=sign or previous.poison,
        standing=bool(sign),
        ecc_uncorrected=sample.ecc_uncorrected,
        slowed_at=now if (sample.reasons or 0) & policy.brakes else previous.slowed_at,
        stranger_since=since,
        owner_seen_at=now if settled else previous.owner_seen_at,
    )
    return _weighed(previous, seen, sample, now, policy)


def _weighed(previous: Judgement, seen: Judgement, sample: GpuSample, now: float, policy: FitnessPolicy) -> Judgement:
    """Of all that holds, the gravest is told."""
    claims = (
        (Fitness.UNHEALTHY, seen.poison),
        (Fitness.HOT, _heat(previous, seen, sample, now, policy)),
        (Fitness.BUSY_OWNER, owner(seen, now, policy)),
    )
    fitness, why = next(((fitness, why) for fitness, why in claims if why), (Fitness.FIT, ""))
    return _turned(seen, fitness, why, now)


def _heat(previous: Judgement, seen: Judgement, sample: GpuSample, now: float, policy: FitnessPolicy) -> str:
    if _recent(seen.slowed_at, now, policy.brake_quiet_s):
        return "the hardware slows the card down (heat or power brake)"
    if sample.temperature_c is None:
        return ""
    limit = sample.slowdown_c or policy.slowdown_c
    margin = policy.cool_margin_c if previous.fitness is Fitness.HOT else policy.hot_margin_c
    too_hot = sample.temperature_c >= limit - margin
    return f"{sample.temperature_c} °C, slows down at {limit} °C" if too_hot else ""


def owner(seen: Judgement, now: float, policy: FitnessPolicy) -> str:
    """Who else uses the card, or did a moment ago, whatever else is wrong with it; "" for nobody."""
    recent = _recent(seen.owner_seen_at, now, policy.owner_quiet_s)
    return "another program uses the card" if recent else ""


def _recent(at: float | None, now: float, quiet_s: float) -> bool:
    return at is not None and now - at < quiet_s


def _stranger_since(
    previous: Judgement, sample: GpuSample, now: float, ours: Ours, policy: FitnessPolicy
) -> float | None:
    strange = any(
        is_foreign(process, sample.uuid, ours)
        for process in sample.processes
        if not process.graphics or (process.used_mb or 0) >= policy.drawing_mb
    )
    if not strange:
        return None
    return now if previous.stranger_since is None else previous.stranger_since


def judge_lost(previous: Judgement, card: LostGpu, now: float) -> Judgement:
    """The card does not answer. When it does again, it must prove itself."""
    return _turned(replace(previous, poison=card.why, standing=True), Fitness.LOST, card.why, now)


def struck(previous: Judgement, event: XidEvent, now: float, policy: FitnessPolicy = USUAL) -> Judgement:
    """The driver reported an XID on this card. An application's fault is the job's affair, not the card's."""
    if event.xid in policy.application_xids:
        return previous
    return poisoned(previous, xids.meaning(event.xid), now)


def poisoned(previous: Judgement, why: str, now: float) -> Judgement:
    """A job or a probe says that the card erred (the image's exit code 69, a probe that failed)."""
    fitness = Fitness.LOST if previous.fitness is Fitness.LOST else Fitness.UNHEALTHY
    return _turned(replace(previous, poison=why), fitness, why, now)


def proved(previous: Judgement, now: float) -> Judgement:
    """A probe container ran well. Clears nothing that still shows (`standing`), nor a card that is lost."""
    if not previous.needs_probe or previous.fitness is Fitness.LOST:
        return previous
    return _turned(replace(previous, poison=""), Fitness.FIT, "", now)


def _turned(judgement: Judgement, fitness: Fitness, why: str, now: float) -> Judgement:
    """`since` moves only when the fitness does."""
    since = judgement.since if judgement.fitness is fitness else now
    return replace(judgement, fitness=fitness, why=why, since=since)
