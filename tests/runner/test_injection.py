"""Detection of the GPU injection mode, over a fake engine with a toolkit and over Docker."""

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import ContainerSpec, GpuInjection, StartFailed
from runner.gpu.allocator import GpuSettings
from runner.host.watches import detect_injection
from schemas.gpu import GpuSample
from tests.runner.warm_programs import warm_endpoint
from tests.support.docker_images import docker_url, echo_image
from tests.support.fake_engine import FakeContainer, FakeEngine
from tests.support.fake_gpus import FakeGpuMonitor
from tests.support.runner_environment import RunnerEnvironment, succeed

__all__ = ["docker_url", "echo_image"]

GPU = GpuSample(index=0, uuid="GPU-0", name="c", memory_total_mb=24000, memory_used_mb=0, memory_free_mb=24000)


class Toolkit:
    """GPU toolkit of `engine`: only one mode works."""

    def __init__(self, engine: FakeEngine, works: GpuInjection | None) -> None:
        self.way: GpuInjection = "device_request"
        self.works = works
        self.start: Callable[[ContainerSpec], object] = engine.start
        engine.start = self._start  # type: ignore[method-assign]
        engine.injection_modes = DockerEngine.injection_modes
        engine.set_injection = self.set_injection  # type: ignore[method-assign, assignment]

    def set_injection(self, way: GpuInjection) -> None:
        self.way = way

    async def _start(self, spec: ContainerSpec) -> str:
        if spec.gpus and self.way != self.works:
            raise StartFailed("gpu_unsupported", f"not by {self.way}")
        return await self.start(spec)  # type: ignore[misc]


async def lists(box: FakeContainer) -> int:
    box.write(b"GPU-0\n")
    return 0


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    made = RunnerEnvironment(tmp_path)
    made.programs = {"gpu": succeed, "nvidia-smi": lists}
    made.kinds = {"gpu": warm_endpoint("gpu", tmp_path, gpus=1)}
    made.warm = replace(made.warm, on=False)
    made.gpus = FakeGpuMonitor(GPU)
    return made


@pytest.mark.parametrize("works", ["cdi", "device_request", "runtime", None])
async def test_the_first_way_that_works_is_taken(world: RunnerEnvironment, works: GpuInjection | None) -> None:
    async with world.run_runner() as runner:
        toolkit = Toolkit(runner.engine, works)
        assert await detect_injection(runner.context, runner.host) == (works or "none")
        assert toolkit.way == (works or "runtime")
        assert world.boxes == {}
        assert list(runner.context.jobs_dir.iterdir()) == []


async def test_a_way_that_was_set_is_the_only_one_tried(world: RunnerEnvironment) -> None:
    world.gpu_settings = GpuSettings(injection="runtime")
    async with world.run_runner() as runner:
        Toolkit(runner.engine, "cdi")
        assert await detect_injection(runner.context, runner.host) == "none"


async def test_without_gpus_nothing_is_tried(world: RunnerEnvironment) -> None:
    world.gpus = FakeGpuMonitor()
    async with world.run_runner() as runner:
        toolkit = Toolkit(runner.engine, "cdi")
        assert await detect_injection(runner.context, runner.host) is None
        assert toolkit.way == "device_request"


async def test_an_engine_without_modes_is_not_tried(world: RunnerEnvironment) -> None:
    async with world.run_runner() as runner:
        assert await detect_injection(runner.context, runner.host) is None
        assert world.boxes == {}


@pytest.mark.docker
async def test_a_docker_without_a_toolkit_knows_none(
    world: RunnerEnvironment, docker_url: str, echo_image: str
) -> None:
    gpu = warm_endpoint("gpu", world.folder, gpus=1)
    world.kinds = {"gpu": replace(gpu, config=replace(gpu.config, image=echo_image))}
    async with world.run_runner() as runner, DockerEngine(DockerSettings(base_url=docker_url)) as docker:
        over = replace(runner.context, engine=docker, installation="injection")
        assert await detect_injection(over, runner.host) == "none"
        assert await docker.find("injection", over.host) == []
