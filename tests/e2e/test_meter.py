"""What a job used of its GPU, from NVML's counters to `usage` in the API: real processes on the stub library."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from lamplighter import api
from runner.engines.process import ProcessEngine
from schemas.job_view import JobView
from tests.e2e.conftest import process_only
from tests.runner.gpu.stub_nvml import StubNvml
from tests.support.installation import IMAGES, RunningInstallation
from tests.support.wait import wait_for

pytestmark = process_only

SECONDS = 5.0  # of a job: enough for a few readings, one a second
VRAM_MB = 3072
STEP_S, STEP_MJ = 0.1, 20_000  # 200 W
PER_HOUR, PER_KWH = 3.6, 1000.0
PRICED = {"LAMPLIGHTER_GPU__PRICE__PER_HOUR": str(PER_HOUR), "LAMPLIGHTER_GPU__PRICE__PER_KWH": str(PER_KWH)}
SHARED = {"LAMPLIGHTER_SLOTS": "2", "LAMPLIGHTER_GPU__PLACEMENT__CONTAINERS_PER_GPU": "2"}


@pytest.fixture
def endpoint(tmp_path: Path) -> Path:
    """Write an endpoint that runs echo on a GPU."""
    folder = tmp_path / "gpu-echo"
    shutil.copytree(IMAGES / "echo", folder)
    settings = folder / "endpoint.toml"
    text = settings.read_text().replace('name = "echo"', 'name = "gpu-echo"').replace("warm = true", "")
    settings.write_text(text.replace("[resources]", "[resources]\ngpus = 1\nvram_mb = 4000"))
    return folder


@pytest.fixture
def nvml(tmp_path: Path) -> StubNvml:
    folder = tmp_path / "nvml"
    folder.mkdir()
    return StubNvml(folder, gpu0__utilization=50)


@asynccontextmanager
async def raise_energy_counter(nvml: StubNvml) -> AsyncIterator[None]:
    """Let the GPU's energy counter rise while the block runs."""

    async def draw() -> None:
        counted = 1_000_000
        while True:
            counted += STEP_MJ
            nvml.set(gpu0__energy_mj=counted)
            await anyio.sleep(STEP_S)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(draw)
        yield
        tasks.cancel_scope.cancel()


async def start_gpu_runner(running: RunningInstallation, endpoint: Path, nvml: StubNvml, **more: str) -> None:
    """Start a runner that sees the stub GPUs; wait until its endpoint is offered."""
    env = {name: nvml.env[name] for name in ("LD_LIBRARY_PATH", "NVIDIA_STUB_STATE")}
    watched = {"LAMPLIGHTER_GPU__WATCH": "1", "LAMPLIGHTER_PACE__PRESENCE_S": "0.5"}
    await running.installation.start_runner(endpoints=[endpoint], **env, **watched, **PRICED, **more)

    async def offered() -> bool:
        row = await running.bus.heartbeats.get("gpu-1")
        known = {one["name"] for one in (await running.ann.call(api.get_json("/v1/endpoints")))["endpoints"]}
        return row is not None and not row.value.unschedulable and bool(row.value.gpus) and "gpu-echo" in known

    await wait_for(offered)


async def run_jobs(running: RunningInstallation, nvml: StubNvml, count: int) -> list[JobView]:
    """Run `count` jobs at once, each with VRAM_MB of the GPU's memory; return them as they ended."""
    jobs = [await running.ann.submit("gpu-echo", seconds=SECONDS) for _ in range(count)]
    async with running.installation.engine_of("gpu-1") as engine:
        assert isinstance(engine, ProcessEngine)
        pids: list[int] = []

        async def there() -> bool:
            found = await engine.find(running.installation.name, "gpu-1")
            pids[:] = [pid for one in found if one.state == "running" and (pid := await engine.pid(one.handle))]
            return len(pids) == count

        await wait_for(there)
    held = ",".join(f"{pid}:{VRAM_MB << 20}" for pid in pids)
    nvml.set(gpu0__compute=held, gpu0__used_mb=count * VRAM_MB)
    ended = [await running.ann.wait(job.id) for job in jobs]
    nvml.set(gpu0__compute=None, gpu0__used_mb=0)
    return ended


async def test_a_job_is_billed_for_what_it_took_of_its_gpu(
    running: RunningInstallation, endpoint: Path, nvml: StubNvml
):
    async with raise_energy_counter(nvml):
        await start_gpu_runner(running, endpoint, nvml)
        (job,) = await run_jobs(running, nvml, 1)
    took = job.usage
    assert job.status == "succeeded"
    assert (took.vram_peak_mb, took.gpu_utilization) == (VRAM_MB, 50)
    assert took.run_s is not None
    assert SECONDS <= took.run_s < SECONDS + 5
    assert took.queued_s is not None
    assert took.gpu_energy_j is not None
    assert took.gpu_energy_j % (STEP_MJ / 1000) == 0
    watts = took.gpu_energy_j / took.run_s
    assert 0.2 < watts / (STEP_MJ / 1000 / STEP_S) <= 1.2  # on a loaded machine the counter rises more slowly
    rent, power = PER_HOUR * took.run_s / 3600, PER_KWH * took.gpu_energy_j / 3_600_000
    assert took.cost == pytest.approx(rent + power, rel=0.2)
    assert (await running.ann.job(job.id)).usage == took


async def test_energy_that_two_jobs_took_together_is_nobodys(
    running: RunningInstallation, endpoint: Path, nvml: StubNvml
):
    """Each job reports its own memory. Energy cannot be divided, so neither reports energy or cost."""
    async with raise_energy_counter(nvml):
        await start_gpu_runner(running, endpoint, nvml, **SHARED)
        jobs = await run_jobs(running, nvml, 2)
    for job in jobs:
        assert (job.status, job.usage.gpu_energy_j, job.usage.cost) == ("succeeded", None, None)
        assert (job.usage.vram_peak_mb, job.usage.gpu_utilization) == (VRAM_MB, 50)
        assert job.usage.run_s is not None
