"""Adoption: what a killed runner started is found, followed from its cursor, and collected by the next one."""

import asyncio
import json
import os
import sys
from typing import Any

import pytest

from runner.engines.port import FoundContainer, OutputCursor
from tests.contract.engines.conftest import ENGINES
from tests.contract.engines.engine_rigs import DEADLINE_S, INSTALLATION, EngineRig, read_result, stream_text
from tests.support.docker_images import ROOT

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("host", ENGINES[1:], indirect=True)]


async def killed_after_three_steps(host: EngineRig, url: str, **given: Any) -> tuple[str, OutputCursor]:
    """Start a job in a process of its own and kill -9 that process; return the handle and the cursor it had reached."""
    runner = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.contract.engines.start_and_follow", host.kind, host.host, str(host.root),
        json.dumps(given), cwd=ROOT, env={**os.environ, "DOCKER_HOST": url}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert runner.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        handle, offset, position = (await runner.stdout.readline()).decode().split()
        runner.kill()
        await runner.wait()
    return handle, OutputCursor(int(offset), position)


@pytest.fixture
def url(host: EngineRig, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("docker_url")) if host.engine.name == "docker" else ""


async def test_a_running_job_is_adopted(host: EngineRig, url: str) -> None:
    handle, mark = await killed_after_three_steps(host, url, steps=12, seconds=3, text="kept")
    [found] = await host.engine.find(INSTALLATION, host.host)
    assert found == FoundContainer(handle, host.spec().identity, "running")
    rest = await host.read(handle, mark)
    ended = await host.engine.wait(handle)
    assert (ended.code, read_result(host.spec())) == (0, {"text": "kept"})
    steps = [int(line.split()[1]) for line in stream_text(rest, "stderr").splitlines() if line.startswith(b"step ")]
    assert steps == list(range(steps[0], 13))
    assert steps[0] <= 5  # it was killed somewhere behind step 3: none was lost
    offsets = [chunk.cursor.offset for chunk in rest]
    assert mark.offset < offsets[0]
    assert offsets == sorted(set(offsets))


async def test_a_job_that_ended_meanwhile_is_collected(host: EngineRig, url: str) -> None:
    handle, mark = await killed_after_three_steps(host, url, steps=6, seconds=0.6, behave="ok")
    async with asyncio.timeout(DEADLINE_S), host.another() as engine:
        ended = await engine.wait(handle)
        [found] = await engine.find(INSTALLATION, host.host)
        rest = [chunk async for chunk in engine.output(handle, mark)]
    assert (ended.code, found.state) == (0, "exited")
    assert stream_text(rest, "stderr").endswith(b"step 6 of 6\n")
    assert b"step 3" not in stream_text(rest, "stderr")


async def test_an_adopted_job_can_be_stopped(host: EngineRig, url: str) -> None:
    handle, _ = await killed_after_three_steps(host, url, steps=600, seconds=600 * 0.1)
    async with asyncio.timeout(DEADLINE_S):
        await host.engine.stop(handle, 10)
        assert (await host.engine.wait(handle)).code == 143
        await host.engine.remove(handle)
    assert await host.engine.find(INSTALLATION, host.host) == []
