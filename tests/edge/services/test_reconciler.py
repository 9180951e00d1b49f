"""The steps of the reconciler, each with its rule."""

from datetime import timedelta
from typing import Any

import pytest

from bus.interface import BrokerUnreachable
from edge.jobs.reconciler import STEPS, ReconcileContext, Reconciler
from edge.store.port import StoreBroken
from schemas import events as e
from schemas.endpoint_parts import VOLUMES_OWNER
from schemas.job import Job, Output, OutputFile, Pointer, Priority, Status
from tests.support.edge_services import START, FakeBusServicesRig
from tests.support.wait import wait_for


async def swept(fake: FakeBusServicesRig) -> dict[str, int]:
    """Run one sweep after the index has read every record; return the steps that repaired something."""
    await fake.wait_until_indexed()
    done = await fake.reconciler.sweep()
    assert done.keys() == {step.__name__ for step in STEPS}, "a step was put off"
    return {name: count for name, count in done.items() if count}


async def on_gone_host(fake: FakeBusServicesRig, *, gone_s: float = 60) -> Job:
    """Return a job that ran on gpu-1 until its heartbeats stopped, `gone_s` seconds ago."""
    await fake.send_heartbeat()
    job = await fake.submit()
    running = await fake.start(job)
    fake.time.advance(seconds=40)
    await fake.hosts.refresh()
    await swept(fake)
    fake.time.advance(seconds=gone_s)
    return running


async def test_there_is_nothing_to_do_twice(fake: FakeBusServicesRig) -> None:
    await fake.submit()
    assert await swept(fake) == {}
    assert await swept(fake) == {}


async def test_a_scheduled_job_is_queued_when_due(fake: FakeBusServicesRig) -> None:
    job = await fake.submit(not_before=(START + timedelta(hours=1)).isoformat())
    assert await swept(fake) == {}
    fake.time.advance(hours=1)
    assert await swept(fake) == {"enqueue_due": 1}
    assert (await fake.read(job)).status is Status.QUEUED
    assert await fake.list_pointers() == [job.id]


async def test_a_message_that_was_lost_comes_again(fake: FakeBusServicesRig) -> None:
    job = await fake.submit()
    await fake.bus.job_queue.remove(job.pointer)
    assert await swept(fake) == {"reconcile_queue": 1}
    assert await fake.list_pointers() == [job.id]


async def test_the_message_of_a_job_at_work_comes_again_too(fake: FakeBusServicesRig) -> None:
    """As after a restore: the job is running in STATE, and JOBS is empty."""
    running, ending = await fake.submit(), await fake.submit()
    for job in (running, ending):
        await fake.start(job)
        await fake.bus.job_queue.remove(job.pointer)
    await fake.jobs.cancel(ending.key)
    done = await fake.finish(await fake.submit())
    assert await swept(fake) == {"republish_active": 2}
    assert await fake.bus.job_queue.list_pending() == {running.pointer, ending.pointer}
    assert done.pointer not in await fake.bus.job_queue.list_pending()
    assert await swept(fake) == {}


async def test_messages_that_nobody_wants_go(fake: FakeBusServicesRig) -> None:
    done = await fake.finish(await fake.submit())
    living = await fake.submit()
    odd = [
        Pointer("echo", Priority.NORMAL, "ann", "never-was", 1),
        done.pointer,
        living.pointer._replace(round=7),
        living.pointer._replace(priority=Priority.HIGH),
    ]
    for pointer in odd:
        await fake.bus.job_queue.publish(pointer, repair=True)
    assert await swept(fake) == {"reconcile_queue": 4}
    assert await fake.bus.job_queue.list_pending() == {living.pointer}


async def test_a_job_that_never_started_expires(fake: FakeBusServicesRig) -> None:
    late = await fake.submit(deadline=(START + timedelta(hours=1)).isoformat())
    slow = await fake.submit()
    begun = await fake.submit()
    await fake.start(begun)
    fake.time.advance(hours=2)
    assert await swept(fake) == {"expire_unstarted": 1}
    fake.time.advance(hours=23)
    assert await swept(fake) == {"expire_unstarted": 1}
    events = [(await fake.jobs.read(job.key)).record.event for job in (late, slow)]
    assert events == [e.Expired("deadline"), e.Expired("start_timeout")]
    assert (await fake.read(begun)).status is Status.RUNNING
    assert await fake.list_pointers() == [begun.id]


