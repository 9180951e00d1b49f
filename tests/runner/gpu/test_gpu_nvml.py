"""Values that real nvidia-ml-py reads from a stub library: under the right names, and none invented."""

import os
from pathlib import Path

import anyio
import pytest

from runner.gpu.placement import Placed, PlacementCapacity, Unplaceable, place
from schemas.endpoint import Resources
from schemas.endpoint_parts import GpuRequirement
from schemas.gpu import GpuHealth, GpuMonitorState, GpuProcess, GpuRecoveryAction, GpuSample, RemappedRows
from schemas.job import WaitReason
from tests.runner.gpu.stub_monitor import run_stub_monitor, wait_for_snapshot
from tests.runner.gpu.stub_nvml import StubNvml, gpu_uuid


async def first_sample(nvml: StubNvml) -> GpuSample:
    async with run_stub_monitor(nvml) as watch:
        assert watch.snapshot().state is GpuMonitorState.OK
        return watch.snapshot().samples[0]


async def test_every_value_arrives_under_its_name(tmp_path: Path) -> None:
    nvml = StubNvml(
        tmp_path,
        gpu0__name="NVIDIA GeForce RTX 4090",
        gpu0__total_mb=24564,
        gpu0__reserved_mb=411,
        gpu0__used_mb=1200,
        gpu0__temperature=61,
        gpu0__slowdown=92,
        gpu0__reasons=0x24,
        gpu0__ecc=1,
        gpu0__ecc_corrected=4,
        gpu0__ecc_uncorrected=1,
        gpu0__rows_correctable=2,
        gpu0__rows_pending=1,
        gpu0__retired_pending=1,
        gpu0__field230=4,
        gpu0__utilization=73,
        gpu0__power_mw=312500,
        gpu0__energy_mj=987654321,
        gpu0__capability="12.0",
    )
    assert await first_sample(nvml) == GpuSample(
        index=0,
        uuid=gpu_uuid(0),
        name="NVIDIA GeForce RTX 4090",
        memory_total_mb=24564,
        memory_used_mb=1200,
        memory_reserved_mb=411,
        memory_free_mb=22953,
        temperature_c=61,
        slowdown_c=92,
        clock_reasons=0x24,
        ecc_corrected=4,
        ecc_uncorrected=1,
        rows=RemappedRows(2, 0, pending=True, failed=False),
        retired_pending=True,
        recovery=GpuRecoveryAction.DRAIN_AND_RESET,
        utilization=73,
        power_w=312.5,
        energy_mj=987654321,
        compute_capability="12.0",
    )


ACTIONS = [*zip(range(8), GpuRecoveryAction, strict=False), (8, GpuRecoveryAction.UNKNOWN)]


def test_recovery_actions_are_nvmls() -> None:
    names = "none gpu_reset node_reboot drain_p2p drain_and_reset recover_imex bus_reset system_reboot unknown"
    assert [(number, action.value) for number, action in ACTIONS] == list(enumerate(names.split()))


@pytest.mark.parametrize(("number", "action"), [ACTIONS[0], ACTIONS[7], ACTIONS[8]])
async def test_recovery_action(tmp_path: Path, number: int, action: GpuRecoveryAction) -> None:
    assert (await first_sample(StubNvml(tmp_path, gpu0__field230=number))).recovery is action


async def test_what_a_gpu_does_not_have_is_none_and_the_rest_is_reported(tmp_path: Path) -> None:
    """Check a GeForce under WSL: no ECC, no rows, no threshold, no energy, no events."""
    absent = {
        "nvmlDeviceGetTotalEnergyConsumption": 3,
        "nvmlDeviceGetRetiredPagesPendingStatus": 3,
        "nvmlDeviceGetUtilizationRates": 3,
        "nvmlDeviceGetPowerUsage": 4,
        "nvmlDeviceGetMarginTemperature": 3,
    }
    nvml = StubNvml(tmp_path, gpu0__slowdown=0, gpu0__reports=0)
    nvml.set(**{f"gpu0__err__{symbol}": code for symbol, code in absent.items()})
    got = await first_sample(nvml)
    assert (got.energy_mj, got.retired_pending, got.utilization, got.power_w, got.slowdown_c) == (None,) * 5
    assert (got.ecc_uncorrected, got.rows, got.recovery) == (None, None, None)
    assert (got.temperature_c, got.memory_free_mb) == (40, 24320)


