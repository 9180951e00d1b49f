"""kill -9 of every process while a job runs: one attempt, one result; its client misses nothing, sees nothing twice."""

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import anyio

from lamplighter.follow import Event
from schemas.events import Adopted, Started, Succeeded
from schemas.job_view import JobView
from tests.e2e.conftest import process_only
from tests.support.installation import RunningInstallation
from tests.support.job_checks import (
    JOB_TIMEOUT_S,
    assert_one_end_a_round,
    events_of,
    read_history,
    submit_job,
    wait_until_clean,
    wait_until_ended,
)
from tests.support.wait import wait_for

STEPS = 60


class Watched:
    """What a client that follows a job was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._told = anyio.Event()

    async def follow(self, lit: RunningInstallation, job_id: str) -> None:
        """Until the job's end."""
        async for event in lit.ann.follow(job_id):
            self.events.append(event)
            self._told.set()
            self._told = anyio.Event()

    async def until_step(self, step: int) -> None:
        """Wait until the client was told that the job is as far as that."""
        while not any(event.kind == "progress" and event.data["done"] >= step for event in self.events):
            await self._told.wait()

    def assert_whole(self) -> None:
        """Offsets rise strictly in each kind, every line came once and in order, the last progress is the last step."""
        offsets = defaultdict(list)
        for event in self.events:
            if event.kind in {"progress", "log"}:
                offsets[event.kind].append(event.data["offset"])
        for said in offsets.values():
            assert all(one < next_ for one, next_ in pairwise(said)), said
        lines = "".join(event.data["text"] for event in self.events if event.kind == "log").splitlines()
        assert [line for line in lines if line.startswith("step ")] == [
            f"step {step} of {STEPS}" for step in range(1, STEPS + 1)
        ]
        assert [event.data["done"] for event in self.events if event.kind == "progress"][-1] == STEPS

    @property
    def revisions(self) -> list[int]:
        """Of the states, in the order they came."""
        return [event.data["revision"] for event in self.events if event.kind == "state"]


@asynccontextmanager
async def watching(lit: RunningInstallation, job: JobView) -> AsyncIterator[Watched]:
    """A client that follows the job; leaving waits for the job's end and for all that was said of it."""
    watched = Watched()
    with anyio.fail_after(JOB_TIMEOUT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watched.follow, lit, job.id)
            yield watched


async def assert_ran_once(lit: RunningInstallation, job: JobView, watched: Watched, *, adopted: int) -> None:
    """One attempt, one result; the client was told every state once, in order, and the whole output."""
    done = await wait_until_ended(lit.ann, job.id)
    assert (done.status, done.attempt, done.output.data["text"]) == ("succeeded", 1, "hello")
    entries = await read_history(lit, job.id)
    kinds = (Started, Adopted, Succeeded)
    assert [len(events_of(entries, kind)) for kind in kinds] == [1, adopted, 1]
    assert_one_end_a_round(entries)
    assert watched.revisions == [entry.revision for entry in entries]
    watched.assert_whole()


async def started(lit: RunningInstallation, seconds: float = 5) -> JobView:
    await lit.installation.start_runner()
    return await submit_job(lit, text="hello", steps=STEPS, seconds=seconds)


async def test_a_killed_runner_s_job_is_adopted_by_its_next_life(alone: RunningInstallation):
    job = await started(alone)
    async with watching(alone, job) as watched:
        await watched.until_step(10)
        (before,) = await alone.installation.containers()
        await alone.installation.runners["gpu-1"].kill()
        await alone.installation.start_runner()

        async def adopted() -> bool:
            return bool(events_of(await read_history(alone, job.id), Adopted))

        await wait_for(adopted)
        assert [found.handle for found in await alone.installation.containers()] == [before.handle]
    await assert_ran_once(alone, job, watched, adopted=1)
    await wait_until_clean(alone, timeout_s=40)  # the message comes back when its lease ends


async def test_a_job_that_ended_while_its_runner_was_dead_is_collected(alone: RunningInstallation):
    job = await started(alone, seconds=2)
    async with watching(alone, job) as watched:
        await watched.until_step(10)
        await alone.installation.runners["gpu-1"].kill()

        async def exited() -> bool:
            return [found.state for found in await alone.installation.containers()] == ["exited"]

        await wait_for(exited, timeout_s=30)
        await alone.installation.start_runner()
    await assert_ran_once(alone, job, watched, adopted=1)


async def test_a_runner_killed_again_and_again_loses_and_doubles_nothing(alone: RunningInstallation):
    job = await started(alone, seconds=10)
    async with watching(alone, job) as watched:
        for step in (5, 30):
            await watched.until_step(step)
            await alone.installation.runners["gpu-1"].kill()
            await alone.installation.start_runner()
    await assert_ran_once(alone, job, watched, adopted=2)


@process_only  # the edge knows nothing of engines
async def test_a_killed_edge_costs_its_clients_nothing(lit: RunningInstallation):
    job = await started(lit)
    async with watching(lit, job) as watched:
        for step in (10, 30):
            await watched.until_step(step)
            await lit.installation.edge.kill()
            await lit.installation.start_edge()
    await assert_ran_once(lit, job, watched, adopted=0)
    await wait_until_clean(lit)


async def test_a_killed_broker_is_waited_for(lit: RunningInstallation):
    job = await started(lit)
    async with watching(lit, job) as watched:
        await watched.until_step(10)
        await lit.installation.server.kill()
        await lit.installation.server.start()
        await watched.until_step(30)
    await assert_ran_once(lit, job, watched, adopted=0)
    await wait_until_clean(lit)


@process_only
async def test_a_job_ends_while_the_broker_is_away_and_is_recorded_when_it_is_back(lit: RunningInstallation):
    job = await started(lit, seconds=3)
    async with watching(lit, job) as watched:
        await watched.until_step(10)
        await lit.installation.server.kill()

        async def exited() -> bool:
            return [found.state for found in await lit.installation.containers()] == ["exited"]

        await wait_for(exited, timeout_s=30)
        await lit.installation.server.start()
    await assert_ran_once(lit, job, watched, adopted=0)
    await wait_until_clean(lit)
