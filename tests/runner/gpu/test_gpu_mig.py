"""A GPU in MIG mode counts as its slices: each with its own UUID and its own memory."""

from pathlib import Path

import anyio

from runner.gpu.placement import Placed, PlacementCapacity, place
from schemas.endpoint import Resources
from schemas.gpu import GpuHealth, GpuMonitorState, GpuProcess
from tests.runner.gpu.stub_monitor import run_stub_monitor, wait_for_snapshot
from tests.runner.gpu.stub_nvml import StubNvml, gpu_uuid, slice_uuid

SLICED = {"gpu0__mig": 1, "gpu0__slices": 2, "gpu0__temperature": 61, "gpu0__energy_mj": 5, "gpu0__power_mw": 200000}


async def test_slices_take_the_place_of_their_gpu(tmp_path: Path) -> None:
    """Check that memory and processes are the slice's own, that heat is the GPU's, and that power is left out."""
    own = {"gpu100__total_mb": 9856, "gpu100__used_mb": 100, "gpu101__total_mb": 4864, "gpu101__compute": "77:1048576"}
    nvml = StubNvml(tmp_path, count=2, **SLICED, **own, gpu100__name="NVIDIA A100 MIG 2g.10gb")
    async with run_stub_monitor(nvml) as watch:
        first, second, other = watch.snapshot().samples
    assert [first.uuid, second.uuid, other.uuid] == [slice_uuid(0, 0), slice_uuid(0, 1), gpu_uuid(1)]
    assert (first.name, first.index, second.index) == ("NVIDIA A100 MIG 2g.10gb", 0, 0)
    assert (first.memory_total_mb, first.memory_used_mb, second.memory_total_mb) == (9856, 100, 4864)
    assert (first.temperature_c, first.slowdown_c, second.temperature_c) == (61, 95, 61)
    assert (first.power_w, first.energy_mj, first.utilization) == (None, None, None)
    assert [process.pid for process in second.processes] == [77]
    assert first.processes == ()
    assert (other.power_w, other.processes) == (60, ())
    assert isinstance(second.processes[0], GpuProcess)


async def test_a_container_gets_a_slice_by_its_uuid(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path, **SLICED, gpu100__total_mb=4864, gpu101__total_mb=9856)
    async with run_stub_monitor(nvml) as watch:
        snapshot = watch.snapshot()
    fit = {sample.uuid: GpuHealth(sample.uuid) for sample in snapshot.samples}
    assert place(PlacementCapacity(snapshot, fit), Resources(gpus=1, vram_mb=8000)) == Placed((slice_uuid(0, 1),))


async def test_a_gpu_in_mig_mode_without_slices_is_listed_and_takes_no_work(tmp_path: Path) -> None:
    async with run_stub_monitor(StubNvml(tmp_path, gpu0__mig=1)) as watch:
        snapshot = watch.snapshot()
    (gpu,) = snapshot.lost
    assert (snapshot.state, snapshot.samples, gpu.uuid) == (GpuMonitorState.OK, (), gpu_uuid(0))
    assert "has no slice" in gpu.why


async def test_an_xid_marks_the_slice_it_names_or_all_of_the_gpu(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path, **SLICED)
    async with run_stub_monitor(nvml) as watch:
        with watch.events() as events, anyio.fail_after(10):
            nvml.xid(0, 94, instance=2)
            assert (await events.receive()).uuid == slice_uuid(0, 1)
            nvml.xid(0, 79)
            assert [(await events.receive()).uuid for _ in range(2)] == [slice_uuid(0, 0), slice_uuid(0, 1)]


async def test_slices_are_lost_with_their_gpu(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path, **SLICED)
    async with run_stub_monitor(nvml) as watch:
        nvml.set(gpu0__lost=1)
        lost = (await wait_for_snapshot(watch, lambda snapshot: len(snapshot.lost) == 2)).lost
    assert [gpu.uuid for gpu in lost] == [slice_uuid(0, 0), slice_uuid(0, 1)]
