"""A monitor over real nvidia-ml-py on a stub library, with short intervals."""

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from runner.gpu.monitor import GpuAssignment, MonitorTiming, NvmlMonitor, nvml_spawner
from schemas.gpu import GpuSnapshot
from tests.runner.gpu.stub_nvml import StubNvml

DEADLINE_S = 60
QUICK = MonitorTiming(first_reading_timeout_s=30.0, reading_timeout_s=1.0, restart_backoff_s=0.05)


@asynccontextmanager
async def run_stub_monitor(
    nvml: StubNvml, timing: MonitorTiming = QUICK, renew_s: float = 60.0, assignment: GpuAssignment | None = None
) -> AsyncIterator[NvmlMonitor]:
    spawn = nvml_spawner(0.05, renew_s, nvml.env)
    watch = NvmlMonitor(spawn, clock=time.time, random=random.random, timing=timing, assignment=assignment)
    with anyio.fail_after(DEADLINE_S):
        async with watch:
            yield watch


async def wait_for_snapshot(watch: NvmlMonitor, holds: Callable[[GpuSnapshot], bool]) -> GpuSnapshot:
    snapshot = watch.snapshot()
    while not holds(snapshot):
        snapshot = await watch.wait_for_change(snapshot)
    return snapshot
