"""Shares of a GPU: which jobs run on it together, whose turn it is, and MPS."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from runner.engines.docker_container_config import container_config
from runner.engines.port import MpsClient
from runner.gpu.allocator import (
    MPS_DAEMON_NAME,
    MPS_PID_FILE,
    GpuAllocator,
    GpuSettings,
    MpsSettings,
    find_control_daemon,
    mps_client,
)
from runner.gpu.placement import (
    Placed,
    PlacementCapacity,
    PlacementPolicy,
    ShareTurns,
    Unplaceable,
    VramReservation,
    choose_kept_gpus,
    place,
)
from schemas.endpoint import Endpoint, EndpointInvalid, Resources, parse_endpoint
from schemas.job import WaitReason
from tests.runner.engines.test_sandbox import spec
from tests.support.fake_gpus import FakeGpuMonitor
from tests.support.gpu_samples import fit_health, make_sample, make_snapshot
from tests.support.wait import wait_for_sync

WHOLE = Resources(gpus=1)
HALF = Resources(gpus=1, share=0.5)
QUARTER = Resources(gpus=1, share=0.25)


def taken(uuid: str, *shares: float, idle: bool = False) -> tuple[VramReservation, ...]:
    return tuple(VramReservation(uuid, 0, is_idle=idle, share=share) for share in shares)


def supply(count: int, *held: VramReservation, kept: tuple[str, ...] = ()) -> PlacementCapacity:
    samples = [make_sample(index) for index in range(count)]
    return PlacementCapacity(make_snapshot(*samples), fit_health(*range(count)), held, kept=frozenset(kept))


@pytest.mark.parametrize(
    ("held", "need", "containers_per_gpu", "refused"),
    [
        ((), WHOLE, 1, None),
        ((0.25,), WHOLE, 1, WaitReason.GPU_SHARE_SHORT),
        ((1.0,), QUARTER, 1, WaitReason.BEHIND),
        ((0.25, 0.5), QUARTER, 1, None),
        ((0.25, 0.5, 0.25), QUARTER, 1, WaitReason.BEHIND),
        ((0.5, 0.25), HALF, 1, WaitReason.GPU_SHARE_SHORT),
        ((0.1,) * 9, Resources(gpus=1, share=0.1), 1, None),
        ((0.1,) * 10, Resources(gpus=1, share=0.1), 1, WaitReason.BEHIND),
        ((1 / 3, 1 / 3), WHOLE, 3, None),  # without a share: one divided by the host's number
        ((1 / 3, 1 / 3, 1 / 3), WHOLE, 3, WaitReason.BEHIND),
        ((0.5,), WHOLE, 3, None),
        ((0.5, 1 / 3), WHOLE, 3, WaitReason.GPU_SHARE_SHORT),
        ((1 / 3, 1 / 3), HALF, 3, WaitReason.GPU_SHARE_SHORT),
    ],
)
def test_shares_add_up_to_one_gpu(
    held: tuple[float, ...], need: Resources, containers_per_gpu: int, refused: WaitReason | None
) -> None:
    policy = PlacementPolicy(containers_per_gpu=containers_per_gpu)
    placed = place(supply(1, *taken("GPU-0", *held)), need, policy)
    assert (placed.reason if isinstance(placed, Unplaceable) else None) == refused


def test_the_refusal_says_how_much_is_free_and_how_much_is_needed() -> None:
    refused = place(supply(1, *taken("GPU-0", 0.25)), WHOLE)
    assert refused == Unplaceable(WaitReason.GPU_SHARE_SHORT, "75% of GPU 0 are free, 100% of it are needed")


def test_vram_must_fit_beside_the_share() -> None:
    held = VramReservation("GPU-0", 20000, share=0.25)
    refused = place(supply(1, held), Resources(gpus=1, share=0.25, vram_mb=8000))
    assert isinstance(refused, Unplaceable)
    assert refused.reason is WaitReason.VRAM_SHORT


def test_a_share_goes_where_the_least_is_free_so_that_whole_gpus_stay_free() -> None:
    held = (*taken("GPU-0", 0.25), *taken("GPU-1", 0.5), *taken("GPU-2", 0.75))
    assert place(supply(4, *held), HALF) == Placed(("GPU-1",))
    assert place(supply(4, *held), WHOLE) == Placed(("GPU-3",))


def test_a_share_of_several_gpus_is_one_of_each() -> None:
    held = (*taken("GPU-0", 0.75), *taken("GPU-1", 0.5), *taken("GPU-2", 0.25))
    assert place(supply(3, *held), replace(HALF, gpus=2)) == Placed(("GPU-1", "GPU-2"))
    assert isinstance(place(supply(3, *held), replace(HALF, gpus=3)), Unplaceable)


def test_a_waiting_container_holds_its_share_against_others_that_wait_and_against_no_job() -> None:
    idle = supply(1, *taken("GPU-0", 0.5, 0.5, idle=True))
    assert isinstance(place(idle, HALF, warm=True), Unplaceable)
    assert place(idle, WHOLE) == Placed(("GPU-0",))
    running = supply(1, *taken("GPU-0", 0.5))
    assert place(running, HALF, warm=True) == Placed(("GPU-0",))
    assert isinstance(place(running, replace(HALF, share=0.75), warm=True), Unplaceable)
    assert place(running, WHOLE, warm=True) == Placed(("GPU-0",))  # without a share: loads beside a job, as before


def test_nothing_starts_on_a_gpu_that_is_kept_for_another_endpoint() -> None:
    refused = place(supply(1, kept=("GPU-0",)), QUARTER)
    assert isinstance(refused, Unplaceable)
    assert refused.reason is WaitReason.BEHIND
    assert place(supply(2, kept=("GPU-0",)), QUARTER) == Placed(("GPU-1",))


HIDDEN_S = 5.0
SHARES = st.sampled_from([None, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.7, 1.0])
JOBS = st.builds(Resources, gpus=st.integers(1, 2), share=SHARES, vram_mb=st.integers(0, 12000))


UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is not a failure


@UNTIMED
@given(steps=st.lists(JOBS | st.integers(0, 9), max_size=30), containers_per_gpu=st.integers(1, 4))
def test_no_gpu_is_ever_given_out_twice(steps: list[Resources | int], containers_per_gpu: int) -> None:
    """A step is a job that comes, or the number of the running job that ends."""
    gpus = GpuAllocator(
        FakeGpuMonitor(make_sample(0), make_sample(1)),
        GpuSettings(placement=PlacementPolicy(containers_per_gpu=containers_per_gpu)),
        lambda: 0.0,
    )
    gpus._apply_snapshot(gpus.snapshot)
    running = []
    for step in steps:
        if isinstance(step, Resources):
            endpoint = Endpoint(name="n", image="n", resources=step)
            placed = gpus.place(endpoint, None)
            if isinstance(placed, Placed):
                assert len(set(placed.uuids)) == step.gpus
                running.append(gpus.allocate(placed.uuids, endpoint))
        elif running:
            running.pop(step % len(running)).release()
        for uuid in ("GPU-0", "GPU-1"):
            here = [one for one in running if uuid in one.uuids]
            assert sum(one.share for one in here) <= 1 + 1e-6
            assert sum(one._resources.vram_mb for one in here) + 512 <= 24320
    for report in gpus.reports():
        held = sum(one.share for one in running if report.uuid in one.uuids)
        assert report.share_free == pytest.approx(max(0.0, 1 - held), abs=1e-3)


@UNTIMED
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    share=st.sampled_from([0.1, 0.25, 0.5]),
    patience=st.sampled_from([0.0, 10.0, 60.0]),
    count=st.integers(1, 2),
)
def test_small_jobs_do_not_start_past_a_whole_one_for_ever(
    lengths: list[int], share: float, patience: float, count: int
) -> None:
    """Small jobs of these lengths come without end, one whenever it fits. All times are simulated seconds."""
    now = 0.0
    gpus = GpuAllocator(FakeGpuMonitor(*map(make_sample, range(count))), GpuSettings(), lambda: now)
    gpus._apply_snapshot(gpus.snapshot)
    small = Endpoint(name="small", image="n", resources=Resources(gpus=1, share=share))
    large = Endpoint(name="large", image="n", resources=Resources(gpus=count))
    turns, running, started = ShareTurns(patience, HIDDEN_S), [], 0
    bound = 2 * patience + max(lengths) + 10
    while now <= bound:
        for ends, allocation in [one for one in running if one[0] <= now]:
            allocation.release()
            running.remove((ends, allocation))
        refused = gpus.place(large, None)
        while isinstance(refused, Unplaceable):  # each round as the claim loop does it: whose turn, then one start
            turns.note_refused({"large": refused.reason}, {"large": count}, now)
            if turns.name_to_check(now) == "large":
                turns.note_looked("large", "large", now, is_shared=False)
            turns.choose(now)
            gpus.keep_gpus(large if turns.kept_for else None)
            if not isinstance(placed := gpus.place(small, None), Placed):
                break
            running.append((now + lengths[started % len(lengths)], gpus.allocate(placed.uuids, small)))
            started += 1
            refused = gpus.place(large, None)
        if started and isinstance(refused, Placed):
            break
        if isinstance(refused, Placed):  # nothing runs yet: the first small job comes
            placed = gpus.place(small, None)
            assert isinstance(placed, Placed)
            running.append((now + lengths[0], gpus.allocate(placed.uuids, small)))
            started += 1
        now += 1
    assert now <= bound


def test_a_turn_ends_with_the_start_with_the_queue_with_another_reason_and_with_the_endpoint() -> None:
    turns, gpus_needed = ShareTurns(60.0, HIDDEN_S), {"large": 1}

    def give_turn() -> None:
        turns.note_refused({"large": WaitReason.GPU_SHARE_SHORT}, gpus_needed, 0.0)
        assert turns.name_to_check(59.0) is None
        assert turns.name_to_check(60.0) == "large"
        turns.note_looked("large", "large", 60.0, is_shared=False)
        turns.choose(60.0)
        assert turns.kept_for == "large"

    give_turn()
    turns.note_started("large")
    assert turns.kept_for is None
    give_turn()
    assert turns.name_to_check(61.0) is None
    assert turns.name_to_check(66.0) == "large"
    turns.note_looked("large", None, 66.0, is_shared=False)
    turns.choose(66.0)  # another host took its last job
    assert turns.kept_for is None
    assert turns.name_to_check(125.0) is None  # its patience began again
    turns.note_started("large")
    give_turn()
    turns.note_refused({}, gpus_needed, 70.0)  # it may start now, and its turn lasts until it does
    assert turns.kept_for == "large"
    turns.note_refused({"large": WaitReason.IMAGE_MISSING}, gpus_needed, 71.0)
    assert turns.kept_for is None
    give_turn()
    turns.note_refused({}, {}, 72.0)  # the endpoint was removed
    assert turns.kept_for is None


def test_a_look_at_a_shared_pool_that_finds_another_job_restarts_no_patience() -> None:
    turns = ShareTurns(60.0, HIDDEN_S)

    def look(found: str | None, now: float) -> None:
        assert turns.name_to_check(now) == "large"
        turns.note_looked("large", found, now, is_shared=True)
        turns.choose(now)

    turns.note_refused({"large": WaitReason.GPU_SHARE_SHORT}, {"large": 1, "small": 1}, 0.0)
    turns.note_waiting("large", 48.0)  # too long ago at 60
    look("small", 60.0)
    assert turns.kept_for is None
    look("small", 65.0)
    turns.note_waiting("large", 66.0)  # it was the first message, and was returned
    turns.choose(67.0)
    assert turns.kept_for == "large"
    look("small", 72.0)
    assert turns.kept_for == "large"
    look(None, 82.0)  # for twice `hidden_s` no look has found it
    assert turns.kept_for is None
    assert turns.name_to_check(141.0) is None
    look("small", 142.0)


def test_an_endpoint_without_a_job_does_not_delay_the_turn_of_another() -> None:
    turns, gpus_needed = ShareTurns(60.0, HIDDEN_S), {"large": 1, "idle": 1}
    turns.note_refused({"idle": WaitReason.GPU_SHARE_SHORT}, gpus_needed, 0.0)
    turns.note_refused(dict.fromkeys(("idle", "large"), WaitReason.GPU_SHARE_SHORT), gpus_needed, 1.0)
    assert turns.name_to_check(61.0) == "idle"
    turns.note_looked("idle", "small", 61.0, is_shared=True)
    turns.choose(61.0)
    assert turns.name_to_check(61.0) == "large"
    turns.note_looked("large", "large", 61.0, is_shared=True)
    turns.choose(61.0)
    assert turns.kept_for == "large"


def test_who_is_behind_gets_no_turn_unless_it_needs_more_than_one_gpu() -> None:
    turns = ShareTurns(0.0, HIDDEN_S)
    turns.note_refused({"equal": WaitReason.BEHIND, "other": WaitReason.VRAM_SHORT}, {"equal": 1, "other": 1}, 0.0)
    assert turns.name_to_check(1.0) is None
    turns.note_refused({"pair": WaitReason.BEHIND}, {"pair": 2}, 1.0)
    assert turns.name_to_check(1.0) == "pair"


def test_the_gpus_with_the_most_share_free_are_kept() -> None:
    held = (*taken("GPU-0", 0.5), *taken("GPU-1", 0.25), *taken("GPU-2", 0.75))
    assert choose_kept_gpus(supply(3, *held), WHOLE, PlacementPolicy()) == {"GPU-1"}
    assert choose_kept_gpus(supply(3, *held), replace(WHOLE, gpus=2), PlacementPolicy()) == {"GPU-0", "GPU-1"}
    assert choose_kept_gpus(supply(3, *held), replace(WHOLE, gpus=4), PlacementPolicy()) == frozenset()
    assert choose_kept_gpus(supply(3, *held), Resources(gpus=1, vram_mb=99999), PlacementPolicy()) == frozenset()


@pytest.mark.parametrize(
    ("resources", "why"),
    [
        ("share = 0.25", "resources.share is a part of a GPU: set resources.gpus = 1, or leave share out"),
        ("gpus = 1\nshare = 0", "resources.share"),
        ("gpus = 1\nshare = 1.5", "resources.share"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(resources: str, why: str) -> None:
    with pytest.raises(EndpointInvalid, match=why):
        parse_endpoint(f'name = "n"\nimage = "n"\n[resources]\n{resources}\n')


@contextmanager
def run_control_daemon(folder: Path) -> Iterator[int]:
    """Run a program of the control daemon's name, with its pid file."""
    program = folder / f"{MPS_DAEMON_NAME}-control"
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([program, "600"]) as daemon:
        (folder / MPS_PID_FILE).write_text(f"{daemon.pid}\n")
        comm = Path(f"/proc/{daemon.pid}/comm")
        wait_for_sync(
            lambda: comm.read_text().startswith(MPS_DAEMON_NAME)
        )  # the kernel sets it a moment after the exec
        try:
            yield daemon.pid
        finally:
            daemon.kill()


