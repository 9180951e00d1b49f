"""Comparison with nvidia-smi on a real GPU."""

import random
import subprocess
import time

import anyio
import pytest

from runner.gpu.monitor import NvmlMonitor, nvml_spawner
from schemas.gpu import GpuMonitorState, GpuSample

pytestmark = pytest.mark.gpu
QUERY = "index,uuid,name,driver_version,memory.total,memory.reserved,memory.used,memory.free,temperature.gpu,power.draw"


@pytest.fixture
def printed() -> list[list[str]]:
    """Return the lines of nvidia-smi."""
    argv = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    return [[value.strip() for value in line.split(",")] for line in lines]


async def test_our_readings_are_nvidia_smis(printed: list[list[str]]) -> None:
    with anyio.fail_after(60):
        async with NvmlMonitor(nvml_spawner(), clock=time.time, random=random.random) as watch:
            snapshot = watch.snapshot()
    assert snapshot.state is GpuMonitorState.OK, snapshot.why
    assert len(snapshot.samples) == len(printed)
    for line, sample in zip(printed, snapshot.samples, strict=True):
        assert line[:4] == [str(sample.index), sample.uuid, sample.name, snapshot.driver]
        _assert_near(line[4:], sample)
        print(f"nvidia-smi: {', '.join(line)}\nours: {sample}")  # noqa: T201 - docs/gpu.md keeps it


def _assert_near(line: list[str], sample: GpuSample) -> None:
    """Compare two readings that are a moment apart: memory may differ a little, heat and power more."""
    total, reserved, used, free, temperature, power = (float(value) for value in line)
    assert sample.memory_total_mb == total
    assert sample.memory_reserved_mb == pytest.approx(reserved, abs=64)
    assert sample.memory_used_mb == pytest.approx(used, abs=1024)
    assert sample.memory_free_mb == pytest.approx(free, abs=1024)
    assert sample.temperature_c == pytest.approx(temperature, abs=10)
    assert sample.power_w == pytest.approx(power, rel=1.0)
    assert sample.slowdown_c is None or 50 < sample.slowdown_c < 130
    assert sample.energy_mj is None or sample.energy_mj > 0
