"""The reconciler's steps, each by its rule (DESIGN 3, "Reconciler")."""

from datetime import timedelta
from typing import Any

from bus.port import Pointer, Unreachable
from edge.services.reconciler import Reconciler
from edge.services.repairs import STEPS
from edge.services.scene import Scene
from schemas import events as e
from schemas.job import File, Job, Output
from schemas.words import Priority, Status
from tests.edge.services.world import START, World, until


async def swept(edge: World) -> dict[str, int]:
    """What one sweep mended, the index having seen everything that can be read."""
    await edge.settled()
    done = await edge.reconciler.sweep()
    assert done.keys() == {step.__name__ for step in STEPS}, "a step was put off"
    return {name: count for name, count in done.items() if count}


async def on_gone_host(edge: World, *, gone_s: float = 60) -> Job:
    """A job that ran on gpu-1 until the host fell silent, `gone_s` seconds before now."""
    await edge.appear()
    job = await edge.submit()
    running = await edge.start(job)
    edge.time.pass_by(seconds=40)
    await edge.hosts.refresh()
    await swept(edge)
    edge.time.pass_by(seconds=gone_s)
    return running


async def test_there_is_nothing_to_do_twice(edge: World) -> None:
    await edge.submit()
    assert await swept(edge) == {}
    assert await swept(edge) == {}


async def test_a_scheduled_job_is_queued_when_due(edge: World) -> None:
    job = await edge.submit(not_before=(START + timedelta(hours=1)).isoformat())
    assert await swept(edge) == {}
    edge.time.pass_by(hours=1)
    assert await swept(edge) == {"queue_due": 1}
    assert (await edge.read(job)).status is Status.QUEUED
    assert await edge.waiting() == [job.id]


async def test_a_message_that_was_lost_comes_again(edge: World) -> None:
    job = await edge.submit()
    await edge.bus.queue.withdraw(job.pointer)
    assert await swept(edge) == {"settle_queue": 1}
    assert await edge.waiting() == [job.id]


async def test_messages_that_nobody_wants_go(edge: World) -> None:
    done = await edge.finish(await edge.submit())
    living = await edge.submit()
    odd = [
        Pointer("echo", Priority.NORMAL, "ann", "never-was", 1),
        done.pointer,
        living.pointer._replace(round=7),
        living.pointer._replace(priority=Priority.HIGH),
    ]
    for pointer in odd:
        await edge.bus.queue.publish(pointer, repair=True)
    assert await swept(edge) == {"settle_queue": 4}
    assert await edge.bus.queue.waiting() == {living.pointer}


async def test_a_job_that_never_started_expires(edge: World) -> None:
    late = await edge.submit(deadline=(START + timedelta(hours=1)).isoformat())
    slow = await edge.submit()
    begun = await edge.submit()
    await edge.start(begun)
    edge.time.pass_by(hours=2)
    assert await swept(edge) == {"expire": 1}
    edge.time.pass_by(hours=23)
    assert await swept(edge) == {"expire": 1}
    events = [(await edge.intake.read(job.key)).recorded.event for job in (late, slow)]
    assert events == [e.Expired("deadline"), e.Expired("start_timeout")]
    assert (await edge.read(begun)).status is Status.RUNNING
    assert await edge.waiting() == [begun.id]


async def test_a_gone_host_loses_its_job_after_ten_minutes(edge: World) -> None:
    job = await on_gone_host(edge, gone_s=599)
    assert await swept(edge) == {}
    edge.time.pass_by(seconds=2)
    assert await swept(edge) == {"free_lost": 1}
    now = await edge.read(job)
    assert (now.status, now.releases, now.charged) == (Status.QUEUED, {"host_lost": 1}, 0)


async def test_a_host_that_is_off_loses_its_job_at_once(edge: World) -> None:
    job = await on_gone_host(edge)
    edge.switch.off = True
    assert await swept(edge) == {"free_lost": 1}
    assert (await edge.read(job)).status is Status.QUEUED


async def test_a_host_that_is_there_keeps_its_job_whatever_the_driver_says(edge: World) -> None:
    job = await on_gone_host(edge)
    await edge.appear()
    edge.switch.off = True
    assert await swept(edge) == {}
    assert (await edge.read(job)).status is Status.RUNNING


