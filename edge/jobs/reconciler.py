"""What the reconciler's steps work with: the services, the rules, and writes that decide by the record."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog
from anyio import sleep
from msgspec import Struct, field

from bus.interface import Bus, BusError, RevisionConflict, VersionedRecord, forget_deliveries
from edge.assets.service import UNREFERENCED_RETENTION, AssetService
from edge.core.clock import Clock, micros
from edge.core.error_handling import log_and_continue
from edge.hosts.registry import HostRegistry
from edge.index import sqlite as sql
from edge.index.index import JobIndex
from edge.index.row import expires_at, input_digests, input_due_at, result_digests
from edge.jobs.input_waiter import InputWaiter
from edge.jobs.publish_window import PublishWindow
from edge.store.port import StoreError
from schemas.events import (
    AttemptReleased,
    Cancelled,
    Expired,
    Failed,
    JobEvent,
    Queued,
    RecordUnreadable,
    Reprioritised,
)
from schemas.ids import JobKey
from schemas.job import Job, JobFailure, Pointer
from schemas.lifecycle import IllegalTransition, next_record
from schemas.problems import ProblemError
from schemas.retry_policy import FAILURES, make_job_failure, outcome_after_failure
from schemas.status import ACTIVE_STATUSES, FINAL_STATUSES, Priority, Status

# What a step may meet: it is put off as a whole. Anything else is a bug that one job brings out.
TRANSIENT_ERRORS = (BusError, StoreError, ProblemError, RecordUnreadable, IllegalTransition)

JOBS_PER_STEP_LIMIT = 500  # jobs that a step looks at in one sweep

_log = structlog.get_logger()


class ReconcilePolicy(Struct, frozen=True):
    """How long what may wait."""

    host_lost_after: timedelta = timedelta(minutes=10)  # then a host has lost its jobs; its driver may say so sooner
    low_max_wait: timedelta = timedelta(hours=12)
    retention: timedelta = timedelta(days=30)
    check_interval: timedelta = timedelta(hours=1)


class PowerProbe(Protocol):
    """What a host's driver knows."""

    async def is_off(self, host: str) -> bool | None:
        """Whether the host is without power; None: nobody can tell."""
        ...


class NullPowerProbe(PowerProbe):
    """Nobody can tell."""

    async def is_off(self, host: str) -> bool | None:
        return None


class IntervalTimer:
    """Says once in `every` that it is time, the first time after one `every`."""

    def __init__(self, every: timedelta, started: datetime) -> None:
        self._interval = every
        self._last_due = started

    def is_due(self, now: datetime) -> bool:
        """Whether it is time; if so, the next time is one `every` later. So it is behind a clock set back."""
        time = not timedelta(0) <= now - self._last_due < self._interval
        if time:
            self._last_due = now
        return time


