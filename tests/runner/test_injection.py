"""Which way of giving cards to containers is chosen, over a fake engine with a toolkit of its own and over Docker."""

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.memory import Box, MemoryEngine
from runner.engines.port import Spec, StartFailed
from runner.engines.sandbox import Injection
from runner.gpu.memory import MemoryGpus
from runner.injection import choose
from runner.settings import GpuSettings
from schemas.gpu import GpuSample
from tests.engine_host import docker_url, echo_image
from tests.runner.warmed import kind
from tests.runner.world import World, well

__all__ = ["docker_url", "echo_image"]

CARD = GpuSample(index=0, uuid="GPU-0", name="c", memory_total_mb=24000, memory_used_mb=0, memory_free_mb=24000)


class Toolkit:
    """What `engine` knows of cards: only one way works."""

    def __init__(self, engine: MemoryEngine, works: Injection | None) -> None:
        self.way: Injection = "device_request"
        self.works = works
        self.start: Callable[[Spec], object] = engine.start
        engine.start = self._start  # type: ignore[method-assign]

    def inject(self, way: Injection) -> None:
        self.way = way

    async def _start(self, spec: Spec) -> str:
        if spec.gpus and self.way != self.works:
            raise StartFailed("gpu_unsupported", f"not by {self.way}")
        return await self.start(spec)  # type: ignore[misc, no-any-return]


async def lists(box: Box) -> int:
    box.write(b"GPU-0\n")
    return 0


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.programs = {"gpu": well, "nvidia-smi": lists}
    made.kinds = {"gpu": kind("gpu", tmp_path, gpus=1)}
    made.warm = replace(made.warm, on=False)
    made.gpus = MemoryGpus(CARD)
    return made


@pytest.mark.parametrize("works", ["cdi", "device_request", "runtime", None])
async def test_the_first_way_that_works_is_taken(world: World, works: Injection | None) -> None:
    async with world.life() as life:
        toolkit = Toolkit(life.engine, works)
        assert await choose(life.life, life.means, toolkit) == (works or "none")
        assert toolkit.way == (works or "runtime")
        assert world.boxes == {}
        assert list(life.life.jobs.iterdir()) == []


async def test_a_way_that_was_set_is_the_only_one_tried(world: World) -> None:
    world.gpu_settings = GpuSettings(injection="runtime")
    async with world.life() as life:
        assert await choose(life.life, life.means, Toolkit(life.engine, "cdi")) == "none"


async def test_without_cards_nothing_is_tried(world: World) -> None:
    world.gpus = MemoryGpus()
    async with world.life() as life:
        toolkit = Toolkit(life.engine, "cdi")
        assert await choose(life.life, life.means, toolkit) is None
        assert toolkit.way == "device_request"


@pytest.mark.docker
async def test_a_docker_without_a_toolkit_knows_none(world: World, docker_url: str, echo_image: str) -> None:
    gpu = kind("gpu", world.folder, gpus=1)
    world.kinds = {"gpu": replace(gpu, endpoint=replace(gpu.endpoint, image=echo_image))}
    async with world.life() as life, DockerEngine(DockerSettings(base_url=docker_url)) as docker:
        over = replace(life.life, engine=docker, installation="injection")
        assert await choose(over, life.means, docker) == "none"
        assert await docker.find("injection", over.host) == []
