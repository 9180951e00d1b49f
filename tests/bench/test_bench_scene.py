"""A bench whose job cannot start ends and says why: it never waits for ever."""

import sys
from pathlib import Path

import anyio
import pytest

from bench import installation as module
from bench import start
from bench.installation import IMAGE, build_echo_image, run_installation, wait_or_exit, wait_until_succeeded
from schemas.job import Status
from tests.support.docker_images import docker_url, run_docker
from tests.support.installation import IMAGES, ROOT
from tests.support.wait import wait_for

__all__ = ["docker_url"]

MISSING = (ROOT / "tests" / "e2e" / "endpoints" / "missing",)
NOWHERE = "unix:///nowhere/docker.sock"


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench gives up after 3 s, not after 20 s."""
    monkeypatch.setattr(module, "START_TIMEOUT_S", 3.0)


async def test_a_job_whose_image_is_nowhere_ends_the_bench_with_the_reason_and_what_to_do(brief: None) -> None:
    async with run_installation() as made:
        await made.installation.start_runner(endpoints=MISSING)
        job = await made.client.submit("missing")

        async def is_tried() -> bool:
            return await module._last_attempt_error(made, job.id) is not None

        await wait_for(is_tried, timeout_s=60)  # a runner may take longer to start than the bench waits here
        with pytest.raises(SystemExit, match=r"not run after 3 s \(image_missing: .*docs/images.md shows; gpu-1: "):
            await wait_until_succeeded(made, job.id)


async def test_a_runner_that_dies_ends_the_bench_with_its_last_words(brief: None) -> None:
    async with run_installation() as made:
        runner = await made.installation.start_runner(LAMPLIGHTER_ENGINE="no-such-engine")

        async def has_ended() -> bool:
            return "no-such-engine" in runner.log.read_text()

        await wait_for(has_ended, timeout_s=60)
        job = await made.client.submit("echo", text="hello")
        with pytest.raises(SystemExit, match=r"\((no_host|host_off): .*; gpu-1: .*no-such-engine"):
            await wait_until_succeeded(made, job.id)

        async def beats() -> bool:
            return False

        with pytest.raises(SystemExit, match=r"the heartbeat is not there after 3 s: .*no-such-engine"):
            await wait_or_exit(made, beats, "the heartbeat is")


async def test_a_job_that_starts_is_waited_for_however_long_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_installation() as made:
        await made.installation.start_runner(endpoints=(IMAGES / "echo",))
        await wait_until_succeeded(made, (await made.client.submit("echo", text="the runner is up")).id)
        monkeypatch.setattr(module, "START_TIMEOUT_S", 1.0)
        job = await made.client.submit("echo", seconds=2)
        assert (await wait_until_succeeded(made, job.id)).status is Status.SUCCEEDED


async def test_an_image_that_cannot_be_built_ends_the_bench_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    with pytest.raises(SystemExit, match=r"lamplighter-echo cannot be built: .*unset DOCKER_HOST"):
        async with run_installation("docker"):
            pass


async def test_the_verb_ends_with_1_and_says_why_on_stderr(tmp_path: Path) -> None:
    once = "import bench.start, runpy, sys; bench.start.RUNS = 1; sys.argv[1:] = ['start']"
    code = f"{once}; runpy.run_module('bench', run_name='__main__')"
    docker_program = tmp_path / "docker"
    docker_program.write_text("#!/bin/sh\necho 'no engine here' >&2\nexit 1\n")
    docker_program.chmod(0o755)
    environ = {"DOCKER_HOST": NOWHERE, "PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    with anyio.fail_after(60):
        done = await anyio.run_process([sys.executable, "-c", code], env=environ, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert b"lamplighter-echo cannot be built" in done.stderr, done.stderr
    assert b"Traceback" not in done.stderr
    assert b'"what": "202 \\u2192 first line, process engine"' in done.stdout


@pytest.mark.docker
async def test_the_image_is_built_where_it_was_not(docker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_url)
    run_docker(docker_url, "image", "rm", "--force", IMAGE)
    build_echo_image()
    async with run_installation("docker") as made:
        await made.installation.start_runner(endpoints=(IMAGES / "echo",))
        assert await start.first_line_s(made) > 0
