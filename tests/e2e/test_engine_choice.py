"""A runner started while Docker is down waits for Docker, and never switches to another engine."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lamplighter import AsyncClient
from schemas.job import Status
from schemas.job_view import JobView
from tests.support.docker_engine import OwnDockerEngine, run_docker_engine, why_no_engine
from tests.support.docker_images import ECHO_IMAGE
from tests.support.installation import ROOT, run_new_installation
from tests.support.wait import wait_for

LAMPLIGHTER = [sys.executable, "-m", "lamplighter"]


@pytest.fixture(scope="module")
def own(echo_image: str) -> Iterator[OwnDockerEngine]:
    """Start a Docker engine that has echo's image and can be stopped."""
    if why := why_no_engine():
        pytest.skip(why)
    with run_docker_engine(live_restore=True, images=[ECHO_IMAGE]) as engine:
        yield engine


async def host(client: AsyncClient) -> dict[str, Any] | None:
    hosts = (await client._http.get("/v1/hosts")).json()["hosts"]
    return next((one for one in hosts if one["state"] == "online"), None)


async def told(client: AsyncClient, *, away: bool) -> dict[str, Any]:
    """Wait until the host reports that its engine is away, or that it answers."""

    async def says() -> dict[str, Any] | None:
        found = await host(client)
        return found if found and (found["engine_away"] is not None) == away else None

    found: dict[str, Any] = await wait_for(says, timeout_s=40)
    return found


async def waits_for(client: AsyncClient, job_id: str, reason: str) -> JobView:
    async def waiting() -> JobView | None:
        job = await client.job(job_id)
        return job if job.reason == reason else None

    job: JobView = await wait_for(waiting, timeout_s=40)
    return job


@pytest.mark.docker
@pytest.mark.timeout(240)
@pytest.mark.parametrize("asked", ["auto", "docker"])
async def test_a_runner_that_starts_before_docker_waits_for_it(
    tmp_path: Path, own: OwnDockerEngine, asked: str
) -> None:
    own.call("stop")
    async with run_new_installation(tmp_path, asked, None) as running:
        running.installation.docker_url = own.url
        await running.installation.start_runner(LAMPLIGHTER_ENGINE=asked, LAMPLIGHTER_DOCKER_SOCKET=own.url)
        seen = await told(running.admin, away=True)
        assert (seen["engine"], set(seen["unschedulable"].values())) == ("docker", {"engine_away"})
        job = await running.ann.submit("echo", text="patience")
        await waits_for(running.ann, job.id, "engine_away")
        own.call("start")
        done = await running.ann.wait(job.id)
        assert (done.status, done.engine, done.attempt) == (Status.SUCCEEDED, "docker", 1)

        async def echo_is_ready() -> dict[str, str] | None:
            left: dict[str, str] = (await told(running.admin, away=False))["unschedulable"]
            return None if "echo" in left else left

        left = await wait_for(echo_is_ready)  # the host looks at its images some time after the engine is back
        assert set(left.values()) == {"image_missing"}  # other tests' images are not here
        assert json.loads((tmp_path / "gpu-1" / "engine.json").read_text())["engine"] == "docker"
        print(running.installation.tail())  # noqa: T201


@pytest.mark.docker
@pytest.mark.timeout(240)
async def test_docker_that_goes_away_and_comes_back_costs_a_waiting_job_nothing(
    tmp_path: Path, own: OwnDockerEngine
) -> None:
    own.call("start")
    async with run_new_installation(tmp_path, "auto", None) as running:
        running.installation.docker_url = own.url
        runner = await running.installation.start_runner(LAMPLIGHTER_PACE__ENGINE_S="0.5")
        first = await running.ann.submit("echo", text="before", wait=True)

        async def cleared() -> bool:
            return not await running.installation.containers()

        await wait_for(cleared)
        own.call("stop")
        await told(running.admin, away=True)
        job = await running.ann.submit("echo", text="meanwhile")
        await waits_for(running.ann, job.id, "engine_away")
        await runner.kill()  # a runner restarted meanwhile does not switch either
        await running.installation.start_runner(LAMPLIGHTER_PACE__ENGINE_S="0.5")
        await told(running.admin, away=True)
        own.call("start")
        done = await running.ann.wait(job.id)
        assert (first.engine, done.engine, done.attempt) == ("docker", "docker", 1)
        assert (await running.ann.job(job.id)).status is Status.SUCCEEDED
        print(running.installation.tail())  # noqa: T201


def up(data: Path, environ: dict[str, str], *words: str) -> tuple[list[str], dict[str, Any]]:
    """Run `up`; return what it printed before it was ready, and the host that it then has."""
    argv = [*LAMPLIGHTER, "up", "--port", "0", "--data", str(data), "--endpoints", str(ROOT / "images" / "echo")]
    kept = {name: value for name, value in os.environ.items() if name != "DOCKER_HOST"}
    with subprocess.Popen([*argv, *words], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=kept | environ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Try: "):
                break
        try:
            listed = [*LAMPLIGHTER, "hosts", "--json", "--data", str(data)]
            hosts = subprocess.run(listed, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        finally:
            process.send_signal(signal.SIGTERM)
    return said, json.loads(hosts)[0]


def test_up_decides_once_and_says_what_runs_the_jobs(tmp_path: Path) -> None:
    bare = {"PATH": os.defpath if not Path("/usr/bin/docker").exists() else str(tmp_path)}
    if Path("/var/run/docker.sock").exists():
        pytest.skip("this machine has a Docker engine of its own: it is taken at a first start")
    said, first = up(tmp_path / "a", bare)
    assert (first["engine"], first["engine_away"]) == ("process", None)
    assert any("runs jobs as plain processes of the user" in line for line in said)
    _, later = up(tmp_path / "a", {"DOCKER_HOST": "unix:///nowhere.sock"})
    assert (later["engine"], later["run_as"]) == ("process", first["run_as"])


def test_up_waits_for_a_docker_that_is_there_and_does_not_answer(tmp_path: Path) -> None:
    away = {"DOCKER_HOST": "unix:///nowhere.sock"}
    said, seen = up(tmp_path / "a", away)
    assert (seen["engine"], seen["unschedulable"]) == ("docker", {"echo": "engine_away"})
    assert any("starts no jobs until docker answers" in line for line in said)
    said, seen = up(tmp_path / "a", away, "--engine", "process")
    assert (seen["engine"], seen["engine_away"]) == ("process", None)
    log = (tmp_path / "a" / "logs" / "runner.log").read_text()
    assert "asked for by name: engine = process; until now it was docker" in log
    _, seen = up(tmp_path / "a", away)
    assert seen["engine"] == "process"
