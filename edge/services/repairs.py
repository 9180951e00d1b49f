"""The reconciler's steps (DESIGN 3, "Reconciler"). Each may be cut off anywhere and done again, and counts what it did.

They find candidates in the index, which may lag, and decide by the record: `Scene.change` reads it again and writes by
compare-and-set.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

from edge.services import index_sql as sql
from edge.services.clock import micros
from edge.services.orphans import drop_orphans
from edge.services.scene import SOME, Scene
from edge.services.standing import expires_at, input_digests, input_due, result_digests
from edge.webhooks.ledger import forget_deliveries
from schemas.events import Cancelled, Event, Expired, Failed, Queued, RecordUnreadable, Released, Reprioritised
from schemas.failures import FAILURES, settle
from schemas.job import Failure, Job, Pointer
from schemas.words import ACTIVE, FINAL, Priority, Status

HOST_LOST = "host_lost"
INPUT_FETCH_FAILED = "input_fetch_failed"
ASSET_GONE = "asset_gone"
_ALL = 1_000_000  # what runs is bounded by the slots there are, and each of it must be looked at

Step = Callable[[Scene], Awaitable[int]]


async def queue_due(scene: Scene) -> int:
    """Scheduled jobs whose time has come are queued."""

    async def due(job: Job) -> Event | None:
        ready = job.status is Status.SCHEDULED and not job.lacks_input
        return Queued() if ready and (job.not_before is None or job.not_before <= scene.now()) else None

    entries = await scene.find(sql.DUE)
    return await scene.change_all(entries, due, scene.window.offer)


async def supply(scene: Scene) -> int:
    """Files that have come for jobs which wait for them, and whose edge died before it said so."""
    keys = await scene.index.keys_matching(sql.LACKING, micros(scene.now()), SOME)
    return sum([await scene.supply.settle(key) for key in keys])


async def give_up_input(scene: Scene) -> int:
    """Jobs whose files have not come in time fail."""

    async def late(job: Job) -> Event | None:
        ends = input_due(job)
        return None if ends is None or ends > scene.now() else Failed(_not_supplied(job))

    async def nothing(_: Job) -> None:
        """It was never queued."""

    return await scene.change_all(await scene.find(sql.INPUT_LATE), late, nothing)


def _not_supplied(job: Job) -> Failure:
    code = INPUT_FETCH_FAILED if job.fetching else ASSET_GONE
    lacked = [*(f"sha256:{digest}" for digest in job.missing), *(fetch.url for fetch in job.fetching)]
    more = f" and {len(lacked) - 1} more" if len(lacked) > 1 else ""
    said = f"not there after {job.policy.input_timeout_s:g} s: {lacked[0][:200]}{more}; upload what is missing, retry"
    return Failure(code, said, FAILURES[code].blame, retryable=False)


async def expire(scene: Scene) -> int:
    """Jobs that have not started by their deadline or within their start timeout expire."""

    async def late(job: Job) -> Event | None:
        ends = expires_at(job)
        if ends is None or ends > scene.now():
            return None
        return Expired("deadline" if ends == job.deadline else "start_timeout")

    entries = await scene.find(sql.EXPIRED)
    return await scene.change_all(entries, late, scene.withdraw)


async def free_lost(scene: Scene) -> int:
    """Jobs on a gone host: what was being cancelled is cancelled, what ran is released for another host."""

    async def lost(job: Job) -> Event | None:
        gone = None if job.claim is None else scene.hosts.gone_for(job.claim)
        if gone is None or job.claim is None or job.status not in ACTIVE:
            return None
        if job.status is Status.CANCELLING:
            return Cancelled()
        if gone < scene.rules.gone_for and not await scene.power.is_off(job.claim.host):
            return None
        return settle_lost(job, scene.now())

    async def tidy(job: Job) -> None:
        if job.status in FINAL:
            await scene.withdraw(job)

    return await scene.change_all(await scene.find(sql.ACTIVE, limit=_ALL), lost, tidy)


def settle_lost(job: Job, at: datetime) -> Released | Failed:
    """What becomes of an attempt whose host is gone: another one, unless its free releases are used up."""
    host = job.claim.host if job.claim else "its host"
    return settle(job, HOST_LOST, f"{host} is gone", FAILURES[HOST_LOST], at=at, jitter=0.0)


async def age_low(scene: Scene) -> int:
    """Low jobs that have waited too long become normal ones, and leave the low queue."""

    async def aged(job: Job) -> Event | None:
        if job.status is not Status.QUEUED or job.priority is not Priority.LOW or job.queued_at is None:
            return None
        waited = scene.now() - job.queued_at
        return Reprioritised(Priority.NORMAL) if waited >= scene.rules.low_max_wait else None

    async def move(job: Job) -> None:
        # The new message first: cut off in between there are two, and the sweep of JOBS removes the old one.
        await scene.window.offer(job)
        await scene.bus.queue.withdraw(job.pointer._replace(priority=Priority.LOW))

    return await scene.change_all(await scene.find(sql.AGED_LOW, scene.rules.low_max_wait), aged, move)


async def settle_queue(scene: Scene) -> int:
    """JOBS against STATE: messages of no job, of an ended one, or of another round or queue go; missing ones come."""
    await scene.index.own_writes()  # the steps before this one moved jobs: their old places would look wrong
    mark = scene.window.mark()
    seen = await scene.bus.queue.waiting()
    places = await scene.index.standings({pointer.key for pointer in seen})
    suspects = [p for p in seen if p.key not in places or places[p.key].pointer != p or places[p.key].status in FINAL]
    scene.window.sync(seen, places, mark)
    removed = [pointer for pointer in suspects if await _is_stale(scene, pointer)]
    for pointer in removed:
        await scene.bus.queue.withdraw(pointer)
    before = scene.window.mark()
    await scene.window.fill()
    return len(removed) + scene.window.mark() - before


async def resend_active(scene: Scene) -> int:
    """Messages of jobs that are at work come again where JOBS lost them: with a restored STATE it begins empty.

    Whoever is handed one settles the job by the usual law. Looked up before JOBS is: what ends meanwhile is not meant.
    """
    active = await scene.find(sql.ACTIVE, limit=_ALL)
    seen = await scene.bus.queue.waiting() if active else set()
    sent = 0
    for found in active:
        entry = None if found.recorded.job.pointer in seen else await scene.read(found.recorded.job.key)
        if entry is not None and entry.recorded.job.status in ACTIVE and entry.recorded.job.pointer not in seen:
            await scene.bus.queue.publish(entry.recorded.job.pointer, repair=True)
            sent += 1
    return sent


async def _is_stale(scene: Scene, pointer: Pointer) -> bool:
    """Whether the record wants no such message. An unreadable one is left to the runner, which postpones it."""
    try:
        entry = await scene.bus.records.read(pointer.key)
    except RecordUnreadable:
        return False
    if entry is None:
        return True
    job = entry.recorded.job
    return job.status in FINAL or job.pointer != pointer


async def forget(scene: Scene) -> int:
    """Ended jobs past their retention go, with the assets that nothing else names and nobody touched for a day."""
    forgotten = 0
    for entry in await scene.find(sql.FORGOTTEN, scene.rules.retention):
        job = entry.recorded.job
        if not await scene.delete(entry):
            continue
        await scene.bus.feed.erase(*job.key)
        await forget_deliveries(scene.bus, job.key)
        await scene.index.vanished(job.key)
        await scene.assets.release(job.owner, input_digests(job) | result_digests(job), touched_before=True)
        forgotten += 1
    return forgotten


async def sweep_trash(scene: Scene) -> int:
    """Bytes in the trash come back or go for good."""
    return await scene.assets.sweep()


async def check_index(scene: Scene) -> int:
    """The index against STATE's key list, once an hour: a purge sends no message."""
    if not scene.hourly.due(scene.now()):
        return 0
    return await scene.index.check()


# In this order: what ends or moves a job comes before JOBS is compared with what is wanted there.
STEPS: Sequence[Step] = (
    supply,
    queue_due,
    expire,
    give_up_input,
    free_lost,
    age_low,
    resend_active,
    settle_queue,
    forget,
    drop_orphans,
    sweep_trash,
    check_index,
)
