"""One job by each engine as the runner starts it: a container hardened as always, and a process on the box itself."""

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import Engine, Identity, Limits, Spec
from runner.engines.process import ProcessEngine
from schemas.container import LineParser, Progress
from tests.engine_host import BASE, ROOT, build, docker, docker_url
from tests.images.heygem.runs import PLAYED, VENDORS, Samples, job_folder, lay_out
from tests.images.job_process import IMAGES

__all__ = ["docker_url"]

BASE_OF_OURS = "lamplighter-test-heygem-base"
OURS = "lamplighter-test-heygem"
MADE = "made.mp4"
SMALL = "scrfd_500m_bnkps_shape640x640.onnx"

# What stands in for the vendor's image: our base with PyAV, which needs no other package, and the played vendor. Like
# the vendor's it has libraries of somebody's driver in it, and CUDA's beside them.
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
OF_A_DRIVER = ("libcuda.so", "libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1", "libnvcuvid.so.1")
OF_CUDA = ("libcudart.so.11.0", "libcudnn.so.8", "libnvrtc.so.11.2", "libcublas.so.11")
WITH_PYAV = f"FROM {BASE}\nCOPY packages /usr/lib/python3/dist-packages\n"
STANDS_IN = f"""
FROM {BASE_OF_OURS}
COPY base {{vendor}} /code/
ENV HEYGEM_FAKE=ok HEYGEM_FAKE_RESULT=/job/in/{MADE}
RUN cd {LIBRARIES} && touch {" ".join(OF_A_DRIVER)} {" ".join(OF_CUDA)} && mkdir -p /usr/lib/wsl/drivers
WORKDIR /code/face_detect_utils/resources
RUN echo small > {SMALL} && echo large > large.onnx
"""


@pytest.fixture(scope="module")
def with_pyav(docker_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pyav")
    wheel = importlib.metadata.distribution("av")
    for file in wheel.files or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = folder / "packages" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(wheel.locate_file(file)), target)
    (folder / "Dockerfile").write_text(WITH_PYAV)
    return build(docker_url, BASE_OF_OURS, str(folder))


def vendors_image(docker_url: str, with_pyav: str, vendor: str) -> str:
    """An image that plays the vendor's; its name."""
    given = STANDS_IN.format(vendor=vendor)
    return build(docker_url, f"{with_pyav}:{vendor}", "--file", "-", str(VENDORS), given=given)


def ours(docker_url: str, base: str, tag: str, *more: str) -> "subprocess.CompletedProcess[str]":
    """Build as a user builds it, by the README's command, on `base`."""
    command = next(line for line in commands() if line.startswith("docker build"))
    env = {"PATH": os.environ["PATH"], "DOCKER_HOST": docker_url, "DOCKER_BUILDKIT": "0", "BASE": base}
    here = command.replace("-t lamplighter-heygem ", f"-t {tag} {' '.join(more)} ")
    assert here != command
    return subprocess.run(["/bin/sh", "-c", here], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", params=PLAYED)
def image(docker_url: str, with_pyav: str, request: pytest.FixtureRequest) -> str:
    tag = f"{OURS}:{request.param}"
    done = ours(docker_url, vendors_image(docker_url, with_pyav, request.param), tag)
    assert done.returncode == 0, done.stderr
    return tag


def commands() -> list[str]:
    """The README's commands, to build and apply it."""
    return (IMAGES / "heygem" / "README.md").read_text().split("```sh\n")[1].split("```")[0].splitlines()


def test_four_commands_build_and_apply_it() -> None:
    assert [command.split()[0] for command in commands()] == ["docker", "BASE=$(docker", "docker", "lamplighter"]


@asynccontextmanager
async def running(engine: AbstractAsyncContextManager[Engine], spec: Spec) -> AsyncIterator[tuple[Engine, str]]:
    async with engine as there:
        handle = await there.start(spec)
        try:
            yield there, handle
        finally:
            await there.remove(handle)


async def follow(engine: AbstractAsyncContextManager[Engine], spec: Spec) -> tuple[int, list[object], str]:
    """Exit code, messages and log of one job."""
    parser, log = LineParser("stdout"), b""
    said: list[object] = []
    async with running(engine, spec) as (there, handle):
        async for chunk in there.output(handle, None):
            if chunk.stream == "stdout":
                said += [found.message for found in parser.feed(chunk.data, chunk.mark.offset - len(chunk.data))]
            else:
                log += chunk.data
        return (await there.wait(handle)).code, said, log.decode()


def spec(folder: Path, samples: Samples, image: str, **env: str) -> Spec:
    """The job in `folder`; the video that will be "made" lies among its inputs, where a container can read it."""
    job_folder(folder, samples)
    (folder / "in" / MADE).write_bytes(samples.made.read_bytes())
    return Spec(
        identity=Identity(installation="test", host="h", owner="ann", job="j", round=1, attempt=1),
        image=image,
        folder=str(IMAGES / "heygem"),
        command=("python3", "main.py"),
        job_dir=folder,
        limits=Limits(memory_mb=768, cpus=2.0),
        env=env,
    )


@pytest.mark.docker
async def test_a_container_makes_a_video(tmp_path: Path, samples: Samples, docker_url: str, image: str) -> None:
    """Read-only root, no network, no rights, not root: the vendor writes to /code all the same, into the job's tmp/."""
    engine = DockerEngine(DockerSettings(base_url=docker_url))
    code, said, log = await follow(engine, spec(tmp_path, samples, image))
    assert code == 0, log
    private = tmp_path / "tmp" / "heygem"
    assert "Options" in (private / "landmark2face_wy" / "checkpoints" / "test" / "opt.txt").read_text()
    assert (private / "cache_trt" / "played.engine").exists()
    assert (tmp_path / "out" / "result.mp4").read_bytes() == samples.made.read_bytes()
    assert [line for line in said if isinstance(line, Progress)][-1].stage == "check"


def inside(docker_url: str, image: str, command: str) -> str:
    """What a command prints in a container of the image."""
    done = docker(docker_url, "run", "--rm", "--network", "none", image, "sh", "-c", command)
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
    refused = docker(docker_url, "build", "--quiet", "--file", str(dockerfile), str(IMAGES))
    assert refused.returncode != 0
    assert "base name" in refused.stderr


@pytest.mark.parametrize("vendor", PLAYED)
async def test_a_process_on_the_vendors_own_box_makes_a_video(tmp_path: Path, samples: Samples, vendor: str) -> None:
    """Nothing of its image was changed: its code is only read."""
    folder, home = tmp_path / "job", lay_out(vendor, tmp_path / "code")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    env = {"HEYGEM_HOME": str(home), "HEYGEM_FAKE_RESULT": str(folder / "in" / MADE)}
    engine = ProcessEngine(tmp_path / "state", ROOT / "images" / "jobkit")
    code, _, log = await follow(engine, spec(folder, samples, "", **env))
    assert code == 0, log
    assert (folder / "out" / "result.mp4").read_bytes() == samples.made.read_bytes()
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
