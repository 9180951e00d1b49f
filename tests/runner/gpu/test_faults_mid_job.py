"""Driver faults while jobs run: real nvidia-ml-py on the stub, a whole runner above it, fake containers."""

import os
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from runner.engines.port import WARM_ENV, StartFailed
from runner.gpu.allocator import GpuProbeSettings, GpuSettings
from runner.gpu.health import GpuHealthPolicy
from schemas.container_protocol import ExitCode
from schemas.gpu import GpuMonitorState
from schemas.job import Status, WaitReason
from tests.runner.gpu.stub_monitor import run_stub_monitor
from tests.runner.gpu.stub_nvml import StubNvml, gpu_uuid
from tests.runner.gpu.test_gpu_faults import NEW_DRIVER
from tests.runner.warm_programs import wait_for_start_line, warm_endpoint
from tests.support.fake_engine import FakeContainer
from tests.support.runner_environment import RunnerEnvironment, write_outputs
from tests.support.wait import wait_for

HOST = "gpu-1"
QUICK = GpuHealthPolicy(owner_settle_s=0.1, owner_quiet_s=0.2)


class Gpu:
    """Program of the endpoint `gpu`: `pushed` lets the first job go on and exit with `code`; later ones succeed."""

    def __init__(self) -> None:
        self.started = anyio.Event()
        self.pushed = anyio.Event()
        self.code = 0
        self.unproved = False
        self.used: list[str] = []
        self.probes: list[str] = []

    async def __call__(self, box: FakeContainer) -> int:
        if box.spec.env.get(WARM_ENV) == "1":
            self.probes += box.spec.gpus
            if self.unproved:
                return ExitCode.GPU_UNUSABLE
            await wait_for_start_line(box)
        self.used += box.spec.gpus
        first = len(self.used) == 1
        self.started.set()
        if first:
            await self.pushed.wait()
        write_outputs(box)
        return self.code if first else 0


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def world(tmp_path: Path, gpu: Gpu) -> RunnerEnvironment:
    """Return an environment whose endpoint `gpu` needs 8 GB of a GPU. Without warm pools, a warm start is a probe."""
    made = RunnerEnvironment(tmp_path / "world")
    made.folder.mkdir()
    made.programs = {"gpu": gpu}
    made.kinds = {"gpu": warm_endpoint("gpu", tmp_path, gpus=1, vram_mb=8000)}
    made.gpu_settings = GpuSettings(fitness=QUICK, probe=GpuProbeSettings(patience_s=5.0, first_s=0.1, most_s=0.2))
    made.warm = replace(made.warm, on=False)
    return made


async def cannot(world: RunnerEnvironment, reason: WaitReason | None) -> None:
    """Wait until the host reports that the endpoint `gpu` cannot start for this reason, or that it can."""

    async def told() -> bool:
        row = await world.edge.heartbeats.get(HOST)
        return row is not None and row.value.unschedulable.get("gpu") == (reason and str(reason))

    await wait_for(told)


async def test_a_gpu_falls_off_the_bus_under_a_job(world: RunnerEnvironment, gpu: Gpu, tmp_path: Path) -> None:
    """Check XID 79: the job is released at no cost, and runs again after a successful probe."""
    nvml = StubNvml(tmp_path)
    gpu.code = 1
    async with run_stub_monitor(nvml) as watch:
        world.gpus = watch
        async with world.run_runner() as runner:
            key = await world.submit("gpu")
            await gpu.started.wait()
            (holding,) = runner.host.gpu_allocator._allocations
            nvml.xid(0, 79)

            async def heard() -> bool:
                return holding.xid == 79

            await wait_for(heard)
            gpu.pushed.set()
            job = await world.wait_until_ended(key)
    assert (job.status, job.attempt, job.charged_attempts, job.free_releases) == (
        Status.SUCCEEDED,
        2,
        0,
        {"gpu_lost": 1},
    )
    assert gpu.probes == [gpu_uuid(0)]


async def test_while_one_gpu_does_not_prove_itself_the_other_takes_the_job(
    world: RunnerEnvironment, gpu: Gpu, tmp_path: Path
) -> None:
    nvml = StubNvml(tmp_path, count=2)
    gpu.code, gpu.unproved = 1, True
    async with run_stub_monitor(nvml) as watch:
        world.gpus = watch
        async with world.run_runner() as runner:
            key = await world.submit("gpu")
            await gpu.started.wait()
            (struck,) = gpu.used
            nvml.xid(int(struck[-1]), 79)

            async def heard() -> bool:
                allocations = runner.host.gpu_allocator._allocations
                return bool(allocations) and allocations[0].xid == 79

            await wait_for(heard)
            gpu.pushed.set()
            job = await world.wait_until_ended(key)
    assert (job.status, job.free_releases) == (Status.SUCCEEDED, {"gpu_lost": 1})
    assert gpu.used == [struck, gpu_uuid(1 - int(struck[-1]))]


