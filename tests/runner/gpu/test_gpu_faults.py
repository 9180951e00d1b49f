"""Real nvidia-ml-py in a real child, over a stub library that fails as drivers do."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from runner.gpu.health import assess_all, handle_xid
from runner.gpu.monitor import MonitorTiming
from runner.gpu.placement import Placed, PlacementCapacity, Unplaceable, place
from schemas.endpoint import Resources
from schemas.gpu import GpuHealth, GpuHealthStatus, GpuMonitorState, GpuSample, RemappedRows
from schemas.job import WaitReason
from tests.runner.gpu.stub_monitor import DEADLINE_S, run_stub_monitor, wait_for_snapshot
from tests.runner.gpu.stub_nvml import StubNvml, gpu_uuid

NEW_DRIVER = '-DVERSION="600.20"'


async def test_xid_79_mid_run_comes_before_the_loss_and_poisons(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path, count=2)
    async with run_stub_monitor(nvml) as watch:
        judgements = assess_all({}, watch.snapshot(), 0.0)
        with watch.events() as events:
            nvml.xid(0, 79)
            event = await events.receive()
            judgements[event.uuid] = handle_xid(judgements[event.uuid], event, 1.0)
            assert judgements[gpu_uuid(0)].why == "XID 79, fell off the bus"
            nvml.set(gpu0__lost=1)
            lost = await wait_for_snapshot(watch, lambda now: bool(now.lost))
            judgements = assess_all(judgements, lost, 2.0)
            assert judgements[gpu_uuid(0)].status is GpuHealthStatus.LOST
            assert judgements[gpu_uuid(1)].status is GpuHealthStatus.FIT
            nvml.xid(1, 13)
            assert (await events.receive()).uuid == gpu_uuid(1)
            with pytest.raises(anyio.WouldBlock):
                events.receive_nowait()
        assert place(PlacementCapacity(watch.snapshot(), judgements), Resources(gpus=1)) == Placed((gpu_uuid(1),))


async def test_a_loss_is_sticky(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path)
    async with run_stub_monitor(nvml) as watch:
        nvml.set(gpu0__lost=1)
        stays = await wait_for_snapshot(watch, lambda now: bool(now.lost))
        nvml.set(gpu0__lost=0)
        for _ in range(10):
            stays = await watch.wait_for_change(stays)
        assert [gpu.uuid for gpu in stays.lost] == [gpu_uuid(0)]
        assert "reset the GPU" in stays.lost[0].why


async def test_a_new_process_sees_that_a_lost_gpu_was_reset(tmp_path: Path) -> None:
    """Check that a lost GPU is found again by a new process, and that the monitor stays OK until then."""
    nvml = StubNvml(tmp_path)
    async with run_stub_monitor(nvml, renew_s=0.3) as watch:
        nvml.set(gpu0__lost=1)
        now = await wait_for_snapshot(watch, lambda now: bool(now.lost))
        nvml.set(gpu0__lost=0)
        while now.lost:
            now = await watch.wait_for_change(now)
            assert now.state is GpuMonitorState.OK
        assert [sample.uuid for sample in now.samples] == [gpu_uuid(0)]


async def test_a_gpu_that_is_dead_from_the_start_is_listed_without_a_name(tmp_path: Path) -> None:
    async with run_stub_monitor(StubNvml(tmp_path, count=2, gpu0__lost=1)) as watch:
        snapshot = watch.snapshot()
    assert [sample.uuid for sample in snapshot.samples] == [gpu_uuid(1)]
    assert [(gpu.uuid, gpu.index) for gpu in snapshot.lost] == [("", 0)]


async def test_one_gpu_with_an_unknown_error_does_not_blind_the_other(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path, count=2)
    async with run_stub_monitor(nvml) as watch:
        nvml.set(gpu0__err__nvmlDeviceGetMemoryInfo_v2=999)
        bad = await wait_for_snapshot(watch, lambda now: bool(now.lost))
        assert [sample.uuid for sample in bad.samples] == [gpu_uuid(1)]
        nvml.set(gpu0__err__nvmlDeviceGetMemoryInfo_v2=0)
        good = await wait_for_snapshot(watch, lambda now: not now.lost)
        judged = assess_all(assess_all({}, bad, 0.0), good, 1.0)
        assert judged[gpu_uuid(0)].needs_probe


async def test_every_call_hangs_and_later_answers(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path)
    async with run_stub_monitor(
        nvml, MonitorTiming(first_reading_timeout_s=5.0, reading_timeout_s=0.5, restart_backoff_s=0.05)
    ) as watch:
        nvml.set(hang=1)
        hung = await wait_for_snapshot(watch, lambda now: now.state is GpuMonitorState.HUNG)
        refused = place(PlacementCapacity(hung, {gpu_uuid(0): GpuHealth(gpu_uuid(0))}), Resources(gpus=1))
        assert isinstance(refused, Unplaceable)
        assert refused.reason is WaitReason.GPU_UNHEALTHY
        nvml.set(hang=0)
        await wait_for_snapshot(watch, lambda now: now.state is GpuMonitorState.OK)


async def test_a_driver_that_hangs_from_the_start_lets_the_runner_start(tmp_path: Path) -> None:
    async with run_stub_monitor(
        StubNvml(tmp_path, hang=1), MonitorTiming(first_reading_timeout_s=0.3, reading_timeout_s=0.3)
    ) as watch:
        assert watch.snapshot().state is GpuMonitorState.HUNG


async def test_a_wait_for_events_that_hangs_alone_is_a_hang(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path)
    async with run_stub_monitor(nvml) as watch:
        nvml.set(hang__nvmlEventSetWait_v2=1)
        await wait_for_snapshot(watch, lambda now: now.state is GpuMonitorState.HUNG)
        nvml.set(hang__nvmlEventSetWait_v2=0)
        await wait_for_snapshot(watch, lambda now: now.state is GpuMonitorState.OK)


async def test_the_driver_is_upgraded_under_us(tmp_path: Path) -> None:
    """Upgrade the kernel module, which the old library reports, then the library file, which a new child loads."""
    nvml = StubNvml(tmp_path)
    async with run_stub_monitor(nvml) as watch:
        assert watch.snapshot().driver == "595.10"
        nvml.set(driver="600.20")
        await wait_for_snapshot(watch, lambda now: now.state is GpuMonitorState.MISMATCH)
        nvml.install(NEW_DRIVER)
        after = await wait_for_snapshot(watch, lambda now: now.state is GpuMonitorState.OK)
        assert after.driver == "600.20"


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ({"unloaded": 1}, GpuMonitorState.NO_DRIVER),
        ({"count": 0}, GpuMonitorState.NONE),
        ({"err__nvmlInitWithFlags": 18}, GpuMonitorState.MISMATCH),
        ({"err__nvmlInitWithFlags": 999}, GpuMonitorState.FAILED),
        ({"err__nvmlEventSetCreate": 3}, GpuMonitorState.OK),
    ],
)
async def test_how_the_driver_greets(tmp_path: Path, values: dict[str, object], state: GpuMonitorState) -> None:
    async with run_stub_monitor(StubNvml(tmp_path, **values)) as watch:
        assert watch.snapshot().state is state


async def test_a_host_without_the_library_has_no_gpu_and_says_so(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path)
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"not a library")
    async with run_stub_monitor(nvml) as watch:
        assert watch.snapshot().state is GpuMonitorState.NONE
        assert place(PlacementCapacity(watch.snapshot(), {}), Resources(gpus=1, gpu_optional=True)) == Placed()


async def test_memory_filling_up_errors_pending_and_the_owner_arriving(tmp_path: Path) -> None:
    """Follow one GPU through an afternoon: the reason that a waiting job would see at each step."""
    nvml, need = StubNvml(tmp_path, gpu0__ecc=1), Resources(gpus=1, vram_mb=8000)
    async with run_stub_monitor(nvml) as watch:
        judgements = assess_all({}, watch.snapshot(), 0.0)

        async def told(now: float, holds: Callable[[GpuSample], bool]) -> object:
            snapshot = await wait_for_snapshot(watch, lambda seen: holds(seen.samples[0]))
            judgements.update(assess_all(judgements, snapshot, now))
            placed = place(PlacementCapacity(snapshot, judgements), need)
            return placed.reason if isinstance(placed, Unplaceable) else placed

        assert await told(1.0, lambda sample: True) == Placed((gpu_uuid(0),))
        nvml.set(gpu0__used_mb=20000)
        assert await told(2.0, lambda sample: sample.memory_used_mb == 20000) is WaitReason.VRAM_SHORT
        nvml.set(gpu0__used_mb=0, gpu0__compute=f"{os.getpid()}:1048576")
        assert await told(3.0, lambda sample: bool(sample.processes)) == Placed((gpu_uuid(0),))
        assert await told(5.0, lambda sample: bool(sample.processes)) is WaitReason.GPU_BUSY_OWNER
        nvml.set(gpu0__compute=None)
        assert await told(6.0, lambda sample: not sample.processes) is WaitReason.GPU_BUSY_OWNER
        assert await told(99.0, lambda sample: True) == Placed((gpu_uuid(0),))
        nvml.set(gpu0__rows_pending=1)
        assert await told(100.0, lambda sample: sample.rows == RemappedRows(pending=True)) is WaitReason.GPU_UNHEALTHY


def test_the_child_ends_when_nobody_reads_any_more(tmp_path: Path) -> None:
    """Check that a killed runner leaves no child behind."""
    argv = [sys.executable, "-m", "runner.gpu.nvml", "0.02", "60"]
    env = StubNvml(tmp_path).env
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as child:
        assert child.stdout is not None
        assert b'"reading"' in child.stdout.readline()
        child.stdout.close()
        assert child.wait(DEADLINE_S) is not None
