"""Warm pools on the real engines: runners killed around a container that took a job, drained, and refilled."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import pytest

from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import NO_JOB, ContainerEngine, FoundContainer
from runner.engines.process import ProcessEngine
from schemas.events import LogMessage
from schemas.job import Status
from tests.runner.runner_processes import ROOT, RunnerProcesses, place
from tests.support.docker_images import docker_url, echo_image
from tests.support.wait import wait_for

__all__ = ["docker_url", "echo_image", "place"]

NAME = "warm-lives"


class Lives:
    """Runners on one engine, and a second view of that engine."""

    def __init__(
        self, place: RunnerProcesses, engine: Callable[[], AbstractAsyncContextManager[ContainerEngine]]
    ) -> None:
        self.place = place
        self._engine = engine

    async def there(self) -> list[FoundContainer]:
        async with self._engine() as engine:
            return await engine.find(NAME, "gpu-1")

    async def waiting(self, count: int = 1) -> list[FoundContainer]:
        """Wait until so many containers wait, loaded, and nothing else is there."""

        async def ready() -> bool:
            row = await self.place.bus.heartbeats.get("gpu-1")
            return row is not None and sum(one.ready for one in row.value.warm) == count

        await wait_for(ready, timeout_s=60)
        return await self.there()

    async def clear(self) -> None:
        async with self._engine() as engine:
            for found in await engine.find(NAME, "gpu-1"):
                await engine.remove(found.handle)

    def jobs(self) -> list[Path]:
        return list((self.place.folder / "runner" / "jobs").iterdir())


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
async def lives(request: pytest.FixtureRequest, place: RunnerProcesses) -> AsyncIterator[Lives]:
    place.environ |= {"LAMPLIGHTER_WARM__ON": "1", "LAMPLIGHTER_INSTALLATION": NAME}

    def processes() -> AbstractAsyncContextManager[ContainerEngine]:
        return ProcessEngine(place.folder / "runner" / "processes", ROOT / "images" / "jobkit")

    engine = processes
    if request.param == "docker":
        request.getfixturevalue("echo_image")
        url = request.getfixturevalue("docker_url")
        place.environ |= {"LAMPLIGHTER_ENGINE": "docker", "LAMPLIGHTER_DOCKER_SOCKET": url}

        def engine() -> AbstractAsyncContextManager[ContainerEngine]:
            return DockerEngine(DockerSettings(base_url=url))

    made = Lives(place, engine)
    yield made
    await made.clear()


async def test_killed_while_a_warm_container_works_it_is_adopted(lives: Lives) -> None:
    content = b"through a folder that was mounted before"
    sha256 = await lives.place.edge.add(content)
    async with lives.place.runner() as first:
        (warm,) = await lives.waiting()
        assert warm.identity.job == NO_JOB
        key = await lives.place.submit(file=f"sha256:{sha256}", text="hello", seconds=3, steps=30)
        await lives.place.wait_for_progress(key, 3)
        first.send_signal(signal.SIGKILL)
        await first.wait()
    assert warm.handle in {found.handle for found in await lives.there()}
    async with lives.place.runner() as second:
        job = await lives.place.wait_until_ended(key)
        second.send_signal(signal.SIGTERM)
        with anyio.fail_after(30):
            assert await second.wait() == 0
    assert (job.status, job.attempt, job.free_releases) == (Status.SUCCEEDED, 1, {})
    assert job.output is not None
    assert [file.sha256 for file in job.output.files] == [sha256]
    types = [type(entry.record.event).__name__ for entry in await lives.place.bus.job_store.history(key)]
    assert types == ["Submitted", "Started", "Adopted", "Succeeded"]
    assert await lives.there() == []
    assert lives.jobs() == []


async def test_killed_while_it_waits_the_next_life_starts_its_own(lives: Lives) -> None:
    async with lives.place.runner() as first:
        (old,) = await lives.waiting()
        first.send_signal(signal.SIGKILL)
        await first.wait()
    async with lives.place.runner():

        async def fresh() -> bool:
            there = await lives.there()
            return len(there) == 1 and there[0].handle != old.handle

        await wait_for(fresh, timeout_s=60)
        assert len(lives.jobs()) == 1


async def test_a_drain_leaves_nothing_that_waits(lives: Lives) -> None:
    async with lives.place.runner() as first:
        await lives.waiting()
        first.send_signal(signal.SIGTERM)
        with anyio.fail_after(30):
            assert await first.wait() == 0
    assert await lives.there() == []
    assert lives.jobs() == []


async def test_a_running_warm_job_is_cancelled_and_the_next_one_waits(lives: Lives) -> None:
    async with lives.place.runner():
        (first,) = await lives.waiting()
        key = await lives.place.submit(seconds=600, steps=6000)
        await lives.place.wait_for_progress(key, 1)
        await lives.place.cancel(key)
        assert (await lives.place.wait_until_ended(key)).status is Status.CANCELLED

        async def replaced() -> bool:
            handles = [found.handle for found in await lives.there()]
            return len(handles) == 1 and first.handle not in handles

        await wait_for(replaced, timeout_s=60)


@pytest.fixture
def reused(lives: Lives) -> Lives:
    """Runners whose echo reuses its containers."""
    folder = lives.place.folder / "reused"
    folder.mkdir()
    config = (ROOT / "images" / "echo" / "endpoint.toml").read_text()
    (folder / "endpoint.toml").write_text(f"{config}\n[reuse]\njobs = 10\n")
    (folder / "main.py").write_text((ROOT / "images" / "echo" / "main.py").read_text())
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    lives.place.environ["LAMPLIGHTER_ENDPOINTS"] = f'["{folder}"]'
    return lives


async def test_jobs_share_a_container_and_one_is_adopted_in_it(reused: Lives) -> None:
    place = reused.place
    sha256 = await place.edge.add(b"an input of the third job")
    async with place.runner() as first:
        (warm,) = await reused.waiting()
        for number in (1, 2):
            key = await place.submit(f"j{number}", text=f"text {number}", steps=1)
            job = await place.wait_until_ended(key)
            assert (job.status, job.output and job.output.data) == (Status.SUCCEEDED, {"text": f"text {number}"})
            assert [found.handle for found in await reused.waiting()] == [warm.handle]
        key = await place.submit("j3", file=f"sha256:{sha256}", text="text 3", seconds=3, steps=30)
        await place.wait_for_progress(key, 3)
        first.send_signal(signal.SIGKILL)
        await first.wait()
    async with place.runner() as second:
        job = await place.wait_until_ended(key)
        second.send_signal(signal.SIGTERM)
        with anyio.fail_after(30):
            assert await second.wait() == 0
    assert (job.status, job.attempt, job.free_releases) == (Status.SUCCEEDED, 1, {})
    assert job.output is not None
    assert [file.sha256 for file in job.output.files] == [sha256]
    types = [type(entry.record.event).__name__ for entry in await place.bus.job_store.history(key)]
    assert types == ["Submitted", "Started", "Adopted", "Succeeded"]
    log = "".join(note.text for note in await place.notes(key, LogMessage))
    assert [line for line in log.splitlines() if line.startswith("step ")] == [f"step {n} of 30" for n in range(1, 31)]
    assert await reused.there() == []
    assert reused.jobs() == []


async def test_a_crash_in_a_reused_container_ends_it_and_its_job_alone(reused: Lives) -> None:
    async with reused.place.runner():
        (warm,) = await reused.waiting()
        crashed = await reused.place.wait_until_ended(await reused.place.submit("j1", behave="segv"))
        assert crashed.status is Status.FAILED
        next_one = await reused.place.wait_until_ended(await reused.place.submit("j2", text="on", steps=1))
        assert next_one.status is Status.SUCCEEDED
        assert warm.handle not in {found.handle for found in await reused.there()}
