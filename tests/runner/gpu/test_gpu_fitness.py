"""GPU health: the tables spelled out by hand, the margins, and what must never clear on its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from runner.gpu.health import (
    APPLICATION_XIDS,
    GPU_XIDS,
    GpuHealthPolicy,
    assess,
    assess_all,
    assess_lost,
    clear_fault,
    describe_xid,
    handle_xid,
    mark_faulty,
)
from runner.gpu.process_owner import OwnProcesses
from schemas.gpu import (
    GpuHealth,
    GpuHealthStatus,
    GpuMonitorState,
    GpuProcess,
    GpuRecoveryAction,
    GpuSample,
    LostGpu,
    RemappedRows,
    XidEvent,
)
from tests.support.gpu_samples import FOREIGN_PROCESS, GPU_UUID, HEALTHY, make_sample, make_snapshot

NEW = GpuHealth(GPU_UUID, ecc_uncorrected=0)
LOST = LostGpu(GPU_UUID, "GPU is lost")
AT_ONCE = GpuHealthPolicy(owner_settle_s=0.0)


def judged(*samples: GpuSample, start: GpuHealth = NEW) -> GpuHealth:
    """Assess these samples, a second apart, from second 100 on."""
    judgement = start
    for second, one in enumerate(samples, 100):
        judgement = assess(judgement, one, float(second), policy=AT_ONCE)
    return judgement


@pytest.mark.parametrize(
    ("values", "fitness", "why"),
    [
        ({}, GpuHealthStatus.FIT, ""),
        ({"temperature_c": 84}, GpuHealthStatus.FIT, ""),
        ({"temperature_c": 85}, GpuHealthStatus.HOT, "85 °C, slows down at 90 °C"),
        ({"temperature_c": 85, "slowdown_c": 101}, GpuHealthStatus.FIT, ""),
        ({"temperature_c": 96, "slowdown_c": 101}, GpuHealthStatus.HOT, "96 °C, slows down at 101 °C"),
        ({"temperature_c": 85, "slowdown_c": None}, GpuHealthStatus.HOT, "85 °C, slows down at 90 °C"),
        ({"temperature_c": None}, GpuHealthStatus.FIT, ""),
        ({"clock_reasons": 0x1}, GpuHealthStatus.FIT, ""),
        ({"clock_reasons": 0x2}, GpuHealthStatus.FIT, ""),
        ({"clock_reasons": 0x4}, GpuHealthStatus.FIT, ""),
        ({"clock_reasons": 0x8}, GpuHealthStatus.HOT, "the hardware slows the GPU down (heat or power brake)"),
        ({"clock_reasons": 0x10}, GpuHealthStatus.FIT, ""),
        ({"clock_reasons": 0x20}, GpuHealthStatus.FIT, ""),
        ({"clock_reasons": 0x44}, GpuHealthStatus.HOT, "the hardware slows the GPU down (heat or power brake)"),
        ({"clock_reasons": 0x80}, GpuHealthStatus.HOT, "the hardware slows the GPU down (heat or power brake)"),
        ({"clock_reasons": 0x100}, GpuHealthStatus.FIT, ""),
        ({"clock_reasons": None}, GpuHealthStatus.FIT, ""),
        ({"ecc_corrected": 900}, GpuHealthStatus.FIT, ""),
        ({"ecc_uncorrected": 2}, GpuHealthStatus.UNHEALTHY, "2 uncorrected memory errors"),
        ({"ecc_uncorrected": None}, GpuHealthStatus.FIT, ""),
        ({"rows": RemappedRows(3, 1)}, GpuHealthStatus.FIT, ""),
        (
            {"rows": RemappedRows(pending=True)},
            GpuHealthStatus.UNHEALTHY,
            "a memory row waits to be remapped: reset the GPU",
        ),
        (
            {"rows": RemappedRows(pending=True, failed=True)},
            GpuHealthStatus.UNHEALTHY,
            "a memory row could not be remapped: replace the GPU",
        ),
        ({"rows": None}, GpuHealthStatus.FIT, ""),
        ({"retired_pending": True}, GpuHealthStatus.UNHEALTHY, "memory pages wait to be retired: reset the GPU"),
        ({"recovery": None}, GpuHealthStatus.FIT, ""),
        ({"recovery": GpuRecoveryAction.GPU_RESET}, GpuHealthStatus.UNHEALTHY, "the driver asks for gpu reset"),
        (
            {"recovery": GpuRecoveryAction.DRAIN_AND_RESET},
            GpuHealthStatus.UNHEALTHY,
            "the driver asks for drain and reset",
        ),
        ({"recovery": GpuRecoveryAction.UNKNOWN}, GpuHealthStatus.UNHEALTHY, "the driver asks for unknown"),
        ({"processes": (FOREIGN_PROCESS,)}, GpuHealthStatus.BUSY_OWNER, "another program uses the GPU"),
        ({"processes": (GpuProcess(9, 800, graphics=True),)}, GpuHealthStatus.FIT, ""),
        (
            {"processes": (GpuProcess(9, 4000, graphics=True),)},
            GpuHealthStatus.BUSY_OWNER,
            "another program uses the GPU",
        ),
        ({"processes": (GpuProcess(9, None, graphics=True),)}, GpuHealthStatus.FIT, ""),
        ({"processes": (GpuProcess(9, None),)}, GpuHealthStatus.BUSY_OWNER, "another program uses the GPU"),
        ({"processes": (FOREIGN_PROCESS,), "temperature_c": 95}, GpuHealthStatus.HOT, "95 °C, slows down at 90 °C"),
        (
            {"retired_pending": True, "temperature_c": 95},
            GpuHealthStatus.UNHEALTHY,
            "memory pages wait to be retired: reset the GPU",
        ),
    ],
)
def test_one_sample(values: dict[str, object], fitness: GpuHealthStatus, why: str) -> None:
    judgement = judged(make_sample(**values))
    assert (judgement.status, judgement.why) == (fitness, why)


def test_old_memory_errors_are_history() -> None:
    """Check that a counter of 5 at the start does not count, and that the sixth error does."""
    first = judged(make_sample(ecc_uncorrected=5), start=GpuHealth(GPU_UUID))
    assert first.status is GpuHealthStatus.FIT
    assert judged(make_sample(ecc_uncorrected=6), start=first).why == "1 uncorrected memory errors"
    assert judged(make_sample(ecc_uncorrected=0), start=first).status is GpuHealthStatus.FIT


def test_a_hot_gpu_recovers_only_below_the_larger_margin() -> None:
    heat = [80, 85, 84, 76, 75, 74, 84, 85]
    told = [judged(*(make_sample(temperature_c=t) for t in heat[: n + 1])).status for n in range(len(heat))]
    fit, hot = GpuHealthStatus.FIT, GpuHealthStatus.HOT
    assert told == [fit, hot, hot, hot, hot, fit, fit, hot]


def test_a_brake_must_have_been_quiet_for_a_while() -> None:
    braked = assess(NEW, make_sample(clock_reasons=0x8), 100.0)
    assert assess(braked, HEALTHY, 129.9).status is GpuHealthStatus.HOT
    assert assess(braked, HEALTHY, 130.0).status is GpuHealthStatus.FIT


def test_a_stranger_counts_once_it_has_stayed() -> None:
    """Check the settle time: our own process may be listed for a moment after its container is gone."""
    stranger = make_sample(processes=(FOREIGN_PROCESS,))
    seen = assess(assess(NEW, stranger, 100.0), stranger, 101.9)
    assert seen.status is GpuHealthStatus.FIT
    assert assess(seen, stranger, 102.0).status is GpuHealthStatus.BUSY_OWNER
    gone = assess(seen, HEALTHY, 102.0)
    assert assess(gone, stranger, 103.0).status is GpuHealthStatus.FIT


def test_work_resumes_by_itself_once_the_owner_has_been_gone_for_a_while() -> None:
    busy = assess(NEW, make_sample(processes=(FOREIGN_PROCESS,)), 100.0, policy=AT_ONCE)
    still = assess(busy, HEALTHY, 159.0)
    assert still.status is GpuHealthStatus.BUSY_OWNER
    assert still.since == 100.0
    back = assess(assess(still, make_sample(processes=(FOREIGN_PROCESS,)), 159.5, policy=AT_ONCE), HEALTHY, 200.0)
    assert back.status is GpuHealthStatus.BUSY_OWNER
    assert assess(back, HEALTHY, 219.5).status is GpuHealthStatus.FIT


def test_our_own_processes_are_no_strangers() -> None:
    mine = make_sample(processes=(GpuProcess(99, 2000, containers=("c" * 64,)), GpuProcess(5, 10, ancestors=(4,))))
    ours = OwnProcesses(containers=frozenset({"c" * 64}), pids=frozenset({4}))
    assert assess(NEW, mine, 1.0, ours, AT_ONCE).status is GpuHealthStatus.FIT
    assert assess(NEW, mine, 1.0, OwnProcesses(pids=frozenset({4})), AT_ONCE).status is GpuHealthStatus.BUSY_OWNER


XIDS = {
    13: GpuHealthStatus.FIT,
    31: GpuHealthStatus.FIT,
    43: GpuHealthStatus.FIT,
    45: GpuHealthStatus.FIT,
    68: GpuHealthStatus.FIT,
    109: GpuHealthStatus.FIT,
    32: GpuHealthStatus.UNHEALTHY,
    48: GpuHealthStatus.UNHEALTHY,
    62: GpuHealthStatus.UNHEALTHY,
    63: GpuHealthStatus.UNHEALTHY,
    64: GpuHealthStatus.UNHEALTHY,
    74: GpuHealthStatus.UNHEALTHY,
    79: GpuHealthStatus.UNHEALTHY,
    94: GpuHealthStatus.UNHEALTHY,
    95: GpuHealthStatus.UNHEALTHY,
    119: GpuHealthStatus.UNHEALTHY,
    120: GpuHealthStatus.UNHEALTHY,
    999: GpuHealthStatus.UNHEALTHY,
}


@pytest.mark.parametrize(("number", "fitness"), XIDS.items())
def test_xids(number: int, fitness: GpuHealthStatus) -> None:
    judgement = handle_xid(NEW, XidEvent(GPU_UUID, number, at=0.0), 5.0)
    assert judgement.status is fitness
    assert judgement.needs_probe is (fitness is GpuHealthStatus.UNHEALTHY)


def test_the_xid_tables_do_not_overlap_and_speak() -> None:
    assert not APPLICATION_XIDS & GPU_XIDS.keys()
    assert describe_xid(79) == "XID 79, fell off the bus"
    assert describe_xid(13) == "XID 13, application fault"
    assert describe_xid(7777) == "XID 7777, GPU fault"


def test_the_list_of_application_faults_is_a_setting() -> None:
    policy = GpuHealthPolicy(application_xids=frozenset({94}))
    assert handle_xid(NEW, XidEvent(GPU_UUID, 94, at=0.0), 5.0, policy) == NEW
    assert handle_xid(NEW, XidEvent(GPU_UUID, 13, at=0.0), 5.0, policy).status is GpuHealthStatus.UNHEALTHY


def test_a_poisoned_gpu_works_again_after_its_probe() -> None:
    bad = judged(HEALTHY, start=mark_faulty(NEW, "job said 69", 1.0))
    assert (bad.status, bad.why, bad.since) == (GpuHealthStatus.UNHEALTHY, "job said 69", 1.0)
    assert judged(HEALTHY, start=clear_fault(bad, 50.0)).status is GpuHealthStatus.FIT


def test_a_probe_clears_nothing_that_still_shows() -> None:
    pending = make_sample(rows=RemappedRows(pending=True))
    bad = judged(pending)
    assert not bad.needs_probe
    assert clear_fault(bad, 50.0) == bad
    reset = judged(HEALTHY, start=bad)
    assert reset.needs_probe
    assert clear_fault(reset, 50.0).status is GpuHealthStatus.FIT


def test_a_lost_gpu_that_returns_must_prove_itself() -> None:
    lost = assess_lost(NEW, LOST, 10.0)
    assert (lost.status, lost.why) == (GpuHealthStatus.LOST, "GPU is lost")
    assert clear_fault(lost, 11.0) == lost
    assert mark_faulty(lost, "XID 79", 11.0).status is GpuHealthStatus.LOST
    back = assess(lost, HEALTHY, 12.0)
    assert (back.status, back.why, back.needs_probe) == (GpuHealthStatus.UNHEALTHY, "GPU is lost", True)
    assert clear_fault(back, 13.0).status is GpuHealthStatus.FIT


def test_a_proof_of_a_gpu_that_is_only_hot_changes_nothing() -> None:
    hot = judged(make_sample(temperature_c=89))
    assert clear_fault(hot, 200.0) == hot


def test_all_gpus_of_a_snapshot() -> None:
    first = assess_all({}, make_snapshot(make_sample(0), make_sample(1, temperature_c=89)), 5.0)
    assert {uuid: one.status for uuid, one in first.items()} == {
        "GPU-0": GpuHealthStatus.FIT,
        "GPU-1": GpuHealthStatus.HOT,
    }
    assert first["GPU-0"].since == 5.0
    gone = replace(
        make_snapshot(make_sample(1)), lost=(LOST, LostGpu("GPU-7", "never seen"), LostGpu("", "nameless", 3))
    )
    second = assess_all(first, gone, 6.0)
    assert second.keys() == {"GPU-0", "GPU-1", "GPU-7"}
    assert second["GPU-0"].status is second["GPU-7"].status is GpuHealthStatus.LOST
    hung = assess_all(second, make_snapshot(make_sample(0), state=GpuMonitorState.HUNG), 7.0)
    assert hung == second


TROUBLE = {
    "poisoned": lambda judgement, now: mark_faulty(judgement, "69", now),
    "struck": lambda judgement, now: handle_xid(judgement, XidEvent(GPU_UUID, 79, at=now), now),
    "lost": lambda judgement, now: assess_lost(judgement, LOST, now),
    "pending": lambda judgement, now: assess(judgement, make_sample(retired_pending=True), now),
    "ecc": lambda judgement, now: assess(judgement, make_sample(ecc_uncorrected=10**6), now),
}
HARMLESS = st.builds(
    make_sample,
    temperature_c=st.none() | st.integers(20, 110),
    clock_reasons=st.integers(0, 0x1FF),
    ecc_uncorrected=st.just(0),
    processes=st.sampled_from([(), (FOREIGN_PROCESS,)]),
)


@given(trouble=st.sampled_from(sorted(TROUBLE)), after=st.lists(HARMLESS, min_size=1, max_size=20))
def test_poison_never_clears_by_itself(trouble: str, after: list[GpuSample]) -> None:
    judgement = TROUBLE[trouble](judged(HEALTHY), 200.0)
    for second, one in enumerate(after):
        judgement = assess(judgement, one, 1000.0 + 100 * second)
        assert judgement.status is GpuHealthStatus.UNHEALTHY
        assert judgement.needs_probe


@given(
    start=st.sampled_from([50, 89]),
    band=st.lists(st.integers(75, 84), min_size=1, max_size=30),
)
def test_nothing_flaps_inside_the_band(start: int, band: list[int]) -> None:
    judgement = judged(make_sample(temperature_c=start))
    for second, celsius in enumerate(band, 200):
        after = assess(judgement, make_sample(temperature_c=celsius), float(second))
        assert (after.status, after.since) == (judgement.status, judgement.since)
        judgement = after
