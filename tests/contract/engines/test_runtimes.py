"""Runtimes that endpoints ask for, on a real engine: a script that starts runc is registered under the name runsc."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import ContainerIdentity, ContainerLimits, ContainerSpec, StartFailed
from schemas.endpoint_parts import EngineRuntime
from tests.support.docker_engine import OwnDockerEngine, run_docker_engine, why_no_engine
from tests.support.docker_images import ECHO_IMAGE
from tests.support.requirements import require

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180), pytest.mark.long(12)]


@pytest.fixture
def engine_with_runsc(tmp_path: Path, echo_image: str) -> Iterator[OwnDockerEngine]:
    """An engine whose runsc writes down each call and passes it to runc."""
    require(why_no_engine(), "REQUIRE_DOCKER")
    script = tmp_path / "runsc"
    script.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\nexec {shutil.which("runc")} "$@"\n')
    script.chmod(0o755)
    config = json.dumps({"runtimes": {"runsc": {"path": str(script)}}})
    with run_docker_engine(live_restore=True, images=[ECHO_IMAGE], config=config) as engine:
        yield engine


async def test_a_container_runs_by_the_runtime_that_its_endpoint_asks_for(
    engine_with_runsc: OwnDockerEngine, tmp_path: Path
) -> None:
    def spec(job: str, **changes: object) -> ContainerSpec:
        (tmp_path / job / "job").mkdir(parents=True)
        return ContainerSpec(
            identity=ContainerIdentity(installation="i", host="h", owner="ann", job=job),
            image=ECHO_IMAGE,
            job_dir=tmp_path / job / "job",
            entrypoint_override=("python3", "-c", "print('hello')"),
            limits=ContainerLimits(128, 1.0),
            **changes,
        )

    calls = tmp_path / "calls"
    async with DockerEngine(DockerSettings(base_url=engine_with_runsc.url)) as engine:
        info = await engine.probe()
        assert info.isolation == "runc"
        assert info.runtimes == (EngineRuntime("runc", "runc"), EngineRuntime("runsc", "runsc", has_gpu_support=False))
        plain = await engine.start(spec("plain"))
        assert (await engine.wait(plain)).code == 0
        assert not calls.exists()
        handle = await engine.start(spec("isolated", runtime="runsc"))
        assert (await engine.wait(handle)).code == 0
        assert f"start {handle}" in calls.read_text()
        assert (await engine.inspect(handle))["HostConfig"]["Runtime"] == "runsc"
        with pytest.raises(StartFailed, match="Docker has no runtime kata"):
            await engine.start(spec("missing", runtime="kata"))
