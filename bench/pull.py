"""Measure how fast the runner pulls an image beside `docker pull`, from a real registry on loopback.

The image has LAYERS layers of random bytes, which no compression makes smaller, so both download the same 2 GB. The
two take turns, each from an engine that has no layer of it. Needs about 8 GB of disk and Debian's docker-registry.
"""

import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from bench.figures import Figure
from bench.installation import docker_missing_figure
from runner.engines.docker import DockerEngine, DockerSettings
from schemas.endpoint_parts import parse_image_reference
from tests.support.docker_images import run_docker
from tests.support.image_registry import PROGRAM, run_registry

LAYERS, LAYER_MB = 4, 512
ROUNDS = 3
AIM = 1.05


def _build(docker_url: str, folder: Path, tag: str) -> None:
    folder.mkdir()
    lines = ["FROM scratch"]
    for layer in range(LAYERS):
        with (folder / f"weights-{layer}").open("wb") as file:
            for _ in range(LAYER_MB):
                file.write(os.urandom(1 << 20))
        lines.append(f"COPY weights-{layer} /")
    (folder / "Dockerfile").write_text("\n".join([*lines, 'CMD ["/none"]', ""]))
    done = run_docker(docker_url, "build", "--quiet", "--tag", tag, str(folder))
    if done.returncode:
        raise SystemExit(f"bench: the image cannot be built: {done.stderr.strip()}")
    shutil.rmtree(folder)


def _pull_by_docker(docker_url: str, reference: str) -> None:
    done = run_docker(docker_url, "pull", "--quiet", reference)
    if done.returncode:
        raise SystemExit(f"bench: docker pull: {done.stderr.strip()}")


async def _pull_by_runner(docker_url: str, reference: str) -> None:
    async with (
        DockerEngine(DockerSettings(base_url=docker_url)) as engine,
        aclosing(engine.images.pull(parse_image_reference(reference), None)) as progress,
    ):
        async for _ in progress:
            pass


async def _time(pull: Callable[[], Awaitable[None]], docker_url: str, reference: str) -> float:
    """Return the seconds of one pull, and remove the image."""
    began = time.perf_counter()
    await pull()
    took_s = time.perf_counter() - began
    await anyio.to_thread.run_sync(partial(run_docker, docker_url, "rmi", reference))
    return took_s


async def rows() -> AsyncIterator[Figure]:
    """Pull in turns, and compare the shortest times."""
    if left_out := docker_missing_figure("pull"):
        yield left_out
        return
    if shutil.which(PROGRAM) is None:
        yield Figure("pull", "registry", 0, "runs", note=f"skipped: {PROGRAM} is not installed")
        return
    docker_url = os.environ["DOCKER_HOST"]
    with tempfile.TemporaryDirectory() as scratch, run_registry(Path(scratch) / "registry") as registry:
        await anyio.to_thread.run_sync(_build, docker_url, Path(scratch) / "image", "lamplighter-bench-pull")
        reference = await anyio.to_thread.run_sync(registry.push, docker_url, "lamplighter-bench-pull", "big:1")
        by_docker = partial(anyio.to_thread.run_sync, _pull_by_docker, docker_url, reference)
        by_runner = partial(_pull_by_runner, docker_url, reference)
        docker_s, runner_s = [], []
        for _ in range(ROUNDS):
            docker_s.append(await _time(by_docker, docker_url, reference))
            runner_s.append(await _time(by_runner, docker_url, reference))
    note = f"{min(runner_s):.1f} and {min(docker_s):.1f} s, the shortest of {ROUNDS} each"
    size = f"{LAYERS * LAYER_MB / 1024:g} GB"
    yield Figure(
        "pull", f"{size} by the runner against docker pull", min(runner_s) / min(docker_s), "x", AIM, note=note
    )
