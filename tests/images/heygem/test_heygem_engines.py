"""One job by each engine as the runner starts it: a container hardened as always, and a process on the box itself."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import ContainerEngine, ContainerIdentity, ContainerLimits, ContainerSpec
from runner.engines.process import ProcessEngine
from schemas.container_protocol import LineParser, ProgressLine
from tests.images.heygem.stand_in_images import (
    LIBRARIES,
    MADE,
    OF_A_DRIVER,
    OF_CUDA,
    OURS,
    SMALL,
    commands,
    ours,
    vendors_image,
    with_pyav,
)
from tests.images.heygem.worker_runs import STAND_IN_VENDORS, WorkerSamples, copy_vendor, job_folder
from tests.images.job_process import IMAGES
from tests.support.docker_images import ROOT, docker_url, run_docker

__all__ = ["docker_url", "with_pyav"]


@pytest.fixture(scope="module", params=STAND_IN_VENDORS)
def image(docker_url: str, with_pyav: str, request: pytest.FixtureRequest) -> str:
    tag = f"{OURS}:{request.param}"
    done = ours(docker_url, vendors_image(docker_url, with_pyav, request.param), tag)
    assert done.returncode == 0, done.stderr
    return tag


def test_four_commands_build_and_apply_it() -> None:
    assert [command.split()[0] for command in commands()] == ["docker", "BASE=$(docker", "docker", "lamplighter"]


@asynccontextmanager
async def running(
    engine: AbstractAsyncContextManager[ContainerEngine], spec: ContainerSpec
) -> AsyncIterator[tuple[ContainerEngine, str]]:
    async with engine as there:
        handle = await there.start(spec)
        try:
            yield there, handle
        finally:
            await there.remove(handle)


async def follow(
    engine: AbstractAsyncContextManager[ContainerEngine], spec: ContainerSpec
) -> tuple[int, list[object], str]:
    """Exit code, messages and log of one job."""
    parser, log = LineParser("stdout"), b""
    said: list[object] = []
    async with running(engine, spec) as (there, handle):
        async for chunk in there.output(handle, None):
            if chunk.stream == "stdout":
                said += [found.message for found in parser.feed(chunk.data, chunk.cursor.offset - len(chunk.data))]
            else:
                log += chunk.data
        return (await there.wait(handle)).code, said, log.decode()


def spec(folder: Path, samples: WorkerSamples, image: str, **env: str) -> ContainerSpec:
    """The job in `folder`; the video that will be "made" lies among its inputs, where a container can read it."""
    job_folder(folder, samples)
    (folder / "in" / MADE).write_bytes(samples.made.read_bytes())
    return ContainerSpec(
        identity=ContainerIdentity(installation="test", host="h", owner="ann", job="j", round=1, attempt=1),
        image=image,
        folder=str(IMAGES / "heygem"),
        command=("python3", "main.py"),
        job_dir=folder,
        limits=ContainerLimits(memory_mb=768, cpus=2.0),
        env=env,
    )


@pytest.mark.docker
async def test_a_container_makes_a_video(tmp_path: Path, samples: WorkerSamples, docker_url: str, image: str) -> None:
    """Read-only root, no network, no rights, not root: the vendor writes to /code all the same, into the job's tmp/."""
    engine = DockerEngine(DockerSettings(base_url=docker_url))
    code, said, log = await follow(engine, spec(tmp_path, samples, image))
    assert code == 0, log
    private = tmp_path / "tmp" / "heygem"
    assert "Options" in (private / "landmark2face_wy" / "checkpoints" / "test" / "opt.txt").read_text()
    assert (private / "cache_trt" / "played.engine").exists()
    assert (tmp_path / "out" / "result.mp4").read_bytes() == samples.made.read_bytes()
    assert [line for line in said if isinstance(line, ProgressLine)][-1].stage == "check"


def inside(docker_url: str, image: str, command: str) -> str:
    """What a command prints in a container of the image."""
    done = run_docker(docker_url, "run", "--rm", "--network", "none", image, "sh", "-c", command)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.docker
def test_the_drivers_libraries_are_left_to_the_host(docker_url: str, image: str) -> None:
    """Those in the vendor's image are of the machine on which it was made; CUDA's own stay."""
    found = inside(docker_url, image, f"cd {LIBRARIES}; ls -1; ls /usr/lib").split()
    assert not {"wsl", *OF_A_DRIVER} & {*found}
    assert {*OF_CUDA} <= {*found}


@pytest.mark.docker
def test_each_process_has_as_many_threads_as_the_job_has_cpus(docker_url: str, image: str) -> None:
    said = inside(docker_url, image, "env").splitlines()
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
        assert f"{name}_NUM_THREADS=4" in said


@pytest.mark.docker
def test_another_face_detector_takes_the_place_of_the_small_one(docker_url: str, with_pyav: str) -> None:
    """As the README of the published run.py says: under the name of the small one."""
    base, tag = vendors_image(docker_url, with_pyav, "gen1"), f"{OURS}:detector"
    large = "/code/face_detect_utils/resources/large.onnx"
    done = ours(docker_url, base, tag, f"--build-arg DETECTOR={large}")
    assert done.returncode == 0, done.stderr
    assert inside(docker_url, tag, f"cat /code/face_detect_utils/resources/{SMALL}") == "large\n"
    refused = ours(docker_url, base, f"{tag}-gone", "--build-arg DETECTOR=/code/gone.onnx")
    assert refused.returncode != 0
    assert "DETECTOR=/code/gone.onnx is not a file in BASE" in refused.stdout + refused.stderr


@pytest.mark.docker
def test_no_base_is_chosen_for_the_user(docker_url: str) -> None:
    dockerfile = IMAGES / "heygem" / "Dockerfile"
    refused = run_docker(docker_url, "build", "--quiet", "--file", str(dockerfile), str(IMAGES))
    assert refused.returncode != 0
    assert "base name" in refused.stderr


@pytest.mark.parametrize("vendor", STAND_IN_VENDORS)
async def test_a_process_on_the_vendors_own_box_makes_a_video(
    tmp_path: Path, samples: WorkerSamples, vendor: str
) -> None:
    """Nothing of its image was changed: its code is only read."""
    folder, home = tmp_path / "job", copy_vendor(vendor, tmp_path / "code")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    env = {"HEYGEM_HOME": str(home), "HEYGEM_FAKE_RESULT": str(folder / "in" / MADE)}
    engine = ProcessEngine(tmp_path / "state", ROOT / "images" / "jobkit")
    code, _, log = await follow(engine, spec(folder, samples, "", **env))
    assert code == 0, log
    assert (folder / "out" / "result.mp4").read_bytes() == samples.made.read_bytes()
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