def test_mps_is_used_where_its_control_daemon_runs(tmp_path: Path) -> None:
    auto = MpsSettings(pipe_dir=tmp_path)
    assert find_control_daemon(auto) is None
    with run_control_daemon(tmp_path) as pid:
        assert find_control_daemon(auto) == pid
        assert find_control_daemon(replace(auto, use="off")) is None
    assert find_control_daemon(auto) is None  # the file of a daemon that has ended
    (tmp_path / MPS_PID_FILE).write_text(str(os.getpid()))
    assert find_control_daemon(auto) is None  # its pid belongs to another program now


def test_a_share_is_the_percentage_of_mps(tmp_path: Path) -> None:
    auto = MpsSettings(pipe_dir=tmp_path)
    assert mps_client(auto, 0.25, daemon_pid=7) == MpsClient(str(tmp_path), 25)
    assert [mps_client(auto, share, daemon_pid=7).percentage for share in (0.29, 1 / 3, 0.001)] == [29, 33, 1]
    assert mps_client(auto, 1.0, daemon_pid=7) is None
    assert mps_client(auto, 0.25, daemon_pid=None) is None
    assert mps_client(replace(auto, use="on"), 0.25, daemon_pid=None) is not None


def test_a_container_gets_the_daemons_sockets_and_its_percentage() -> None:
    client = MpsClient("/tmp/nvidia-mps", 25)
    made = container_config(replace(spec(gpus=("GPU-0",)), mps=client), "1:2", "cdi", "{}")
    shared = [one for one in made["HostConfig"]["Mounts"] if not one["Target"].startswith("/job")]
    assert shared == [
        {"Type": "bind", "Source": path, "Target": path, "ReadOnly": False} for path in ("/tmp/nvidia-mps", "/dev/shm")
    ]
    assert {"CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=25"} <= set(made["Env"])


def test_the_mps_server_is_no_program_of_somebody_else(tmp_path: Path) -> None:
    gpus = GpuAllocator(FakeGpuMonitor(), GpuSettings(mps=MpsSettings(pipe_dir=tmp_path)), lambda: 0.0)
    assert gpus._own_processes.pids == frozenset()
    with run_control_daemon(tmp_path) as pid:
        assert gpus._own_processes.pids == {pid}