async def test_a_gone_host_loses_its_job_after_ten_minutes(fake: FakeBusServicesRig) -> None:
    job = await on_gone_host(fake, gone_s=599)
    assert await swept(fake) == {}
    fake.time.advance(seconds=2)
    assert await swept(fake) == {"release_lost_attempts": 1}
    now = await fake.read(job)
    assert (now.status, now.free_releases, now.charged_attempts) == (Status.QUEUED, {"host_lost": 1}, 0)


async def test_a_host_that_is_off_loses_its_job_at_once(fake: FakeBusServicesRig) -> None:
    job = await on_gone_host(fake)
    fake.power_probe.off = True
    assert await swept(fake) == {"release_lost_attempts": 1}
    assert (await fake.read(job)).status is Status.QUEUED


async def test_a_host_that_is_there_keeps_its_job_whatever_the_driver_says(fake: FakeBusServicesRig) -> None:
    job = await on_gone_host(fake)
    await fake.send_heartbeat()
    fake.power_probe.off = True
    assert await swept(fake) == {}
    assert (await fake.read(job)).status is Status.RUNNING


async def test_an_observer_that_was_away_starts_to_count_anew(fake: FakeBusServicesRig) -> None:
    job = await on_gone_host(fake, gone_s=700)
    fake.bus.cut()
    fake.bus.heal()
    assert await swept(fake) == {}
    fake.time.advance(seconds=31)
    assert await swept(fake) == {}
    fake.time.advance(seconds=601)
    assert await swept(fake) == {"release_lost_attempts": 1}
    assert (await fake.read(job)).status is Status.QUEUED


async def test_a_cancelling_job_on_a_gone_host_is_cancelled(fake: FakeBusServicesRig) -> None:
    job = await on_gone_host(fake)
    await fake.jobs.cancel(job.key)
    assert await swept(fake) == {"release_lost_attempts": 1}
    assert (await fake.read(job)).status is Status.CANCELLED
    assert await fake.list_pointers() == []


async def test_low_jobs_that_waited_long_become_normal(fake: FakeBusServicesRig) -> None:
    job = await fake.submit(priority="low")
    fake.time.advance(hours=12)
    assert await swept(fake) == {"promote_aged_low": 1}
    assert await fake.bus.job_queue.list_pending() == {job.pointer._replace(priority=Priority.NORMAL)}
    assert await swept(fake) == {}


async def test_retention_forgets_jobs_and_what_only_they_named(fake: FakeBusServicesRig) -> None:
    inputs, shared, made = await fake.put("ann", b"1"), await fake.put("ann", b"2"), await fake.put("ann", b"3")
    jobs = []
    for text in ("old", "new"):
        body = {"endpoint": "echo", "input": {"text": text, "file": f"sha256:{shared if text == 'new' else inputs}"}}
        jobs.append((await fake.jobs.submit("ann", body)).entry.record.job)
    await fake.start(jobs[0])
    await fake.write_event(
        jobs[0].key, e.Succeeded(Output((OutputFile("a", made, 1, "x/y"), OutputFile("b", shared, 1, "x/y"))))
    )
    await fake.bus.job_queue.remove(jobs[0].pointer)
    fake.time.advance(days=30)
    assert (await swept(fake))["purge_past_retention"] == 1
    assert await fake.bus.job_store.read(jobs[0].key) is None
    assert await fake.assets.split_present("ann", [inputs, shared, made]) == ((shared,), (inputs, made))


async def test_an_asset_touched_today_outlives_its_job(fake: FakeBusServicesRig) -> None:
    kept = await fake.put("ann", b"kept")
    job = await fake.submit()
    await fake.start(job)
    await fake.write_event(job.key, e.Succeeded(Output(), log=kept))
    fake.time.advance(days=30)
    await fake.assets.touch("ann", kept)
    assert (await swept(fake))["purge_past_retention"] == 1
    assert await fake.assets.split_present("ann", [kept]) == ((kept,), ())


