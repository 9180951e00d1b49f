"""GPUs that a scheduler assigned: what each form of the variables means, and that the runner counts no other GPU."""

from pathlib import Path

import anyio
import pytest

from lamplighter.cli.doctor import CheckStatus
from lamplighter.cli.machine_checks import check_local_gpus
from runner.gpu.monitor import AssignedGpus, AssignmentInvalid, GpuAssignment, open_gpu_monitor, read_assignment
from runner.gpu.placement import PlacementCapacity, Unplaceable, place
from schemas.endpoint import Resources
from schemas.gpu import GpuMonitorState
from schemas.job import WaitReason
from tests.runner.gpu.stub_monitor import run_stub_monitor, wait_for_snapshot
from tests.runner.gpu.stub_nvml import StubNvml, gpu_uuid, slice_uuid
from tests.support.gpu_samples import make_sample

IN_SLURM = {"SLURM_JOB_ID": "7"}
GPUS = range(4)


@pytest.mark.parametrize(
    ("environ", "names", "counts_machine"),
    [
        ({"CUDA_VISIBLE_DEVICES": "1,3"}, ("1", "3"), False),
        ({"CUDA_VISIBLE_DEVICES": f"{gpu_uuid(1)}, GPU-8932f937"}, (gpu_uuid(1), "GPU-8932f937"), False),
        ({"CUDA_VISIBLE_DEVICES": slice_uuid(0, 1)}, (slice_uuid(0, 1),), False),
        ({"CUDA_VISIBLE_DEVICES": "MIG-GPU-8932f937-d72c/1/0"}, ("MIG-GPU-8932f937-d72c/1/0",), False),
        ({"CUDA_VISIBLE_DEVICES": ""}, (), False),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, (), False),
        ({"GPU_DEVICE_ORDINAL": "0"}, ("0",), False),
        ({"SLURM_JOB_GPUS": "2,3"}, ("2", "3"), True),
        ({"SLURM_JOB_GPUS": "2,3", "CUDA_VISIBLE_DEVICES": "0,1"}, ("0", "1"), False),
        ({"NVIDIA_VISIBLE_DEVICES": gpu_uuid(2)}, (gpu_uuid(2),), True),
        ({"NVIDIA_VISIBLE_DEVICES": "0:1"}, ("0:1",), True),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, (), True),
        (IN_SLURM, (), False),
    ],
)
def test_the_variables_name_gpus(environ: dict[str, str], names: tuple[str, ...], counts_machine: bool) -> None:
    found = read_assignment("auto", environ)
    assert found is not None
    assert found.names == names
    assert not names or found.counts_machine is counts_machine
    assert read_assignment("all", environ) is None


UNRESTRICTED = ("all", "void", "", "/var/run/nvidia-container-devices", "k8s.device-plugin.nvidia.com/gpu=GPU-1")


@pytest.mark.parametrize("environ", [{}, *({"NVIDIA_VISIBLE_DEVICES": value} for value in UNRESTRICTED)])
def test_without_a_variable_or_with_devices_that_are_confined_all_are_used(environ: dict[str, str]) -> None:
    assert read_assignment("auto", environ) is None


@pytest.mark.parametrize(
    ("environ", "models", "is_in_doubt"),
    [
        ({"CUDA_VISIBLE_DEVICES": "1"}, ("A100", "T4"), True),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ("T4", "T4"), False),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1"}, ("A100", "T4"), False),
        ({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ("A100", "T4"), False),
        ({"CUDA_VISIBLE_DEVICES": "1", **IN_SLURM}, ("A100", "T4"), False),
        ({"SLURM_JOB_GPUS": "1"}, ("A100", "T4"), False),
    ],
)
def test_a_number_that_cuda_may_count_otherwise_is_in_doubt(
    environ: dict[str, str], models: tuple[str, ...], is_in_doubt: bool
) -> None:
    assignment = read_assignment("auto", environ)
    assert assignment is not None
    assigned = AssignedGpus(assignment)
    assigned.select([make_sample(index, name=model) for index, model in enumerate(models)], [])
    assert (assigned.doubt is not None) is is_in_doubt
    assert assigned.doubt is None or "set CUDA_DEVICE_ORDER=PCI_BUS_ID" in assigned.doubt


def test_a_text_that_names_no_gpu_is_refused() -> None:
    with pytest.raises(AssignmentInvalid, match=r'^CUDA_VISIBLE_DEVICES=0,rtx: "rtx" is not a GPU: give numbers'):
        read_assignment("auto", {"CUDA_VISIBLE_DEVICES": "0,rtx"})
    assert read_assignment("0,2", {"CUDA_VISIBLE_DEVICES": "1"}) == GpuAssignment("gpu.visible=0,2", ("0", "2"))


