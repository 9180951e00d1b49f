"""Kill every process with SIGKILL while a job runs: one attempt, one result, and a complete event stream."""

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


class FollowedJob:
    """The events that a client received while it followed a job."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._step_reached = anyio.Event()

    async def follow(self, running: RunningInstallation, job_id: str) -> None:
        """Receive events until the job ends."""
        async for event in running.ann.follow(job_id):
            self.events.append(event)
            self._step_reached.set()
            self._step_reached = anyio.Event()

    async def wait_for_step(self, step: int) -> None:
        """Wait until the client has received this step of the job's progress."""
        while not any(event.kind == "progress" and event.data["done"] >= step for event in self.events):
            await self._step_reached.wait()

    def assert_whole(self) -> None:
        """Assert that offsets rise in each kind, that no line is missing or doubled, and that progress is complete."""
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
        """Return the revisions of the states, in the order of arrival."""
        return [event.data["revision"] for event in self.events if event.kind == "state"]


@asynccontextmanager
async def follow_job(running: RunningInstallation, job: JobView) -> AsyncIterator[FollowedJob]:
    """Follow a job; on exit wait for its end and for all of its events."""
    followed = FollowedJob()
    with anyio.fail_after(JOB_TIMEOUT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(followed.follow, running, job.id)
            yield followed


async def assert_ran_once(running: RunningInstallation, job: JobView, followed: FollowedJob, *, adopted: int) -> None:
    """Assert one attempt and one result, every state once and in order, and the whole output."""
    done = await wait_until_ended(running.ann, job.id)
    assert (done.status, done.attempt, done.output.data["text"]) == ("succeeded", 1, "hello")
    entries = await read_history(running, job.id)
    kinds = (Started, Adopted, Succeeded)
    assert [len(events_of(entries, kind)) for kind in kinds] == [1, adopted, 1]
    assert_one_end_a_round(entries)
    assert followed.revisions == [entry.revision for entry in entries]
    followed.assert_whole()


async def started(running: RunningInstallation, seconds: float = 5) -> JobView:
    await running.installation.start_runner()
    return await submit_job(running, text="hello", steps=STEPS, seconds=seconds)


async def test_a_killed_runner_s_job_is_adopted_by_its_next_life(shared_idle: RunningInstallation):
    job = await started(shared_idle)
    async with follow_job(shared_idle, job) as followed:
        await followed.wait_for_step(10)
        (before,) = await shared_idle.installation.containers()
        await shared_idle.installation.runners["gpu-1"].kill()
        await shared_idle.installation.start_runner()

        async def adopted() -> bool:
            return bool(events_of(await read_history(shared_idle, job.id), Adopted))

        await wait_for(adopted)
        assert [found.handle for found in await shared_idle.installation.containers()] == [before.handle]
    await assert_ran_once(shared_idle, job, followed, adopted=1)
    await wait_until_clean(shared_idle, timeout_s=40)  # the message is redelivered when its lease expires


async def test_a_job_that_ended_while_its_runner_was_dead_is_collected(shared_idle: RunningInstallation):
    job = await started(shared_idle, seconds=2)
    async with follow_job(shared_idle, job) as followed:
        await followed.wait_for_step(10)
        await shared_idle.installation.runners["gpu-1"].kill()

        async def exited() -> bool:
            return [found.state for found in await shared_idle.installation.containers()] == ["exited"]

        await wait_for(exited, timeout_s=30)
        await shared_idle.installation.start_runner()
    await assert_ran_once(shared_idle, job, followed, adopted=1)


async def test_a_runner_killed_again_and_again_loses_and_doubles_nothing(shared_idle: RunningInstallation):
    job = await started(shared_idle, seconds=10)
    async with follow_job(shared_idle, job) as followed:
        for step in (5, 30):
            await followed.wait_for_step(step)
            await shared_idle.installation.runners["gpu-1"].kill()
            await shared_idle.installation.start_runner()
    await assert_ran_once(shared_idle, job, followed, adopted=2)


@process_only  # the edge does not depend on the engine
async def test_a_killed_edge_costs_its_clients_nothing(running: RunningInstallation):
    job = await started(running)
    async with follow_job(running, job) as followed:
        for step in (10, 30):
            await followed.wait_for_step(step)
            await running.installation.edge.kill()
            await running.installation.start_edge()
    await assert_ran_once(running, job, followed, adopted=0)
    await wait_until_clean(running)


async def test_a_killed_broker_is_waited_for(running: RunningInstallation):
    job = await started(running)
    async with follow_job(running, job) as followed:
        await followed.wait_for_step(10)
        await running.installation.server.kill()
        await running.installation.server.start()
        await followed.wait_for_step(30)
    await assert_ran_once(running, job, followed, adopted=0)
    await wait_until_clean(running)


@process_only
async def test_a_job_ends_while_the_broker_is_away_and_is_recorded_when_it_is_back(running: RunningInstallation):
    job = await started(running, seconds=3)
    async with follow_job(running, job) as followed:
        await followed.wait_for_step(10)
        await running.installation.server.kill()

        async def exited() -> bool:
            return [found.state for found in await running.installation.containers()] == ["exited"]

        await wait_for(exited, timeout_s=30)
        await running.installation.server.start()
    await assert_ran_once(running, job, followed, adopted=0)
    await wait_until_clean(running)
