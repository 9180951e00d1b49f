"""Fitness: the tables spelled out by hand, the margins, and what must never happen by itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from runner.gpu import xid
from runner.gpu.fitness import FitnessPolicy, judge, judge_all, judge_lost, poisoned, proved, struck
from runner.gpu.lineage import Ours
from schemas.gpu import Fitness, GpuProcess, GpuSample, Judgement, LostGpu, Recovery, RemappedRows, WatchState, XidEvent
from tests.runner.gpu.samples import CARD, HEALTHY, STRANGER, sample, snapshot

NEW = Judgement(CARD, ecc_uncorrected=0)
LOST = LostGpu(CARD, "GPU is lost")
AT_ONCE = FitnessPolicy(owner_settle_s=0.0)


def judged(*samples: GpuSample, start: Judgement = NEW) -> Judgement:
    """Judge these samples, a second apart, from second 100 on."""
    judgement = start
    for second, one in enumerate(samples, 100):
        judgement = judge(judgement, one, float(second), policy=AT_ONCE)
    return judgement


@pytest.mark.parametrize(
    ("values", "fitness", "why"),
    [
        ({}, Fitness.FIT, ""),
        ({"temperature_c": 84}, Fitness.FIT, ""),
        ({"temperature_c": 85}, Fitness.HOT, "85 °C, slows down at 90 °C"),
        ({"temperature_c": 85, "slowdown_c": 101}, Fitness.FIT, ""),
        ({"temperature_c": 96, "slowdown_c": 101}, Fitness.HOT, "96 °C, slows down at 101 °C"),
        ({"temperature_c": 85, "slowdown_c": None}, Fitness.HOT, "85 °C, slows down at 90 °C"),
        ({"temperature_c": None}, Fitness.FIT, ""),
        ({"reasons": 0x1}, Fitness.FIT, ""),
        ({"reasons": 0x2}, Fitness.FIT, ""),
        ({"reasons": 0x4}, Fitness.FIT, ""),
        ({"reasons": 0x8}, Fitness.HOT, "the hardware slows the card down (heat or power brake)"),
        ({"reasons": 0x10}, Fitness.FIT, ""),
        ({"reasons": 0x20}, Fitness.FIT, ""),
        ({"reasons": 0x44}, Fitness.HOT, "the hardware slows the card down (heat or power brake)"),
        ({"reasons": 0x80}, Fitness.HOT, "the hardware slows the card down (heat or power brake)"),
        ({"reasons": 0x100}, Fitness.FIT, ""),
        ({"reasons": None}, Fitness.FIT, ""),
        ({"ecc_corrected": 900}, Fitness.FIT, ""),
        ({"ecc_uncorrected": 2}, Fitness.UNHEALTHY, "2 uncorrected memory errors"),
        ({"ecc_uncorrected": None}, Fitness.FIT, ""),
        ({"rows": RemappedRows(3, 1)}, Fitness.FIT, ""),
        ({"rows": RemappedRows(pending=True)}, Fitness.UNHEALTHY, "a memory row waits to be remapped: reset the card"),
        (
            {"rows": RemappedRows(pending=True, failed=True)},
            Fitness.UNHEALTHY,
            "a memory row could not be remapped: replace the card",
        ),
        ({"rows": None}, Fitness.FIT, ""),
        ({"retired_pending": True}, Fitness.UNHEALTHY, "memory pages wait to be retired: reset the card"),
        ({"recovery": None}, Fitness.FIT, ""),
        ({"recovery": Recovery.GPU_RESET}, Fitness.UNHEALTHY, "the driver asks for gpu reset"),
        ({"recovery": Recovery.DRAIN_AND_RESET}, Fitness.UNHEALTHY, "the driver asks for drain and reset"),
        ({"recovery": Recovery.UNKNOWN}, Fitness.UNHEALTHY, "the driver asks for unknown"),
        ({"processes": (STRANGER,)}, Fitness.BUSY_OWNER, "another program uses the card"),
        ({"processes": (GpuProcess(9, 800, graphics=True),)}, Fitness.FIT, ""),
        ({"processes": (GpuProcess(9, 4000, graphics=True),)}, Fitness.BUSY_OWNER, "another program uses the card"),
        ({"processes": (GpuProcess(9, None, graphics=True),)}, Fitness.FIT, ""),
        ({"processes": (GpuProcess(9, None),)}, Fitness.BUSY_OWNER, "another program uses the card"),
        ({"processes": (STRANGER,), "temperature_c": 95}, Fitness.HOT, "95 °C, slows down at 90 °C"),
        (
            {"retired_pending": True, "temperature_c": 95},
            Fitness.UNHEALTHY,
            "memory pages wait to be retired: reset the card",
        ),
    ],
)
def test_one_sample(values: dict[str, object], fitness: Fitness, why: str) -> None:
    judgement = judged(sample(**values))
    assert (judgement.fitness, judgement.why) == (fitness, why)


def test_old_memory_errors_are_history() -> None:
    """A runner that starts beside a counter of 5 does not hold them against the card; the sixth it does."""
    first = judged(sample(ecc_uncorrected=5), start=Judgement(CARD))
    assert first.fitness is Fitness.FIT
    assert judged(sample(ecc_uncorrected=6), start=first).why == "1 uncorrected memory errors"
    assert judged(sample(ecc_uncorrected=0), start=first).fitness is Fitness.FIT


def test_a_hot_card_recovers_only_below_the_larger_margin() -> None:
    heat = [80, 85, 84, 76, 75, 74, 84, 85]
    told = [judged(*(sample(temperature_c=t) for t in heat[: n + 1])).fitness for n in range(len(heat))]
    fit, hot = Fitness.FIT, Fitness.HOT
    assert told == [fit, hot, hot, hot, hot, fit, fit, hot]


def test_a_brake_must_have_been_quiet_for_a_while() -> None:
    braked = judge(NEW, sample(reasons=0x8), 100.0)
    assert judge(braked, HEALTHY, 129.9).fitness is Fitness.HOT
    assert judge(braked, HEALTHY, 130.0).fitness is Fitness.FIT


def test_a_stranger_counts_once_it_has_stayed() -> None:
    """Our own process may be listed for a moment after its container is gone."""
    stranger = sample(processes=(STRANGER,))
    seen = judge(judge(NEW, stranger, 100.0), stranger, 101.9)
    assert seen.fitness is Fitness.FIT
    assert judge(seen, stranger, 102.0).fitness is Fitness.BUSY_OWNER
    gone = judge(seen, HEALTHY, 102.0)
    assert judge(gone, stranger, 103.0).fitness is Fitness.FIT


def test_work_resumes_by_itself_once_the_owner_has_been_gone_for_a_while() -> None:
    busy = judge(NEW, sample(processes=(STRANGER,)), 100.0, policy=AT_ONCE)
    still = judge(busy, HEALTHY, 159.0)
    assert still.fitness is Fitness.BUSY_OWNER
    assert still.since == 100.0
    back = judge(judge(still, sample(processes=(STRANGER,)), 159.5, policy=AT_ONCE), HEALTHY, 200.0)
    assert back.fitness is Fitness.BUSY_OWNER
    assert judge(back, HEALTHY, 219.5).fitness is Fitness.FIT


def test_our_own_processes_are_no_strangers() -> None:
    mine = sample(processes=(GpuProcess(99, 2000, containers=("c" * 64,)), GpuProcess(5, 10, ancestors=(4,))))
    ours = Ours(containers=frozenset({"c" * 64}), pids=frozenset({4}))
    assert judge(NEW, mine, 1.0, ours, AT_ONCE).fitness is Fitness.FIT
    assert judge(NEW, mine, 1.0, Ours(pids=frozenset({4})), AT_ONCE).fitness is Fitness.BUSY_OWNER


XIDS = {
    13: Fitness.FIT,
    31: Fitness.FIT,
    43: Fitness.FIT,
    45: Fitness.FIT,
    68: Fitness.FIT,
    109: Fitness.FIT,
    32: Fitness.UNHEALTHY,
    48: Fitness.UNHEALTHY,
    62: Fitness.UNHEALTHY,
    63: Fitness.UNHEALTHY,
    64: Fitness.UNHEALTHY,
    74: Fitness.UNHEALTHY,
    79: Fitness.UNHEALTHY,
    94: Fitness.UNHEALTHY,
    95: Fitness.UNHEALTHY,
    119: Fitness.UNHEALTHY,
    120: Fitness.UNHEALTHY,
    999: Fitness.UNHEALTHY,
}


@pytest.mark.parametrize(("number", "fitness"), XIDS.items())
def test_xids(number: int, fitness: Fitness) -> None:
    judgement = struck(NEW, XidEvent(CARD, number, at=0.0), 5.0)
    assert judgement.fitness is fitness
    assert judgement.needs_probe is (fitness is Fitness.UNHEALTHY)


def test_the_xid_tables_do_not_overlap_and_speak() -> None:
    assert not xid.APPLICATION & xid.CARD.keys()
    assert xid.meaning(79) == "XID 79, fell off the bus"
    assert xid.meaning(13) == "XID 13, application fault"
    assert xid.meaning(7777) == "XID 7777, card fault"


def test_the_list_of_application_faults_is_a_setting() -> None:
    policy = FitnessPolicy(application_xids=frozenset({94}))
    assert struck(NEW, XidEvent(CARD, 94, at=0.0), 5.0, policy) == NEW
    assert struck(NEW, XidEvent(CARD, 13, at=0.0), 5.0, policy).fitness is Fitness.UNHEALTHY


def test_a_poisoned_card_works_again_after_its_probe() -> None:
    bad = judged(HEALTHY, start=poisoned(NEW, "job said 69", 1.0))
    assert (bad.fitness, bad.why, bad.since) == (Fitness.UNHEALTHY, "job said 69", 1.0)
    assert judged(HEALTHY, start=proved(bad, 50.0)).fitness is Fitness.FIT


def test_a_probe_clears_nothing_that_still_shows() -> None:
    pending = sample(rows=RemappedRows(pending=True))
    bad = judged(pending)
    assert not bad.needs_probe
    assert proved(bad, 50.0) == bad
    reset = judged(HEALTHY, start=bad)
    assert reset.needs_probe
    assert proved(reset, 50.0).fitness is Fitness.FIT


def test_a_lost_card_that_returns_must_prove_itself() -> None:
    lost = judge_lost(NEW, LOST, 10.0)
    assert (lost.fitness, lost.why) == (Fitness.LOST, "GPU is lost")
    assert proved(lost, 11.0) == lost
    assert poisoned(lost, "XID 79", 11.0).fitness is Fitness.LOST
    back = judge(lost, HEALTHY, 12.0)
    assert (back.fitness, back.why, back.needs_probe) == (Fitness.UNHEALTHY, "GPU is lost", True)
    assert proved(back, 13.0).fitness is Fitness.FIT


def test_a_proof_of_a_card_that_is_only_hot_changes_nothing() -> None:
    hot = judged(sample(temperature_c=89))
    assert proved(hot, 200.0) == hot


def test_all_cards_of_a_snapshot() -> None:
    first = judge_all({}, snapshot(sample(0), sample(1, temperature_c=89)), 5.0)
    assert {uuid: one.fitness for uuid, one in first.items()} == {"GPU-0": Fitness.FIT, "GPU-1": Fitness.HOT}
    assert first["GPU-0"].since == 5.0
    gone = replace(snapshot(sample(1)), lost=(LOST, LostGpu("GPU-7", "never seen"), LostGpu("", "nameless", 3)))
    second = judge_all(first, gone, 6.0)
    assert second.keys() == {"GPU-0", "GPU-1", "GPU-7"}
    assert second["GPU-0"].fitness is second["GPU-7"].fitness is Fitness.LOST
    hung = judge_all(second, snapshot(sample(0), state=WatchState.HUNG), 7.0)
    assert hung == second


TROUBLE = {
    "poisoned": lambda judgement, now: poisoned(judgement, "69", now),
    "struck": lambda judgement, now: struck(judgement, XidEvent(CARD, 79, at=now), now),
    "lost": lambda judgement, now: judge_lost(judgement, LOST, now),
    "pending": lambda judgement, now: judge(judgement, sample(retired_pending=True), now),
    "ecc": lambda judgement, now: judge(judgement, sample(ecc_uncorrected=10**6), now),
}
HARMLESS = st.builds(
    sample,
    temperature_c=st.none() | st.integers(20, 110),
    reasons=st.integers(0, 0x1FF),
    ecc_uncorrected=st.just(0),
    processes=st.sampled_from([(), (STRANGER,)]),
)


@given(trouble=st.sampled_from(sorted(TROUBLE)), after=st.lists(HARMLESS, min_size=1, max_size=20))
def test_poison_never_clears_by_itself(trouble: str, after: list[GpuSample]) -> None:
    judgement = TROUBLE[trouble](judged(HEALTHY), 200.0)
    for second, one in enumerate(after):
        judgement = judge(judgement, one, 1000.0 + 100 * second)
        assert judgement.fitness is Fitness.UNHEALTHY
        assert judgement.needs_probe


@given(
    start=st.sampled_from([50, 89]),
    band=st.lists(st.integers(75, 84), min_size=1, max_size=30),
)
def test_nothing_flaps_inside_the_band(start: int, band: list[int]) -> None:
    judgement = judged(sample(temperature_c=start))
    for second, celsius in enumerate(band, 200):
        after = judge(judgement, sample(temperature_c=celsius), float(second))
        assert (after.fitness, after.since) == (judgement.fitness, judgement.since)
        judgement = after
