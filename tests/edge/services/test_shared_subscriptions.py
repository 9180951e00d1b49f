"""Many followers of one job: each receives what a single follower would, and those that are level share one reader."""

from collections.abc import AsyncIterator

import anyio
import pytest

from bus.interface import FeedItem
from edge.jobs.event_stream import StreamItem
from schemas import events as e
from schemas.events import FeedPosition, LogEndMessage, ProgressMessage
from schemas.job import Job, Output
from tests.support.edge_services import EdgeServicesRig, FakeBusServicesRig
from tests.support.wait import wait_for

FOLLOWERS = 20


async def say(edge: EdgeServicesRig, job: Job, offset: int) -> None:
    note = ProgressMessage(FeedPosition(1, 1, offset), edge.time(), 0.5, None, None, None)
    await edge.runner_bus.feed.publish(job.key, note)


async def follow(edge: EdgeServicesRig, job: Job, seen: list[StreamItem], after: str | None = None) -> None:
    async for item in edge.event_streams.follow("ann", job.id, after):
        seen.append(item)  # noqa: PERF401 - others look at it meanwhile


async def grown(seen: list[list[StreamItem]], count: int) -> None:
    async def all_have() -> bool:
        return all(len(items) >= count for items in seen)

    await wait_for(all_have)


async def end(edge: EdgeServicesRig, job: Job) -> None:
    await edge.runner_bus.feed.publish(job.key, LogEndMessage(FeedPosition(1, 1, 10_000), edge.time()))
    await edge.write_event(job.key, e.Succeeded(Output()))


async def test_all_see_the_same_and_late_ones_too(edge: EdgeServicesRig):
    job = await edge.submit()
    running = await edge.start(job)
    seen: list[list[StreamItem]] = [[] for _ in range(FOLLOWERS)]
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for items in seen[: FOLLOWERS // 2]:
                tasks.start_soon(follow, edge, job, items)
            await grown(seen[: FOLLOWERS // 2], 2)
            for offset in range(1, 6):
                await say(edge, running, offset)
            await grown(seen[: FOLLOWERS // 2], 7)
            for number, items in enumerate(seen[FOLLOWERS // 2 :]):
                tasks.start_soon(follow, edge, job, items, seen[0][number % 7].id)
            for offset in range(6, 30):
                await say(edge, running, offset)
            await end(edge, job)
    whole = seen[0]
    assert len(whole) == 2 + 29 + 1
    for items in seen[: FOLLOWERS // 2]:
        assert items == whole
    for number, items in enumerate(seen[FOLLOWERS // 2 :]):
        assert items == whole[number % 7 + 1 :]


async def test_a_shared_subscription_reads_once(fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch):
    job = await fake.submit()
    running = await fake.start(job)
    given: list[str] = []
    following = type(fake.bus.feed).follow

    async def counted(feed, owner: str, job_id: str | None = None, after: str | None = None) -> AsyncIterator[FeedItem]:
        async for item in following(feed, owner, job_id, after):
            given.append(item.id)
            yield item

    monkeypatch.setattr(type(fake.bus.feed), "follow", counted)
    seen: list[list[StreamItem]] = [[] for _ in range(FOLLOWERS)]
    async with anyio.create_task_group() as tasks:
        for items in seen:
            tasks.start_soon(follow, fake, job, items)
        await grown(seen, 2)
        await say(fake, running, 1)  # with this message all followers become level
        await grown(seen, 3)
        given.clear()
        for offset in range(2, 12):
            await say(fake, running, offset)
        await grown(seen, 13)
        assert len(given) == 10
        await end(fake, job)
    assert not fake.event_streams._subscriptions._subscriptions


async def test_one_that_does_not_keep_up_goes_on_alone_and_misses_nothing(edge: EdgeServicesRig):
    job = await edge.submit()
    running = await edge.start(job)
    quick: list[StreamItem] = []
    slow = edge.event_streams.follow("ann", job.id)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow, edge, job, quick)
        await grown([quick], 2)
        read = [await anext(slow) for _ in range(2)]
        for offset in range(1, 4):
            await say(edge, running, offset)
            read.append(await anext(slow))
        for offset in range(4, 300):  # more than a queue holds
            await say(edge, running, offset)
        await end(edge, job)
        read += [item async for item in slow]
    for kind in ("state", "progress"):  # the order between the two kinds is not promised
        told = [[item.data for item in items if item.kind == kind] for items in (read, quick)]
        assert told[0] == told[1]
    assert len(read) == 2 + 299 + 1


async def test_a_shared_subscription_goes_on_over_a_cut_connection(fake: FakeBusServicesRig):
    job = await fake.submit()
    running = await fake.start(job)
    seen: list[list[StreamItem]] = [[] for _ in range(3)]
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for items in seen:
                tasks.start_soon(follow, fake, job, items)
            await grown(seen, 2)
            await say(fake, running, 1)
            await grown(seen, 3)
            fake.bus.cut()
            await say(fake, running, 2)
            fake.bus.heal()
            await end(fake, job)
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 5
