"""Placement: which GPUs a container gets, and the reason if it gets none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from runner.gpu.health import gpu_reports
from runner.gpu.placement import (
    Placed,
    PlacementCapacity,
    PlacementPolicy,
    Unplaceable,
    VramReservation,
    free_mb,
    place,
)
from schemas.endpoint import Resources
from schemas.endpoint_parts import GpuRequirement
from schemas.gpu import GpuHealth, GpuHealthStatus, GpuMonitorState, GpuProcess, GpuSample, GpuSnapshot, LostGpu
from schemas.job import WaitReason
from tests.support.gpu_samples import fit_health, make_sample, make_snapshot

ONE = Resources(gpus=1, vram_mb=8000)
TWO = Resources(gpus=2, vram_mb=8000)
EASY = Resources(gpus=1, vram_mb=8000, gpu_optional=True)
CPU = Resources()
SHARED = PlacementPolicy(containers_per_gpu=3)
C = "c" * 64


def reason(placed: Placed | Unplaceable) -> WaitReason:
    assert isinstance(placed, Unplaceable)
    assert placed.why
    return placed.reason


NOT_OK = [state for state in GpuMonitorState if state is not GpuMonitorState.OK]


@pytest.mark.parametrize("state", list(GpuMonitorState))
def test_work_without_a_gpu_runs_whatever_the_gpus_do(state: GpuMonitorState) -> None:
    assert place(PlacementCapacity(make_snapshot(state=state), {}), CPU) == Placed()


@pytest.mark.parametrize(
    ("state", "need", "runs"),
    [
        (GpuMonitorState.NONE, EASY, True),
        (GpuMonitorState.NO_DRIVER, EASY, True),
        (GpuMonitorState.MISMATCH, EASY, False),
        (GpuMonitorState.HUNG, EASY, False),
        (GpuMonitorState.FAILED, EASY, False),
        *((state, ONE, False) for state in NOT_OK),
    ],
)
def test_a_watch_that_is_not_ok(state: GpuMonitorState, need: Resources, runs: bool) -> None:
    placed = place(PlacementCapacity(make_snapshot(make_sample(0), state=state, why="told"), fit_health(0)), need)
    why = WaitReason.GPU_NONE if state is GpuMonitorState.NONE else WaitReason.GPU_UNHEALTHY
    assert placed == (Placed() if runs else Unplaceable(why, "told"))


def test_an_optional_gpu_is_used_where_there_is_one_and_waited_for_when_it_is_busy() -> None:
    assert place(PlacementCapacity(make_snapshot(make_sample(0)), fit_health(0)), EASY) == Placed(("GPU-0",))
    full = PlacementCapacity(make_snapshot(make_sample(0, memory_free_mb=3000)), fit_health(0))
    assert reason(place(full, EASY)) is WaitReason.VRAM_SHORT


def test_a_host_that_lost_its_only_gpu_does_not_quietly_fall_to_the_cpu() -> None:
    lost = GpuSnapshot(GpuMonitorState.NONE, lost=(LostGpu("GPU-0", "gone"),), why="no GPU")
    assert place(PlacementCapacity(lost, {}), EASY) == Unplaceable(WaitReason.GPU_UNHEALTHY, "no GPU")


@pytest.mark.parametrize(
    ("fitness", "told"),
    [
        (GpuHealthStatus.HOT, WaitReason.GPU_UNHEALTHY),
        (GpuHealthStatus.UNHEALTHY, WaitReason.GPU_UNHEALTHY),
        (GpuHealthStatus.LOST, WaitReason.GPU_UNHEALTHY),
        (GpuHealthStatus.BUSY_OWNER, WaitReason.GPU_BUSY_OWNER),
    ],
)
def test_only_a_fit_gpu_is_given(fitness: GpuHealthStatus, told: WaitReason) -> None:
    judged = {"GPU-0": GpuHealth("GPU-0", fitness, "why")}
    assert place(PlacementCapacity(make_snapshot(make_sample(0)), judged), ONE) == Unplaceable(told, "GPU 0: why")


def test_a_gpu_that_nobody_judged_is_not_given() -> None:
    assert reason(place(PlacementCapacity(make_snapshot(make_sample(0)), {}), ONE)) is WaitReason.GPU_UNHEALTHY


@pytest.mark.parametrize(
    ("free", "need", "reserve", "fits"),
    [(8512, 8000, 512, True), (8511, 8000, 512, False), (8000, 8000, 0, True), (100, 0, 0, True)],
)
def test_need_and_reserve_must_be_free(free: int, need: int, reserve: int, fits: bool) -> None:
    supply = PlacementCapacity(make_snapshot(make_sample(0, memory_free_mb=free)), fit_health(0))
    placed = place(supply, Resources(gpus=1, vram_mb=need), PlacementPolicy(reserve_mb=reserve))
    assert (placed == Placed(("GPU-0",))) is fits


def test_the_disk_must_have_room_too() -> None:
    need = Resources(gpus=1, disk_mb=1000)
    policy = PlacementPolicy(disk_reserve_mb=500)
    assert place(
        PlacementCapacity(make_snapshot(make_sample(0)), fit_health(0), disk_free_mb=1500), need, policy
    ) == Placed(("GPU-0",))
    assert (
        reason(place(PlacementCapacity(make_snapshot(make_sample(0)), fit_health(0), disk_free_mb=1499), need, policy))
        is WaitReason.DISK_SHORT
    )
    assert (
        reason(place(PlacementCapacity(make_snapshot(), {}, disk_free_mb=1499), Resources(disk_mb=1000), policy))
        is WaitReason.DISK_SHORT
    )


def test_a_promise_counts_until_it_is_taken_and_not_twice() -> None:
    promise = VramReservation("GPU-0", 8000, container=C)
    assert free_mb(make_sample(0, memory_free_mb=24000), [promise]) == 16000
    half = make_sample(0, memory_free_mb=20000, processes=(GpuProcess(7, 4000, containers=(C,)),))
    assert free_mb(half, [promise]) == 16000
    more = make_sample(0, memory_free_mb=14000, processes=(GpuProcess(7, 10000, containers=(C,)),))
    assert free_mb(more, [promise]) == 14000


def test_a_promise_to_a_process_counts_its_descendants() -> None:
    promise = VramReservation("GPU-0", 8000, pid=50)
    grown = make_sample(0, memory_free_mb=18000, processes=(GpuProcess(70, 6000, ancestors=(60, 50)),))
    assert free_mb(grown, [promise]) == 16000


def test_memory_that_is_not_reported_is_promised_in_full() -> None:
    unknown = make_sample(0, memory_free_mb=20000, processes=(GpuProcess(7, None, containers=(C,)),))
    assert free_mb(unknown, [VramReservation("GPU-0", 8000, container=C)]) == 12000


def test_one_container_a_gpu_unless_the_owner_says_more() -> None:
    supply = PlacementCapacity(make_snapshot(make_sample(0)), fit_health(0), (VramReservation("GPU-0", 8000),))
    assert reason(place(supply, ONE)) is WaitReason.BEHIND
    third = VramReservation("GPU-0", 8000, share=1 / 3)
    supply = PlacementCapacity(make_snapshot(make_sample(0)), fit_health(0), (third,))
    assert place(supply, ONE, SHARED) == Placed(("GPU-0",))
    crowd = PlacementCapacity(make_snapshot(make_sample(0)), fit_health(0), (third,) * 2)
    assert reason(place(crowd, ONE, SHARED)) is WaitReason.VRAM_SHORT


def test_the_least_crowded_gpu_then_the_tightest_fit() -> None:
    snapshot = make_snapshot(
        make_sample(0, memory_free_mb=24000), make_sample(1, memory_free_mb=9000), make_sample(2, memory_free_mb=16000)
    )
    assert place(PlacementCapacity(snapshot, fit_health(0, 1, 2)), ONE) == Placed(("GPU-1",))
    busy = PlacementCapacity(snapshot, fit_health(0, 1, 2), (VramReservation("GPU-1", 100, share=1 / 3),))
    assert place(busy, ONE, SHARED) == Placed(("GPU-2",))


def test_several_gpus_or_none() -> None:
    snapshot = make_snapshot(make_sample(0), make_sample(1), make_sample(2))
    assert place(PlacementCapacity(snapshot, fit_health(0, 2)), TWO) == Placed(("GPU-0", "GPU-2"))
    held = PlacementCapacity(snapshot, fit_health(0, 1, 2), (VramReservation("GPU-0", 1), VramReservation("GPU-1", 1)))
    assert reason(place(held, TWO)) is WaitReason.BEHIND


def test_a_host_with_too_few_gpus_says_so() -> None:
    assert place(PlacementCapacity(make_snapshot(make_sample(0)), fit_health(0)), TWO) == Unplaceable(
        WaitReason.GPU_NONE, "2 GPUs are needed, this host has 1"
    )
    lost = GpuSnapshot(GpuMonitorState.OK, samples=(make_sample(0),), lost=(LostGpu("GPU-1", "fell off"),))
    assert place(PlacementCapacity(lost, fit_health(0)), TWO) == Unplaceable(
        WaitReason.GPU_UNHEALTHY, "GPU GPU-1: fell off"
    )


def test_the_gpu_nearest_to_taking_it_gives_the_reason() -> None:
    snapshot = make_snapshot(make_sample(0), make_sample(1, memory_free_mb=1000), make_sample(2))
    judged = fit_health(1) | {
        "GPU-0": GpuHealth("GPU-0", GpuHealthStatus.LOST, "gone"),
        "GPU-2": GpuHealth("GPU-2", GpuHealthStatus.BUSY_OWNER, "owner"),
    }
    assert reason(place(PlacementCapacity(snapshot, judged), ONE)) is WaitReason.VRAM_SHORT
    del judged["GPU-1"]
    assert reason(place(PlacementCapacity(snapshot, judged), ONE)) is WaitReason.GPU_BUSY_OWNER


FREE = st.lists(st.integers(0, 24000), min_size=1, max_size=4)


@given(
    free=FREE,
    vram=st.integers(0, 24000),
    gpus=st.integers(1, 3),
    promised=st.lists(st.integers(0, 9000), max_size=4),
)
def test_what_is_given_is_really_there(free: list[int], vram: int, gpus: int, promised: list[int]) -> None:
    samples = [make_sample(index, memory_free_mb=amount) for index, amount in enumerate(free)]
    held = tuple(VramReservation(f"GPU-{n % len(samples)}", amount, share=1 / 3) for n, amount in enumerate(promised))
    placed = place(
        PlacementCapacity(make_snapshot(*samples), fit_health(*range(len(samples))), held),
        Resources(gpus=gpus, vram_mb=vram),
        SHARED,
    )
    if isinstance(placed, Placed):
        assert len(set(placed.uuids)) == gpus
        for sample in (sample for sample in samples if sample.uuid in placed.uuids):
            assert left(sample, held) >= vram + SHARED.reserve_mb
    else:
        assert placed.reason in {WaitReason.VRAM_SHORT, WaitReason.BEHIND, WaitReason.GPU_NONE}


def left(sample: GpuSample, held: tuple[VramReservation, ...]) -> int:
    return sample.memory_free_mb - sum(one.vram_mb for one in held if one.uuid == sample.uuid)


def test_presence_shows_every_gpu() -> None:
    state = GpuSnapshot(
        GpuMonitorState.OK,
        samples=(make_sample(1, temperature_c=61), make_sample(2)),
        lost=(LostGpu("L", "gone", 0, "Old"),),
    )
    judged = {"GPU-1": GpuHealth("GPU-1", GpuHealthStatus.HOT, "warm")}
    told = [(one.uuid, one.fitness, one.reason, one.temperature_c) for one in gpu_reports(state, judged)]
    assert told == [
        ("L", "lost", "gone", None),
        ("GPU-1", "hot", "warm", 61),
        ("GPU-2", "unhealthy", "not assessed yet", 50),
    ]


MIXED = (
    make_sample(0, name="NVIDIA GeForce RTX 4090", compute_capability="8.9"),
    make_sample(1, name="Tesla T4", compute_capability="7.5"),
    make_sample(2, name="NVIDIA A100-SXM4-80GB", compute_capability="8.0"),
)
MIXED_NAMES = "NVIDIA GeForce RTX 4090, 8.9; Tesla T4, 7.5; NVIDIA A100-SXM4-80GB, 8.0"


@pytest.mark.parametrize(
    ("required", "chosen"),
    [
        (GpuRequirement(("t4",)), "GPU-1"),
        (GpuRequirement(("H100", "A100")), "GPU-2"),
        (GpuRequirement((), "8.9"), "GPU-0"),
        (GpuRequirement(("T4", "A100"), "8.0"), "GPU-2"),
    ],
)
def test_only_matching_gpus_of_a_mixed_host_are_chosen(required: GpuRequirement, chosen: str) -> None:
    capacity = PlacementCapacity(make_snapshot(*MIXED), fit_health(0, 1, 2))
    assert place(capacity, ONE, required=required) == Placed((chosen,))


@pytest.mark.parametrize(
    ("required", "need", "why"),
    [
        (
            GpuRequirement(("H100",), "9.0"),
            ONE,
            f"a GPU (H100, compute capability 9.0 or higher) (it has {MIXED_NAMES})",
        ),
        (
            GpuRequirement(("T4",)),
            TWO,
            f"2 GPUs (T4) (it has {MIXED_NAMES})",
        ),
    ],
)
def test_gpus_that_a_host_does_not_have_are_named(required: GpuRequirement, need: Resources, why: str) -> None:
    placed = place(PlacementCapacity(make_snapshot(*MIXED), fit_health(0, 1, 2)), need, required=required)
    assert placed == Unplaceable(WaitReason.REQUIREMENT_UNMET, why)


def test_a_matching_gpu_that_is_busy_or_lost_is_waited_for() -> None:
    busy = (VramReservation("GPU-1", 8000, C),)
    required, health = GpuRequirement(("T4",)), fit_health(0, 1, 2)
    shared = PlacementCapacity(make_snapshot(*MIXED), health, busy)
    assert reason(place(shared, ONE, required=required)) is WaitReason.BEHIND
    lost = replace(make_snapshot(MIXED[0]), lost=(LostGpu("GPU-1", "off the bus", 1, "Tesla T4"),))
    assert reason(place(PlacementCapacity(lost, health), ONE, required=required)) is WaitReason.GPU_UNHEALTHY
    other = replace(lost, lost=(LostGpu("GPU-2", "off the bus", 2, "NVIDIA A100"),))
    assert reason(place(PlacementCapacity(other, health), ONE, required=required)) is WaitReason.REQUIREMENT_UNMET


def test_work_that_can_do_without_a_gpu_does_so_where_none_matches() -> None:
    capacity = PlacementCapacity(make_snapshot(*MIXED), fit_health(0, 1, 2))
    assert place(capacity, EASY, required=GpuRequirement(("H100",))) == Placed()
