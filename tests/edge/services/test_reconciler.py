"""The reconciler's steps, each by its rule (DESIGN 3, "Reconciler")."""

from datetime import timedelta
from typing import Any

import pytest

from bus.port import Unreachable
from edge.services.reconciler import Reconciler
from edge.services.repairs import STEPS
from edge.services.scene import Scene
from edge.store.port import StoreBroken
from schemas import events as e
from schemas.job import File, Job, Output, Pointer
from schemas.words import Priority, Status
from tests.broker import until
from tests.edge.services.world import START, FakeWorld


async def swept(fake: FakeWorld) -> dict[str, int]:
    """What one sweep mended, the index having seen everything that can be read."""
    await fake.settled()
    done = await fake.reconciler.sweep()
    assert done.keys() == {step.__name__ for step in STEPS}, "a step was put off"
    return {name: count for name, count in done.items() if count}


async def on_gone_host(fake: FakeWorld, *, gone_s: float = 60) -> Job:
    """A job that ran on gpu-1 until the host fell silent, `gone_s` seconds before now."""
    await fake.appear()
    job = await fake.submit()
    running = await fake.start(job)
    fake.time.pass_by(seconds=40)
    await fake.hosts.refresh()
    await swept(fake)
    fake.time.pass_by(seconds=gone_s)
    return running


async def test_there_is_nothing_to_do_twice(fake: FakeWorld) -> None:
    await fake.submit()
    assert await swept(fake) == {}
    assert await swept(fake) == {}


async def test_a_scheduled_job_is_queued_when_due(fake: FakeWorld) -> None:
    job = await fake.submit(not_before=(START + timedelta(hours=1)).isoformat())
    assert await swept(fake) == {}
    fake.time.pass_by(hours=1)
    assert await swept(fake) == {"queue_due": 1}
    assert (await fake.read(job)).status is Status.QUEUED
    assert await fake.waiting() == [job.id]


async def test_a_message_that_was_lost_comes_again(fake: FakeWorld) -> None:
    job = await fake.submit()
    await fake.bus.queue.withdraw(job.pointer)
    assert await swept(fake) == {"settle_queue": 1}
    assert await fake.waiting() == [job.id]


async def test_the_message_of_a_job_at_work_comes_again_too(fake: FakeWorld) -> None:
    """As after a restore: STATE says that it runs, and JOBS is empty."""
    running, ending = await fake.submit(), await fake.submit()
    for job in (running, ending):
        await fake.start(job)
        await fake.bus.queue.withdraw(job.pointer)
    await fake.intake.cancel(ending.key)
    done = await fake.finish(await fake.submit())
    assert await swept(fake) == {"resend_active": 2}
    assert await fake.bus.queue.waiting() == {running.pointer, ending.pointer}
    assert done.pointer not in await fake.bus.queue.waiting()
    assert await swept(fake) == {}


async def test_messages_that_nobody_wants_go(fake: FakeWorld) -> None:
    done = await fake.finish(await fake.submit())
    living = await fake.submit()
    odd = [
        Pointer("echo", Priority.NORMAL, "ann", "never-was", 1),
        done.pointer,
        living.pointer._replace(round=7),
        living.pointer._replace(priority=Priority.HIGH),
    ]
    for pointer in odd:
        await fake.bus.queue.publish(pointer, repair=True)
    assert await swept(fake) == {"settle_queue": 4}
    assert await fake.bus.queue.waiting() == {living.pointer}


async def test_a_job_that_never_started_expires(fake: FakeWorld) -> None:
    late = await fake.submit(deadline=(START + timedelta(hours=1)).isoformat())
    slow = await fake.submit()
    begun = await fake.submit()
    await fake.start(begun)
    fake.time.pass_by(hours=2)
    assert await swept(fake) == {"expire": 1}
    fake.time.pass_by(hours=23)
    assert await swept(fake) == {"expire": 1}
    events = [(await fake.intake.read(job.key)).recorded.event for job in (late, slow)]
    assert events == [e.Expired("deadline"), e.Expired("start_timeout")]
    assert (await fake.read(begun)).status is Status.RUNNING
    assert await fake.waiting() == [begun.id]


async def test_a_gone_host_loses_its_job_after_ten_minutes(fake: FakeWorld) -> None:
    job = await on_gone_host(fake, gone_s=599)
    assert await swept(fake) == {}
    fake.time.pass_by(seconds=2)
    assert await swept(fake) == {"free_lost": 1}
    now = await fake.read(job)
    assert (now.status, now.releases, now.charged) == (Status.QUEUED, {"host_lost": 1}, 0)


async def test_a_host_that_is_off_loses_its_job_at_once(fake: FakeWorld) -> None:
    job = await on_gone_host(fake)
    fake.switch.off = True
    assert await swept(fake) == {"free_lost": 1}
    assert (await fake.read(job)).status is Status.QUEUED


async def test_a_host_that_is_there_keeps_its_job_whatever_the_driver_says(fake: FakeWorld) -> None:
    job = await on_gone_host(fake)
    await fake.appear()
    fake.switch.off = True
    assert await swept(fake) == {}
    assert (await fake.read(job)).status is Status.RUNNING


async def test_an_observer_that_was_away_starts_to_count_anew(fake: FakeWorld) -> None:
    job = await on_gone_host(fake, gone_s=700)
    fake.bus.cut()
    fake.bus.heal()
    assert await swept(fake) == {}
    fake.time.pass_by(seconds=31)
    assert await swept(fake) == {}
    fake.time.pass_by(seconds=601)
    assert await swept(fake) == {"free_lost": 1}
    assert (await fake.read(job)).status is Status.QUEUED