@pytest.mark.parametrize(
    ("assignment", "shown", "assigned"),
    [
        (GpuAssignment("V=1,3", ("1", "3")), {1, 3}, "2 of 4 (V=1,3)"),
        (GpuAssignment("V=u", (gpu_uuid(0), gpu_uuid(2)[:36])), {0}, "1 of 4 (V=u)"),
        (GpuAssignment("V=u", (gpu_uuid(3), gpu_uuid(2))), {2, 3}, "2 of 4 (V=u)"),
        (GpuAssignment("V=4,5,6,7", tuple("4567"), counts_machine=True), {0, 1, 2, 3}, "4 of 4 (V=4,5,6,7)"),
    ],
)
async def test_only_assigned_gpus_are_shown(
    tmp_path: Path, assignment: GpuAssignment, shown: set[int], assigned: str
) -> None:
    nvml = StubNvml(tmp_path, count=len(GPUS))
    async with run_stub_monitor(nvml, assignment=assignment) as watch:
        snapshot = watch.snapshot()
        assert [sample.uuid for sample in snapshot.samples] == [gpu_uuid(index) for index in sorted(shown)]
        assert snapshot.assigned == assigned


async def test_a_slice_is_assigned_by_its_uuid_and_a_sliced_gpu_by_its_number(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path, count=2, gpu0__mig=1, gpu0__slices=2)
    for name, shown in ((slice_uuid(0, 1), [1]), ("0", [0, 1]), ("0:1", [1])):
        async with run_stub_monitor(nvml, assignment=GpuAssignment("V", (name,))) as watch:
            assert [sample.uuid for sample in watch.snapshot().samples] == [slice_uuid(0, part) for part in shown]


async def test_an_unknown_gpu_is_named_and_counts_as_lost(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path, count=2)
    async with run_stub_monitor(nvml, assignment=GpuAssignment("CUDA_VISIBLE_DEVICES=1,7", ("1", "7"))) as watch:
        snapshot = watch.snapshot()
    assert [sample.uuid for sample in snapshot.samples] == [gpu_uuid(1)]
    (lost,) = snapshot.lost
    listed = f"0 ({gpu_uuid(0)}), 1 ({gpu_uuid(1)})"
    assert snapshot.assigned_wrongly == lost.why
    assert lost.why == f"CUDA_VISIBLE_DEVICES=1,7: there is no GPU 7; this machine has {listed}"


async def test_a_number_keeps_its_gpu_and_errors_of_others_are_not_told(tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path, count=2)
    async with run_stub_monitor(nvml, assignment=GpuAssignment("V=1", ("1",))) as watch:
        with watch.events() as events, anyio.fail_after(10):
            nvml.xid(0, 79)
            nvml.xid(1, 94)
            assert (await events.receive()).uuid == gpu_uuid(1)
        nvml.set(gpu1__lost=1)
        snapshot = await wait_for_snapshot(watch, lambda now: bool(now.lost))
    assert snapshot.samples == ()
    assert [gpu.uuid for gpu in snapshot.lost] == [gpu_uuid(1)]
    assert not snapshot.assigned_wrongly


async def test_no_assigned_gpu_means_no_gpu_and_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    async with open_gpu_monitor() as watch:
        snapshot = watch.snapshot()
    assert (snapshot.state, snapshot.samples, snapshot.assigned) == (GpuMonitorState.NONE, (), "CUDA_VISIBLE_DEVICES=")
    refused = place(PlacementCapacity(snapshot, {}), Resources(gpus=1))
    assert isinstance(refused, Unplaceable)
    assert refused.reason is WaitReason.GPU_NONE


@pytest.mark.parametrize(
    ("value", "verdict", "what"),
    [
        ("3,0", CheckStatus.OK, "driver 595.10, GPUs for jobs: 2 of 4 (CUDA_VISIBLE_DEVICES=3,0)"),
        ("9", CheckStatus.FAIL, "CUDA_VISIBLE_DEVICES=9: there is no GPU 9; this machine has 0 ("),
        ("rtx", CheckStatus.FAIL, 'CUDA_VISIBLE_DEVICES=rtx: "rtx" is not a GPU'),
        ("", CheckStatus.WARN, "none: CUDA_VISIBLE_DEVICES="),
    ],
)
async def test_doctor_says_which_gpus_are_used_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, verdict: CheckStatus, what: str
) -> None:
    nvml = StubNvml(tmp_path, count=len(GPUS))
    for name in ("LD_LIBRARY_PATH", "NVIDIA_STUB_STATE"):
        monkeypatch.setenv(name, nvml.env[name])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    first, *_ = await check_local_gpus()
    assert first.verdict is verdict
    assert first.what.startswith(what)
