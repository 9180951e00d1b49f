"""The publish window: JOBS has at most one window of jobs of each owner."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from bus.interface import BrokerUnreachable
from edge.index.rows import IndexRow
from edge.jobs.publish_window import PublishWindow
from schemas import events as e
from schemas.job import Job, JobKey, Pointer, Priority
from tests.support.edge_services import EdgeServicesRig, FakeBusServicesRig, fake_bus_services
from tests.support.wait import wait_for


async def submit_many(edge: EdgeServicesRig, owner: str, count: int, **fields: str) -> list[Job]:
    return [await edge.submit(owner, f"{owner} {number}", **fields) for number in range(count)]


async def test_eight_of_an_owner_stand_in_the_queue(edge: EdgeServicesRig) -> None:
    jobs = await submit_many(edge, "ann", 12)
    assert await edge.list_pointers() == sorted(job.id for job in jobs[:8])


async def test_four_to_a_slot_when_there_are_many_slots(edge: EdgeServicesRig) -> None:
    await edge.announce_capabilities(slots=3)
    await submit_many(edge, "ann", 15)
    assert len(await edge.list_pointers()) == 12


async def test_each_priority_and_owner_has_a_window_of_its_own(edge: EdgeServicesRig) -> None:
    for owner in ("ann", "bob"):
        for priority in Priority:
            await submit_many(edge, owner, 9, priority=priority)
    assert len(await edge.list_pointers()) == 2 * 3 * 8


async def test_one_that_ends_lets_the_next_one_up_at_once(edge: EdgeServicesRig) -> None:
    jobs = await submit_many(edge, "ann", 10)
    await edge.finish(jobs[0])

    async def moved_up() -> bool:
        return await edge.list_pointers() == sorted(job.id for job in jobs[1:9])

    await wait_for(moved_up)


async def test_a_thousand_of_one_owner_do_not_stand_before_another(edge: EdgeServicesRig) -> None:
    await submit_many(edge, "ann", 1000)
    job = await edge.submit("bob")
    await edge.wait_until_indexed()
    assert edge.index.queue_position(job, edge.publish_window.window_size("echo")) == 8
    assert job.id in await edge.list_pointers("bob")
    taken = [await edge.runner_bus.job_queue.fetch("echo", Priority.NORMAL) for _ in range(9)]
    assert [delivery.pointer.owner for delivery in taken if delivery] == ["ann"] * 8 + ["bob"]


async def test_a_job_that_waits_out_a_back_off_does_not_count(edge: EdgeServicesRig) -> None:
    jobs = await submit_many(edge, "ann", 9)
    await edge.start(jobs[0])
    assert jobs[8].id not in await edge.list_pointers()
    later = edge.time() + timedelta(minutes=5)
    await edge.write_event(jobs[0].key, e.AttemptReleased("internal", charged=True, not_before=later))

    async def nine() -> bool:
        return len(await edge.list_pointers()) == 9

    await wait_for(nine)
    assert edge.publish_window.contains((await edge.read(jobs[0])).pointer)


async def test_submits_at_once_do_not_overfill_it(edge: EdgeServicesRig) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(edge.submit, "ann", str(number))
    assert len(await edge.list_pointers()) == 8


async def test_a_failed_publish_leaves_its_place_free(edge: EdgeServicesRig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object, **__: object) -> None:
        raise BrokerUnreachable

    with monkeypatch.context() as patch:
        patch.setattr(edge.bus.job_queue, "publish", away)
        lost = await edge.submit("ann", "lost")
    assert not edge.publish_window.contains(lost.pointer)
    await submit_many(edge, "ann", 8)
    assert len(await edge.list_pointers()) == 8


async def test_a_new_edge_takes_over_what_stands_there(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    jobs = await submit_many(fake, "ann", 12)
    async with fake_bus_services(tmp_path / "second", fake.broker, fake.time) as second:
        assert second.publish_window.contains(jobs[0].pointer)
        assert not second.publish_window.contains(jobs[11].pointer)
        assert len(await second.list_pointers()) == 8
        await second.finish(jobs[0])

        async def eight() -> bool:
            return len(await second.list_pointers()) == 8

        await wait_for(eight)


class RecordingQueue:
    """The queue of a window under test: it records what is published, and may hold a publish back or fail it."""

    def __init__(self) -> None:
        self.published: list[tuple[Pointer, bool]] = []
        self.hold = False
        self.asked = anyio.Event()

    async def publish(self, pointer: Pointer, *, repair: bool = False) -> None:
        self.asked.set()
        if self.hold:
            await anyio.sleep_forever()
        self.published.append((pointer, repair))

    @property
    def ids(self) -> list[str]:
        return [pointer.id for pointer, _ in self.published]


def idle_window(edge: EdgeServicesRig, **limits: Callable[[str], int]) -> tuple[PublishWindow, RecordingQueue]:
    """Return a window of another edge whose tasks do not run."""
    queue: Any = RecordingQueue()
    window = PublishWindow(
        queue=queue, records=edge.bus.job_store, index=edge.index, pool_slots=lambda _: 1, clock=edge.time, **limits
    )
    return window, queue


async def rows_of(edge: EdgeServicesRig, *jobs: Job) -> dict[JobKey, IndexRow]:
    await edge.wait_until_indexed()
    return await edge.index.find_rows([job.key for job in jobs])


async def test_nothing_is_published_before_the_queue_was_read(fake: FakeBusServicesRig) -> None:
    window, queue = idle_window(fake)
    job = await fake.submit()
    assert not await window.publish_if_room(job)
    await window.fill()
    assert queue.ids == []
    window.sync((), {}, window.publish_count())
    assert await window.publish_if_room(job)
    assert queue.published == [(job.pointer, False)]


async def test_what_stands_in_the_queue_counts_if_its_job_still_waits_for_it(fake: FakeBusServicesRig) -> None:
    queued, ended, again = [await fake.submit(text=str(number)) for number in range(3)]
    await fake.jobs.cancel(ended.key)
    await fake.jobs.cancel(again.key)
    retried = (await fake.jobs.retry(again.key)).record.job
    unknown = replace(queued, id="unknown").pointer
    rows = await rows_of(fake, queued, ended, again)
    window, _ = idle_window(fake)
    window.sync((queued.pointer, ended.pointer, again.pointer, unknown), rows, window.publish_count())
    contained = [window.contains(each) for each in (queued.pointer, ended.pointer, again.pointer, unknown)]
    assert contained == [True, False, False, False]
    assert not window.contains(retried.pointer)


async def test_queues_take_turns_and_the_high_one_begins(fake: FakeBusServicesRig) -> None:
    for owner in ("ann", "bob"):
        for number in range(2):
            await fake.submit(owner, job_id=f"{owner}{number}")
    await fake.submit("carl", job_id="carl0", priority="high")
    await fake.wait_until_indexed()
    window, queue = idle_window(fake)
    window.sync((), {}, window.publish_count())
    await window.fill()
    assert queue.ids[0] == "carl0"
    assert sorted(queue.ids[1:3]) == ["ann0", "bob0"]
    assert sorted(queue.ids[3:]) == ["ann1", "bob1"]


async def test_a_job_that_runs_was_published_by_another_edge(fake: FakeBusServicesRig) -> None:
    window, _ = idle_window(fake)
    window.sync((), {}, window.publish_count())
    job = await fake.submit()
    assert not window.contains(job.pointer)
    await fake.start(job)
    assert window.contains(job.pointer)
    await fake.finish_running(await fake.read(job))
    assert not window.contains(job.pointer)


def _limit_of(limit: int, _owner: str) -> int:
    return limit


async def test_a_job_in_backoff_counts_among_those_that_may_run(fake: FakeBusServicesRig) -> None:
    job = await fake.submit(text="1")
    await fake.start(job)
    later = fake.time() + timedelta(minutes=5)
    await fake.write_event(job.key, e.AttemptReleased("internal", charged=True, not_before=later))
    other = await fake.submit(text="2")
    for limit, has_room in ((0, True), (1, False), (2, True)):
        window, _ = idle_window(fake, running_limit=partial(_limit_of, limit))
        window.sync((job.pointer,), await rows_of(fake, job), window.publish_count())
        assert window.contains(job.pointer)
        assert window.has_room(other) is has_room


async def test_a_pointer_that_was_lost_is_published_again_if_its_job_still_waits(fake: FakeBusServicesRig) -> None:
    jobs = [await fake.submit(text=str(number)) for number in range(4)]
    window, queue = idle_window(fake)
    window.sync([job.pointer for job in jobs], await rows_of(fake, *jobs), window.publish_count())
    window.sync((), {}, window.publish_count())  # they are gone from the queue, and the index does not know yet
    waiting, ended, again, deleted = jobs
    for job in (ended, again, deleted):
        await fake.jobs.cancel(job.key)
    await fake.jobs.retry(again.key)
    await fake.jobs.delete(deleted.key)
    queue.published.clear()
    window._missing = {job.pointer for job in jobs}  # as if the index were behind
    assert [await window.publish_if_room(job) for job in jobs] == [True, False, False, False]
    assert queue.published == [(waiting.pointer, True)]
    assert [window.contains(job.pointer) for job in jobs] == [True, False, False, False]


async def test_a_cancelled_publish_leaves_its_place_free(fake: FakeBusServicesRig) -> None:
    window, queue = idle_window(fake)
    window.sync((), {}, window.publish_count())
    job = await fake.submit()
    queue.hold = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(window.publish_if_room, job)
        await queue.asked.wait()
        assert window.contains(job.pointer)
        tasks.cancel_scope.cancel()
    assert not window.contains(job.pointer)
    assert window.has_room(job)


async def test_a_row_that_changes_does_not_make_a_pointer_newer(fake: FakeBusServicesRig) -> None:
    """Else a message that is missing in the queue would be taken for one that was published after it was read."""
    first, second = await fake.submit(text="1"), await fake.submit(text="2")
    await fake.wait_until_indexed()
    window, _ = idle_window(fake)
    window.sync((), {}, window.publish_count())
    assert await window.publish_if_room(first)
    mark = window.publish_count()
    assert await window.publish_if_room(second)
    await fake.start(first)
    window.sync((), await rows_of(fake, first, second), mark)
    assert [window.contains(job.pointer) for job in (first, second)] == [False, True]


async def test_a_job_whose_backoff_ends_keeps_its_place_and_one_that_ends_loses_it(fake: FakeBusServicesRig) -> None:
    later = fake.time() + timedelta(minutes=5)
    jobs = [await fake.submit(text=str(number)) for number in range(2)]
    for job in jobs:
        await fake.start(job)
        await fake.write_event(job.key, e.AttemptReleased("internal", charged=True, not_before=later))
    window, _ = idle_window(fake)
    window.sync([job.pointer for job in jobs], await rows_of(fake, *jobs), window.publish_count())
    started, cancelled = jobs
    await fake.start(started)
    await fake.jobs.cancel(cancelled.key)
    await fake.wait_until_indexed()
    assert [window.contains(job.pointer) for job in jobs] == [True, False]