async def test_a_probe_that_fails_is_not_repeated_at_once(world: RunnerEnvironment, gpu: Gpu, tmp_path: Path) -> None:
    async with run_stub_monitor(StubNvml(tmp_path)) as watch:
        world.gpus = watch
        async with world.run_runner() as runner:
            await cannot(world, None)
            runner.engine.next_start_failure = StartFailed("gpu_unsupported", "no toolkit")
            runner.host.gpu_allocator.mark_faulty((gpu_uuid(0),), "the test said so")

            async def tried() -> bool:
                return "its probe failed: no toolkit" in (runner.host.gpu_allocator.reports()[0].reason or "")

            await wait_for(tried)
            assert gpu.probes == []
            await cannot(world, None)
    assert gpu.probes == [gpu_uuid(0)]


async def test_every_call_hangs_for_a_while(world: RunnerEnvironment, gpu: Gpu, tmp_path: Path) -> None:
    """Check that running jobs end, that waiting jobs see the reason, and that they start when the driver is back."""
    nvml = StubNvml(tmp_path)
    async with run_stub_monitor(nvml) as watch:
        world.gpus = watch
        async with world.run_runner():
            running = await world.submit("gpu")
            await gpu.started.wait()
            nvml.set(hang=1)
            await cannot(world, WaitReason.GPU_UNHEALTHY)
            assert watch.snapshot().state is GpuMonitorState.HUNG
            gpu.pushed.set()
            assert (await world.wait_until_ended(running)).status is Status.SUCCEEDED
            waiting = await world.submit("gpu", "j2")
            nvml.set(hang=0)
            assert (await world.wait_until_ended(waiting)).status is Status.SUCCEEDED
    assert gpu.probes == []


async def test_an_error_pends_and_is_reset(world: RunnerEnvironment, gpu: Gpu, tmp_path: Path) -> None:
    """Check that a probe changes nothing while the row is pending, and clears the fault after the reset."""
    nvml = StubNvml(tmp_path, gpu0__ecc=1)
    gpu.pushed.set()
    async with run_stub_monitor(nvml) as watch:
        world.gpus = watch
        async with world.run_runner():
            await cannot(world, None)
            nvml.set(gpu0__rows_pending=1)
            await cannot(world, WaitReason.GPU_UNHEALTHY)
            key = await world.submit("gpu")
            assert gpu.probes == []
            nvml.set(gpu0__rows_pending=0)
            assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
    assert gpu.probes == [gpu_uuid(0)]


async def test_the_owner_comes_and_goes(world: RunnerEnvironment, gpu: Gpu, tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path)
    gpu.pushed.set()
    async with run_stub_monitor(nvml) as watch:
        world.gpus = watch
        async with world.run_runner():
            await cannot(world, None)
            nvml.set(gpu0__compute=f"{os.getpid()}:1048576")
            await cannot(world, WaitReason.GPU_BUSY_OWNER)
            row = await world.edge.heartbeats.get(HOST)
            assert row is not None
            assert row.value.activity.programs == 1
            key = await world.submit("gpu")
            nvml.set(gpu0__compute=None)
            assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
    assert gpu.probes == []


async def test_memory_fills_up_and_empties(world: RunnerEnvironment, gpu: Gpu, tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path)
    gpu.pushed.set()
    async with run_stub_monitor(nvml) as watch:
        world.gpus = watch
        async with world.run_runner():
            await cannot(world, None)
            nvml.set(gpu0__used_mb=20000)
            await cannot(world, WaitReason.VRAM_SHORT)
            key = await world.submit("gpu")
            nvml.set(gpu0__used_mb=0)
            assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED


async def test_the_driver_is_upgraded_under_a_job(world: RunnerEnvironment, gpu: Gpu, tmp_path: Path) -> None:
    nvml = StubNvml(tmp_path)
    async with run_stub_monitor(nvml) as watch:
        world.gpus = watch
        async with world.run_runner():
            running = await world.submit("gpu")
            await gpu.started.wait()
            nvml.set(driver="600.20")
            await cannot(world, WaitReason.GPU_UNHEALTHY)
            gpu.pushed.set()
            assert (await world.wait_until_ended(running)).status is Status.SUCCEEDED
            waiting = await world.submit("gpu", "j2")
            nvml.install(NEW_DRIVER)
            assert (await world.wait_until_ended(waiting)).status is Status.SUCCEEDED
    assert watch.snapshot().driver == "600.20"