class ReconcileContext(Struct, frozen=True, kw_only=True):
    """The services a step may use."""

    bus: Bus
    index: JobIndex
    publish_window: PublishWindow
    hosts: HostRegistry
    assets: AssetService
    input_waiter: InputWaiter
    now: Clock
    index_check_timer: IntervalTimer
    orphan_timer: IntervalTimer
    power_probe: PowerProbe = field(default_factory=NullPowerProbe)
    policy: ReconcilePolicy = ReconcilePolicy()

    async def find_jobs(
        self, condition: str, ago: timedelta = timedelta(0), limit: int = JOBS_PER_STEP_LIMIT
    ) -> Sequence[VersionedRecord]:
        """Up to `limit` jobs for which a condition of `index_sql` holds at `ago` before now."""
        return await self.index.find_jobs(condition, micros(self.now() - ago), limit)

    async def read_record(self, key: JobKey) -> VersionedRecord | None:
        """The record; None when there is none, or none that can be read."""
        try:
            return await self.bus.job_store.read(key)
        except RecordUnreadable as error:
            _log.error("record_unreadable", owner=key.owner, job_id=key.id, error=str(error))
            return None

    async def transition_all(
        self,
        entries: Sequence[VersionedRecord],
        decide: Callable[[Job], Awaitable[JobEvent | None]],
        then: Callable[[Job], Awaitable[object]],
    ) -> int:
        """Apply to every job what `decide` says for its record as it is now, then `then`; how many were changed."""
        changed = 0
        for key in (entry.record.job.key for entry in entries):
            with log_and_continue("job_not_mended", *TRANSIENT_ERRORS, owner=key.owner, job_id=key.id):
                changed += await self._transition(key, decide, then)
        return changed

    async def _transition(
        self, key: JobKey, decide: Callable[[Job], Awaitable[JobEvent | None]], then: Callable[[Job], Awaitable[object]]
    ) -> bool:
        entry = await self.read_record(key)
        event = None if entry is None else await decide(entry.record.job)
        if entry is None or event is None:
            return False
        recorded = next_record(entry.record.job, event, self.now())
        try:
            revision = await self.bus.job_store.update(key, recorded, entry.revision)
        except RevisionConflict:
            return False  # somebody was faster; the next sweep looks again
        self.index.record_own_write(key.owner, revision)
        try:
            await then(recorded.job)
        except BusError as error:
            _log.warning("left_to_next_sweep", owner=key.owner, job_id=key.id, error=str(error))
        return True

    async def delete_record(self, entry: VersionedRecord) -> bool:
        """Remove the record, unless it has changed since."""
        try:
            await self.bus.job_store.delete(entry.record.job.key, entry.revision)
        except RevisionConflict:
            return False
        return True

    async def remove_message(self, job: Job) -> None:
        """Take the job's message out of JOBS."""
        await self.bus.job_queue.remove(job.pointer)


# MERGED edge/services/orphans.py: Files that no job of their owner names any more, or ever did: they go when nobody
# has touched them for long. / Most files go with the job that named them (`repairs.forget`); these were never named,
# were young when their job went, / or were left by an edge that died in between.


async def drop_orphan_assets(scene: ReconcileContext) -> int:
    """References untouched for the retention, and at least a day, that no job names; looked for once an hour."""
    if not scene.orphan_timer.is_due(scene.now()):
        return 0
    age = max(scene.policy.retention, UNREFERENCED_RETENTION)
    rows = await scene.bus.asset_references.rows()
    old = [key.split(".") for key, row in rows.items() if scene.now() - row.value.last_used_at >= age]
    return sum([len(await scene.assets.drop_unreferenced(owner, [sha256], only_unused=True)) for owner, sha256 in old])


# MERGED edge/services/repairs.py: The reconciler's steps (DESIGN 3, "Reconciler"). Each may be cut off anywhere and
# done again, and counts what it did. / They find candidates in the index, which may lag, and decide by the record:
# `Scene.change` reads it again and writes by / compare-and-set.


HOST_LOST = "host_lost"
INPUT_FETCH_FAILED = "input_fetch_failed"
ASSET_GONE = "asset_gone"
_ACTIVE_JOB_LIMIT = 1_000_000  # what runs is bounded by the slots there are, and each of it must be looked at

ReconcileStep = Callable[[ReconcileContext], Awaitable[int]]


async def enqueue_due(scene: ReconcileContext) -> int:
    """Scheduled jobs whose time has come are queued."""

    async def due(job: Job) -> JobEvent | None:
        ready = job.status is Status.SCHEDULED and not job.lacks_input
        return Queued() if ready and (job.not_before is None or job.not_before <= scene.now()) else None

    entries = await scene.find_jobs(sql.DUE)
    return await scene.transition_all(entries, due, scene.publish_window.publish_if_room)


async def queue_completed_inputs(scene: ReconcileContext) -> int:
    """Files that have come for jobs which wait for them, and whose edge died before it said so."""
    keys = await scene.index.find_keys(sql.AWAITING_INPUT, micros(scene.now()), JOBS_PER_STEP_LIMIT)
    return sum([await scene.input_waiter.queue_if_complete(key) for key in keys])


async def fail_overdue_inputs(scene: ReconcileContext) -> int:
    """Jobs whose files have not come in time fail."""

    async def late(job: Job) -> JobEvent | None:
        ends = input_due_at(job)
        return None if ends is None or ends > scene.now() else Failed(_missing_input_failure(job))

    async def nothing(_: Job) -> None:
        """It was never queued."""

    return await scene.transition_all(await scene.find_jobs(sql.INPUT_OVERDUE), late, nothing)