async def test_files_that_nobody_ever_named_go_when_they_are_old(fake: FakeBusServicesRig) -> None:
    never, waits, touched = await fake.put("ann", b"1"), await fake.put("ann", b"2"), await fake.put("ann", b"3")
    body = {"endpoint": "echo", "input": {"file": f"sha256:{waits}"}, "not_before": "2027-06-01T00:00:00Z"}
    body["policy"] = {"start_timeout_s": 86400}
    await fake.jobs.submit("ann", body)
    fake.time.advance(days=29, hours=23)
    assert await swept(fake) == {}
    await fake.assets.touch("ann", touched)
    fake.time.advance(hours=2)
    assert await swept(fake) == {"drop_orphan_assets": 1}
    assert await fake.assets.split_present("ann", [never, waits, touched]) == ((waits, touched), (never,))
    fake.time.advance(seconds=61)
    assert await swept(fake) == {"sweep_trash": 1}


async def test_the_files_of_volumes_stay(fake: FakeBusServicesRig) -> None:
    weights = await fake.put(VOLUMES_OWNER, b"weights")
    fake.time.advance(days=400)
    assert await swept(fake) == {}
    assert await fake.assets.split_present(VOLUMES_OWNER, [weights]) == ((weights,), ())


@pytest.mark.parametrize(
    "error", [BrokerUnreachable("away"), StoreBroken("the bucket is away"), KeyError("a bug of ours")]
)
async def test_one_step_that_fails_does_not_keep_the_others(fake: FakeBusServicesRig, error: Exception) -> None:
    async def broken(_: ReconcileContext) -> int:
        raise error

    job = await fake.submit()
    await fake.bus.job_queue.remove(job.pointer)
    await fake.wait_until_indexed()
    assert "broken" not in await Reconciler(fake.reconcile_context, (broken, *STEPS)).sweep()
    assert await fake.list_pointers() == [job.id]


async def test_one_job_that_brings_out_a_bug_does_not_keep_the_others(fake: FakeBusServicesRig) -> None:
    odd, sound = await fake.submit(), await fake.submit()
    await fake.wait_until_indexed()

    async def decide(job: Job) -> e.JobEvent:
        if job.id == odd.id:
            raise KeyError("a bug of ours")
        return e.Cancelled()

    async def nothing(_: Job) -> None:
        """Do nothing: the test is about the cancellation."""

    entries = [await fake.jobs.read(job.key) for job in (odd, sound)]
    assert await fake.reconcile_context.transition_all(entries, decide, nothing) == 1
    assert [(await fake.read(job)).status for job in (odd, sound)] == [Status.QUEUED, Status.CANCELLED]


async def test_unreadable_records_and_messages_are_left_alone(fake: FakeBusServicesRig) -> None:
    odd = Pointer("echo", Priority.NORMAL, "ann", "odd", 1)
    job = await fake.submit()
    await fake.wait_until_indexed()
    fake.broker.corrupt("$KV.STATE.ann.odd", b"{rubbish")
    await fake.bus.job_queue.publish(odd)
    await fake.bus.job_queue.remove(job.pointer)
    assert await swept(fake) == {"reconcile_queue": 1}
    assert await fake.bus.job_queue.list_pending() == {odd, job.pointer}


async def test_the_index_is_compared_once_an_hour(fake: FakeBusServicesRig) -> None:
    job = await fake.submit()
    await fake.wait_until_indexed()
    state: Any = fake.bus.job_store
    for message in state._state.messages_of(f"$KV.STATE.ann.{job.id}"):  # as a purge does: without a message
        state._state.delete(message.sequence)
    assert await fake.reconciler.sweep() == dict.fromkeys((s.__name__ for s in STEPS), 0)
    assert fake.index.queue_ranks.non_empty_keys()
    fake.time.advance(hours=1)
    assert (await fake.reconciler.sweep())["repair_index"] == 1

    async def mended() -> bool:
        return not fake.index.queue_ranks.non_empty_keys()

    await wait_for(mended)
    assert await swept(fake) == {"reconcile_queue": 1}
    assert await fake.list_pointers() == []