async def test_not_supported_is_asked_once_and_a_passing_error_again(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path)
    nvml.set(gpu0__err__nvmlDeviceGetPowerUsage=3, gpu0__err__nvmlDeviceGetUtilizationRates=999, gpu0__utilization=9)
    async with run_stub_monitor(nvml) as watch:
        first = watch.snapshot().samples[0]
        assert (first.power_w, first.utilization) == (None, None)
        nvml.set(gpu0__err__nvmlDeviceGetPowerUsage=0, gpu0__err__nvmlDeviceGetUtilizationRates=0)
        later = await wait_for_snapshot(watch, lambda now: now.samples[0].utilization == 9)
        assert later.samples[0].power_w is None


async def test_a_gpu_without_a_threshold_reports_it_by_its_margin(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path, gpu0__slowdown=0, gpu0__temperature=60, gpu0__margin=27)
    assert (await first_sample(nvml)).slowdown_c == 87


async def test_a_driver_from_before_510_is_asked_the_old_way(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path, "-DOLD", gpu0__used_mb=1000, gpu0__reasons=8, gpu0__compute="1:1048576")
    got = await first_sample(nvml)
    assert (got.memory_used_mb, got.memory_reserved_mb, got.memory_free_mb) == (1256, None, 23320)
    assert (got.temperature_c, got.clock_reasons, got.recovery) == (40, 8, None)
    assert [(process.pid, process.used_mb) for process in got.processes] == [(1, 1)]


async def test_processes_are_traced_and_distinguished(tmp_path: Path) -> None:
    async with await anyio.open_process(["cat"]) as child:
        mine, both, hidden = child.pid, os.getpid(), 2**22 - 1
        nvml = StubNvml(tmp_path, gpu0__compute=f"{mine}:{3 << 30},{hidden}:?,{both}:{1 << 20}")
        nvml.set(gpu0__graphics=f"{both}:{1 << 20},1:{64 << 20}")
        got = {process.pid: process for process in (await first_sample(nvml)).processes}
    assert got.keys() == {mine, both, hidden, 1}
    assert (got[mine].used_mb, got[mine].ancestors[0], got[mine].graphics) == (3072, os.getpid(), False)
    assert got[hidden] == GpuProcess(hidden, used_mb=None, seen=False)
    assert not got[both].graphics
    assert got[1].graphics


async def test_gpus_of_two_models_are_told_apart_by_what_a_driver_says(tmp_path: Path) -> None:
    nvml = StubNvml(
        tmp_path,
        count=2,
        gpu0__name="Tesla T4",
        gpu0__capability="7.5",
        gpu1__name="NVIDIA GeForce RTX 4090",
        gpu1__capability="8.9",
    )
    need = Resources(gpus=1, vram_mb=1000)
    async with run_stub_monitor(nvml) as watch:
        capacity = PlacementCapacity(watch.snapshot(), {uuid: GpuHealth(uuid) for uuid in map(gpu_uuid, range(2))})
    assert place(capacity, need, required=GpuRequirement(("rtx 4090",))) == Placed((gpu_uuid(1),))
    assert place(capacity, need, required=GpuRequirement(("T4", "RTX 4090"), "8.0")) == Placed((gpu_uuid(1),))
    assert place(capacity, need, required=GpuRequirement(("T4",))) == Placed((gpu_uuid(0),))
    lacking = place(capacity, need, required=GpuRequirement(("T4",), "8.0"))
    assert lacking == Unplaceable(
        WaitReason.REQUIREMENT_UNMET,
        "a GPU (T4, compute capability 8.0 or higher) (it has Tesla T4, 7.5; NVIDIA GeForce RTX 4090, 8.9)",
    )
