"""Event streams: each state once, resumed at a token, ended after the job."""

import anyio
import pytest

from edge.jobs.event_stream import (
    EventStreams,
    LogEvent,
    NoticeEvent,
    ProgressEvent,
    ResumeToken,
    StreamItem,
    parse_resume_token,
)
from edge.jobs.view import Asker
from schemas import events as e
from schemas.events import FeedPosition, LogEndMessage, LogMessage, ProgressMessage
from schemas.job import Claim, Job, Output
from schemas.job_view import JobView
from schemas.lifecycle import next_record
from schemas.texts import Language
from tests.support.edge_services import EdgeServicesRig, FakeBusServicesRig


async def all_of(edge: EdgeServicesRig, job: Job, after: str | None = None) -> list[StreamItem]:
    """Collect the job's stream until it ends."""
    with anyio.fail_after(10):
        return [item async for item in edge.event_streams.follow("ann", job.id, after)]


def states(items: list[StreamItem]) -> list[str]:
    return [item.data.status for item in items if isinstance(item.data, JobView)]


async def say(edge: EdgeServicesRig, job: Job, offset: int) -> None:
    place = FeedPosition(job.round, job.attempt, offset)
    await edge.runner_bus.feed.publish(
        job.key, ProgressMessage(place, edge.time(), offset / 100, "render", offset, 100)
    )
    await edge.runner_bus.feed.publish(job.key, LogMessage(place, edge.time(), "stdout", f"at {offset}\n"))


async def test_a_job_from_submit_to_end(edge: EdgeServicesRig) -> None:
    job = await edge.submit()
    running = await edge.start(job)
    await say(edge, running, 40)
    await edge.runner_bus.feed.publish(job.key, LogEndMessage(FeedPosition(1, 1, 50), edge.time()))
    await edge.write_event(job.key, e.Succeeded(Output()))
    items = await all_of(edge, job)
    assert states(items) == ["queued", "running", "succeeded"]
    progress = [item.data for item in items if isinstance(item.data, ProgressEvent)]
    logs = [item.data for item in items if isinstance(item.data, LogEvent)]
    assert [(p.fraction, p.stage, p.offset, p.job_id) for p in progress] == [(0.4, "render", 40, job.id)]
    assert [(line.stream, line.text) for line in logs] == [("stdout", "at 40\n")]


async def test_it_goes_on_live(edge: EdgeServicesRig) -> None:
    job = await edge.submit()
    seen = []
    async with anyio.create_task_group() as tasks:
        async for item in edge.event_streams.follow("ann", job.id):
            seen.append(item)
            if len(seen) == 1:
                tasks.start_soon(edge.finish, job)
    assert states(seen) == ["queued", "running", "succeeded"]


async def test_a_resumed_stream_misses_nothing_and_repeats_nothing(edge: EdgeServicesRig) -> None:
    job = await edge.submit()
    running = await edge.start(job)
    for offset in (10, 20, 30):
        await say(edge, running, offset)
    await edge.finish_running(running)
    whole = await all_of(edge, job)
    for cut, item in enumerate(whole[:-1]):
        assert await all_of(edge, job, after=item.id) == whole[cut + 1 :]
    assert await all_of(edge, job, after=whole[-1].id) == []


async def test_the_last_state_is_not_given_again_while_nothing_happens(edge: EdgeServicesRig) -> None:
    job = await edge.submit()
    stream = edge.event_streams.follow("ann", job.id)
    first = await anext(stream)
    await stream.aclose()
    await edge.start(job)
    again = edge.event_streams.follow("ann", job.id, after=first.id)
    assert states([await anext(again)]) == ["running"]
    await again.aclose()


@pytest.mark.parametrize("after", ["nonsense", "zz-5-7", "1-999999-0", "1-x", "-", "1-2-3-4"])
async def test_an_id_that_says_nothing_means_the_start(edge: EdgeServicesRig, after: str) -> None:
    job = await edge.finish(await edge.submit())
    assert states(await all_of(edge, job, after)) == ["queued", "running", "succeeded"]


async def test_an_old_end_is_not_the_end_when_the_job_was_retried(edge: EdgeServicesRig) -> None:
    job = await edge.submit()
    await edge.jobs.cancel(job.key)
    await edge.jobs.retry(job.key)
    await edge.finish(job)
    assert states(await all_of(edge, job)) == ["queued", "cancelled", "queued", "running", "succeeded"]


async def test_it_goes_on_over_a_cut_connection(fake: FakeBusServicesRig) -> None:
    job = await fake.submit()
    seen = []
    with anyio.fail_after(10):
        async for item in fake.event_streams.follow("ann", job.id):
            seen.append(item)
            if len(seen) == 1:
                fake.bus.cut()
                for event in (e.Started(Claim("gpu-1", "i1", 1)), e.Succeeded(Output())):
                    entry = await fake.runner_bus.job_store.read(job.key)
                    assert entry
                    recorded = next_record(entry.record.job, event, fake.time())
                    await fake.runner_bus.job_store.update(job.key, recorded, entry.revision)
                fake.bus.heal()
    assert states(seen) == ["queued", "running", "succeeded"]


async def test_an_owners_stream_has_his_jobs_and_the_hosts(edge: EdgeServicesRig) -> None:
    await edge.hosts.refresh()
    mine, _ = await edge.submit("ann"), await edge.submit("bob")
    stream = edge.event_streams.follow("ann", asker=Asker(Language.ZH))
    first = await anext(stream)
    assert isinstance(first.data, JobView)
    assert first.data.id == mine.id
    await edge.send_heartbeat()
    notice = await anext(stream)
    assert isinstance(notice.data, NoticeEvent)
    assert (notice.id, notice.data.kind, notice.data.host) == (first.id, "host_online", "gpu-1")
    assert notice.data.message == "GPU服务器已上线，可以开始处理任务"
    other = await edge.submit("ann", "other")
    assert [getattr((await anext(stream)).data, "id", None)] == [other.id]
    await stream.aclose()


async def test_a_closed_stream_leaves_nothing_behind(edge: EdgeServicesRig) -> None:
    await edge.submit()
    stream = edge.event_streams.follow("ann")
    await anext(stream)
    await stream.aclose()
    assert not edge.hosts._subscribers


async def test_a_follower_that_does_not_run_says_so(edge: EdgeServicesRig) -> None:
    idle = EventStreams(edge.bus, edge.job_views, edge.hosts)
    with pytest.raises(RuntimeError, match="must be running"):
        await anext(idle.follow("ann"))


def test_a_bookmark_is_read_as_it_was_written() -> None:
    assert parse_resume_token(str(ResumeToken("1a-7", 12))) == ResumeToken("1a-7", 12)
    assert parse_resume_token("1a-7") == ResumeToken("1a-7", 0)