def _missing_input_failure(job: Job) -> JobFailure:
    code = INPUT_FETCH_FAILED if job.pending_urls else ASSET_GONE
    lacked = [*(f"sha256:{digest}" for digest in job.missing), *(fetch.url for fetch in job.pending_urls)]
    more = f" and {len(lacked) - 1} more" if len(lacked) > 1 else ""
    said = f"not there after {job.policy.input_timeout_s:g} s: {lacked[0][:200]}{more}; upload what is missing, retry"
    return make_job_failure(code, said)


async def expire_unstarted(scene: ReconcileContext) -> int:
    """Jobs that have not started by their deadline or within their start timeout expire."""

    async def late(job: Job) -> JobEvent | None:
        ends = expires_at(job)
        if ends is None or ends > scene.now():
            return None
        return Expired("deadline" if ends == job.deadline else "start_timeout")

    entries = await scene.find_jobs(sql.EXPIRED)
    return await scene.transition_all(entries, late, scene.remove_message)


async def release_lost_attempts(scene: ReconcileContext) -> int:
    """Jobs on a gone host: what was being cancelled is cancelled, what ran is released for another host."""

    async def lost(job: Job) -> JobEvent | None:
        gone = None if job.claim is None else scene.hosts.gone_for(job.claim)
        if gone is None or job.claim is None or job.status not in ACTIVE_STATUSES:
            return None
        if job.status is Status.CANCELLING:
            return Cancelled()
        if gone < scene.policy.host_lost_after and not await scene.power_probe.is_off(job.claim.host):
            return None
        return lost_attempt_event(job, scene.now())

    async def tidy(job: Job) -> None:
        if job.status in FINAL_STATUSES:
            await scene.remove_message(job)

    return await scene.transition_all(await scene.find_jobs(sql.ACTIVE, limit=_ACTIVE_JOB_LIMIT), lost, tidy)


def lost_attempt_event(job: Job, at: datetime) -> AttemptReleased | Failed:
    """What becomes of an attempt whose host is gone: another one, unless its free releases are used up."""
    host = job.claim.host if job.claim else "its host"
    return outcome_after_failure(job, HOST_LOST, f"{host} is gone", FAILURES[HOST_LOST], at=at, jitter=0.0)


async def promote_aged_low(scene: ReconcileContext) -> int:
    """Low jobs that have waited too long become normal ones, and leave the low queue."""

    async def aged(job: Job) -> JobEvent | None:
        if job.status is not Status.QUEUED or job.priority is not Priority.LOW or job.queued_at is None:
            return None
        waited = scene.now() - job.queued_at
        return Reprioritised(Priority.NORMAL) if waited >= scene.policy.low_max_wait else None

    async def move(job: Job) -> None:
        # The new message first: cut off in between there are two, and the sweep of JOBS removes the old one.
        await scene.publish_window.publish_if_room(job)
        await scene.bus.job_queue.remove(job.pointer._replace(priority=Priority.LOW))

    return await scene.transition_all(await scene.find_jobs(sql.AGED_LOW, scene.policy.low_max_wait), aged, move)


async def reconcile_queue(scene: ReconcileContext) -> int:
    """JOBS against STATE: messages of no job, of an ended one, or of another round or queue go; missing ones come."""
    await scene.index.wait_for_own_writes()  # the steps before this one moved jobs: their old places would look wrong
    mark = scene.publish_window.publish_count()
    seen = await scene.bus.job_queue.list_pending()
    places = await scene.index.find_rows({pointer.key for pointer in seen})
    suspects = [
        p for p in seen if p.key not in places or places[p.key].pointer != p or places[p.key].status in FINAL_STATUSES
    ]
    scene.publish_window.sync(seen, places, mark)
    removed = [pointer for pointer in suspects if await _is_stale_pointer(scene, pointer)]
    for pointer in removed:
        await scene.bus.job_queue.remove(pointer)
    before = scene.publish_window.publish_count()
    await scene.publish_window.fill()
    return len(removed) + scene.publish_window.publish_count() - before