async def test_a_cancelling_job_on_a_gone_host_is_cancelled(fake: FakeWorld) -> None:
    job = await on_gone_host(fake)
    await fake.intake.cancel(job.key)
    assert await swept(fake) == {"free_lost": 1}
    assert (await fake.read(job)).status is Status.CANCELLED
    assert await fake.waiting() == []


async def test_low_jobs_that_waited_long_become_normal(fake: FakeWorld) -> None:
    job = await fake.submit(priority="low")
    fake.time.pass_by(hours=12)
    assert await swept(fake) == {"age_low": 1}
    assert await fake.bus.queue.waiting() == {job.pointer._replace(priority=Priority.NORMAL)}
    assert await swept(fake) == {}


async def test_retention_forgets_jobs_and_what_only_they_named(fake: FakeWorld) -> None:
    inputs, shared, made = await fake.put("ann", b"1"), await fake.put("ann", b"2"), await fake.put("ann", b"3")
    jobs = []
    for text in ("old", "new"):
        body = {"endpoint": "echo", "input": {"text": text, "file": f"sha256:{shared if text == 'new' else inputs}"}}
        jobs.append((await fake.intake.submit("ann", body)).entry.recorded.job)
    await fake.start(jobs[0])
    await fake.apply(jobs[0].key, e.Succeeded(Output((File("a", made, 1, "x/y"), File("b", shared, 1, "x/y")))))
    await fake.bus.queue.withdraw(jobs[0].pointer)
    fake.time.pass_by(days=30)
    assert (await swept(fake))["forget"] == 1
    assert await fake.bus.records.read(jobs[0].key) is None
    assert await fake.assets.check("ann", [inputs, shared, made]) == ((shared,), (inputs, made))


async def test_an_asset_touched_today_outlives_its_job(fake: FakeWorld) -> None:
    kept = await fake.put("ann", b"kept")
    job = await fake.submit()
    await fake.start(job)
    await fake.apply(job.key, e.Succeeded(Output(), log=kept))
    fake.time.pass_by(days=30)
    await fake.assets.touch("ann", kept)
    assert (await swept(fake))["forget"] == 1
    assert await fake.assets.check("ann", [kept]) == ((kept,), ())


async def test_files_that_nobody_ever_named_go_when_they_are_old(fake: FakeWorld) -> None:
    never, waits, touched = await fake.put("ann", b"1"), await fake.put("ann", b"2"), await fake.put("ann", b"3")
    body = {"endpoint": "echo", "input": {"file": f"sha256:{waits}"}, "not_before": "2027-06-01T00:00:00Z"}
    body["policy"] = {"start_timeout_s": 86400}
    await fake.intake.submit("ann", body)
    fake.time.pass_by(days=29, hours=23)
    assert await swept(fake) == {}
    await fake.assets.touch("ann", touched)
    fake.time.pass_by(hours=2)
    assert await swept(fake) == {"drop_orphans": 1}
    assert await fake.assets.check("ann", [never, waits, touched]) == ((waits, touched), (never,))
    fake.time.pass_by(seconds=61)
    assert await swept(fake) == {"sweep_trash": 1}


@pytest.mark.parametrize("error", [Unreachable("away"), StoreBroken("the bucket is away"), KeyError("a bug of ours")])
async def test_one_step_that_fails_does_not_keep_the_others(fake: FakeWorld, error: Exception) -> None:
    async def broken(_: Scene) -> int:
        raise error

    job = await fake.submit()
    await fake.bus.queue.withdraw(job.pointer)
    await fake.settled()
    assert "broken" not in await Reconciler(fake.scene, (broken, *STEPS)).sweep()
    assert await fake.waiting() == [job.id]


async def test_one_job_that_brings_out_a_bug_does_not_keep_the_others(fake: FakeWorld) -> None:
    odd, sound = await fake.submit(), await fake.submit()
    await fake.settled()

    async def decide(job: Job) -> e.Event:
        if job.id == odd.id:
            raise KeyError("a bug of ours")
        return e.Cancelled()

    async def nothing(_: Job) -> None:
        """It was only to be cancelled."""

    entries = [await fake.intake.read(job.key) for job in (odd, sound)]
    assert await fake.scene.change_all(entries, decide, nothing) == 1
    assert [(await fake.read(job)).status for job in (odd, sound)] == [Status.QUEUED, Status.CANCELLED]


async def test_unreadable_records_and_messages_are_left_alone(fake: FakeWorld) -> None:
    odd = Pointer("echo", Priority.NORMAL, "ann", "odd", 1)
    job = await fake.submit()
    await fake.settled()
    fake.broker.vandalise("$KV.STATE.ann.odd", b"{rubbish")
    await fake.bus.queue.publish(odd)
    await fake.bus.queue.withdraw(job.pointer)
    assert await swept(fake) == {"settle_queue": 1}
    assert await fake.bus.queue.waiting() == {odd, job.pointer}


async def test_the_index_is_compared_once_an_hour(fake: FakeWorld) -> None:
    job = await fake.submit()
    await fake.settled()
    state: Any = fake.bus.records
    for message in state._state.of(f"$KV.STATE.ann.{job.id}"):  # a purge: no message tells of it
        state._state.erase(message.sequence)
    assert await fake.reconciler.sweep() == dict.fromkeys((s.__name__ for s in STEPS), 0)
    assert fake.index.lines.occupied()
    fake.time.pass_by(hours=1)
    assert (await fake.reconciler.sweep())["check_index"] == 1

    async def mended() -> bool:
        return not fake.index.lines.occupied()

    await until(mended)
    assert await swept(fake) == {"settle_queue": 1}
    assert await fake.waiting() == []
