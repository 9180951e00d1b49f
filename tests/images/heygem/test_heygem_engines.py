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
from tests.images.heygem.runs import VENDORS, Samples, job_folder
from tests.images.job_process import IMAGES

__all__ = ["docker_url"]

BASE_OF_OURS = "lamplighter-test-heygem-base"
OURS = "lamplighter-test-heygem"
MADE = "made.mp4"

# What stands in for the vendor's image: our base with PyAV, which needs no other package, and the played vendor.
WITH_PYAV = f"FROM {BASE}\nCOPY packages /usr/lib/python3/dist-packages\n"
PLAYED = f"FROM {BASE_OF_OURS}\nCOPY . /code\nENV HEYGEM_FAKE=ok HEYGEM_FAKE_RESULT=/job/in/{MADE}\n"


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


@pytest.fixture(scope="module", params=["gen1", "gen2"])
def image(docker_url: str, with_pyav: str, request: pytest.FixtureRequest) -> str:
    """Built as a user builds it, by the README's command, on the image that plays the vendor's."""
    folder = str(VENDORS / request.param)
    base = build(docker_url, f"{with_pyav}:{request.param}", "--file", "-", folder, given=PLAYED)
    tag = f"{OURS}:{request.param}"
    command = next(line for line in commands() if line.startswith("docker build"))
    env = {"PATH": os.environ["PATH"], "DOCKER_HOST": docker_url, "DOCKER_BUILDKIT": "0", "BASE": base}
    here = command.replace("-t lamplighter-heygem ", f"-t {tag} ")
    assert here != command
    done = subprocess.run(["/bin/sh", "-c", here], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
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
    assert (tmp_path / "out" / "result.mp4").read_bytes() == samples.made.read_bytes()
    assert [line for line in said if isinstance(line, Progress)][-1].stage == "check"


@pytest.mark.docker
def test_no_base_is_chosen_for_the_user(docker_url: str) -> None:
    dockerfile = IMAGES / "heygem" / "Dockerfile"
    refused = docker(docker_url, "build", "--quiet", "--file", str(dockerfile), str(IMAGES))
    assert refused.returncode != 0
    assert "base name" in refused.stderr


@pytest.mark.parametrize("vendor", ["gen1", "unknown"])
async def test_a_process_on_the_vendors_own_box_makes_a_video(tmp_path: Path, samples: Samples, vendor: str) -> None:
    """Nothing of its image was changed: its code is only read."""
    folder = tmp_path / "job"
    env = {"HEYGEM_HOME": str(VENDORS / vendor), "HEYGEM_FAKE_RESULT": str(folder / "in" / MADE)}
    engine = ProcessEngine(tmp_path / "state", ROOT / "images" / "jobkit")
    code, _, log = await follow(engine, spec(folder, samples, "", **env))
    assert code == 0, log
    assert (folder / "out" / "result.mp4").read_bytes() == samples.made.read_bytes()