async def republish_active(scene: ReconcileContext) -> int:
    """Messages of jobs that are at work come again where JOBS lost them: with a restored STATE it begins empty.

    Whoever is handed one settles the job by the usual law. Looked up before JOBS is: what ends meanwhile is not meant.
    """
    active = await scene.find_jobs(sql.ACTIVE, limit=_ACTIVE_JOB_LIMIT)
    seen = await scene.bus.job_queue.list_pending() if active else set()
    sent = 0
    for found in active:
        entry = None if found.record.job.pointer in seen else await scene.read_record(found.record.job.key)
        if entry is not None and entry.record.job.status in ACTIVE_STATUSES and entry.record.job.pointer not in seen:
            await scene.bus.job_queue.publish(entry.record.job.pointer, repair=True)
            sent += 1
    return sent


async def _is_stale_pointer(scene: ReconcileContext, pointer: Pointer) -> bool:
    """Whether the record wants no such message. An unreadable one is left to the runner, which postpones it."""
    try:
        entry = await scene.bus.job_store.read(pointer.key)
    except RecordUnreadable:
        return False
    if entry is None:
        return True
    job = entry.record.job
    return job.status in FINAL_STATUSES or job.pointer != pointer


async def purge_past_retention(scene: ReconcileContext) -> int:
    """Ended jobs past their retention go, with the assets that nothing else names and nobody touched for a day."""
    forgotten = 0
    for entry in await scene.find_jobs(sql.PAST_RETENTION, scene.policy.retention):
        job = entry.record.job
        if not await scene.delete_record(entry):
            continue
        await scene.bus.feed.delete(*job.key)
        await forget_deliveries(scene.bus, job.key)
        await scene.index.wait_until_deleted(job.key)
        await scene.assets.drop_unreferenced(job.owner, input_digests(job) | result_digests(job), only_unused=True)
        forgotten += 1
    return forgotten


async def sweep_trash(scene: ReconcileContext) -> int:
    """Bytes in the trash come back or go for good."""
    return await scene.assets.sweep_trash()


async def repair_index(scene: ReconcileContext) -> int:
    """The index against STATE's key list, once an hour: a purge sends no message."""
    if not scene.index_check_timer.is_due(scene.now()):
        return 0
    return await scene.index.repair()


# In this order: what ends or moves a job comes before JOBS is compared with what is wanted there.
STEPS: Sequence[ReconcileStep] = (
    queue_completed_inputs,
    enqueue_due,
    expire_unstarted,
    fail_overdue_inputs,
    release_lost_attempts,
    promote_aged_low,
    republish_active,
    reconcile_queue,
    purge_past_retention,
    drop_orphan_assets,
    sweep_trash,
    repair_index,
)


# MERGED edge/services/reconciler.py: Turns every crash between two writes into a wait of seconds: a table of
# idempotent steps, walked again and again.


RECONCILE_INTERVAL_S = 15.0


class Reconciler:
    """`run` walks the steps at once and then every `period_s` seconds; `sweep` walks them once."""

    def __init__(
        self, scene: ReconcileContext, steps: Sequence[ReconcileStep] = STEPS, period_s: float = RECONCILE_INTERVAL_S
    ) -> None:
        self._context = scene
        self._steps = steps
        self._period_s = period_s

    async def run(self) -> None:
        """Without end, from when the index has caught up."""
        await self._context.index.wait_until_caught_up()
        while True:
            await self.sweep()
            await sleep(self._period_s)

    async def sweep(self) -> dict[str, int]:
        """How much each step mended; a step that could not be done is left for the next time."""
        mended = {}
        for step in self._steps:
            with log_and_continue("step_broke", step=step.__name__):
                try:
                    mended[step.__name__] = await step(self._context)
                except TRANSIENT_ERRORS as error:
                    _log.warning("step_put_off", step=step.__name__, error=str(error))
        if any(mended.values()):
            _log.info("reconciled", **{name: count for name, count in mended.items() if count})
        return mended