async def test_an_observer_that_was_away_starts_to_count_anew(edge: World) -> None:
    job = await on_gone_host(edge, gone_s=700)
    edge.bus.cut()
    edge.bus.heal()
    assert await swept(edge) == {}
    edge.time.pass_by(seconds=31)
    assert await swept(edge) == {}
    edge.time.pass_by(seconds=601)
    assert await swept(edge) == {"free_lost": 1}
    assert (await edge.read(job)).status is Status.QUEUED


async def test_a_cancelling_job_on_a_gone_host_is_cancelled(edge: World) -> None:
    job = await on_gone_host(edge)
    await edge.intake.cancel(job.key)
    assert await swept(edge) == {"free_lost": 1}
    assert (await edge.read(job)).status is Status.CANCELLED
    assert await edge.waiting() == []


async def test_low_jobs_that_waited_long_become_normal(edge: World) -> None:
    job = await edge.submit(priority="low")
    edge.time.pass_by(hours=12)
    assert await swept(edge) == {"age_low": 1}
    assert await edge.bus.queue.waiting() == {job.pointer._replace(priority=Priority.NORMAL)}
    assert await swept(edge) == {}


async def test_retention_forgets_jobs_and_what_only_they_named(edge: World) -> None:
    inputs, shared, made = await edge.put("ann", b"1"), await edge.put("ann", b"2"), await edge.put("ann", b"3")
    jobs = []
    for text in ("old", "new"):
        body = {"endpoint": "echo", "input": {"text": text, "file": f"sha256:{shared if text == 'new' else inputs}"}}
        jobs.append((await edge.intake.submit("ann", body)).entry.recorded.job)
    await edge.start(jobs[0])
    await edge.apply(jobs[0].key, e.Succeeded(Output((File("a", made, 1, "x/y"), File("b", shared, 1, "x/y")))))
    await edge.bus.queue.withdraw(jobs[0].pointer)
    edge.time.pass_by(days=30)
    assert (await swept(edge))["forget"] == 1
    assert await edge.bus.records.read(jobs[0].key) is None
    assert await edge.assets.check("ann", [inputs, shared, made]) == ((shared,), (inputs, made))


async def test_an_asset_touched_today_outlives_its_job(edge: World) -> None:
    kept = await edge.put("ann", b"kept")
    job = await edge.submit()
    await edge.start(job)
    await edge.apply(job.key, e.Succeeded(Output(), log=kept))
    edge.time.pass_by(days=30)
    await edge.assets.touch("ann", kept)
    assert (await swept(edge))["forget"] == 1
    assert await edge.assets.check("ann", [kept]) == ((kept,), ())


async def test_one_step_that_fails_does_not_keep_the_others(edge: World) -> None:
    async def broken(_: Scene) -> int:
        raise Unreachable("away")

    job = await edge.submit()
    await edge.bus.queue.withdraw(job.pointer)
    await edge.settled()
    assert "broken" not in await Reconciler(edge.scene, (broken, *STEPS)).sweep()
    assert await edge.waiting() == [job.id]


async def test_unreadable_records_and_messages_are_left_alone(edge: World) -> None:
    odd = Pointer("echo", Priority.NORMAL, "ann", "odd", 1)
    job = await edge.submit()
    await edge.settled()
    edge.bus.records.write("$KV.STATE.ann.odd", b"{rubbish")
    await edge.bus.queue.publish(odd)
    await edge.bus.queue.withdraw(job.pointer)
    assert await swept(edge) == {"settle_queue": 1}
    assert await edge.bus.queue.waiting() == {odd, job.pointer}


async def test_the_index_is_compared_once_an_hour(edge: World) -> None:
    job = await edge.submit()
    await edge.settled()
    state: Any = edge.bus.records
    for message in state._state.of(f"$KV.STATE.ann.{job.id}"):  # a purge: no message tells of it
        state._state.erase(message.sequence)
    assert await edge.reconciler.sweep() == dict.fromkeys((s.__name__ for s in STEPS), 0)
    assert edge.index.lines.occupied()
    edge.time.pass_by(hours=1)
    assert (await edge.reconciler.sweep())["check_index"] == 1

    async def mended() -> bool:
        return not edge.index.lines.occupied()

    await until(mended)
    assert await swept(edge) == {"settle_queue": 1}
    assert await edge.waiting() == []
