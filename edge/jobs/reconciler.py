"""The reconciler: a table of idempotent steps that run every 15 seconds and repair what a crash interrupted.

So a crash between two writes costs a delay of seconds. Each step may be interrupted anywhere and repeated, and returns
the number of its repairs. A step finds candidates in the index, which may lag. It decides by the record, which
`ReconcileContext.transition_all` reads again, and writes by compare-and-set.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog
from anyio import sleep
from msgspec import Struct

from bus.compare_and_set import transition
from bus.interface import Bus, BusError, RevisionConflict, VersionedRecord, forget_deliveries
from edge.assets.service import UNREFERENCED_RETENTION, AssetService
from edge.core.clock import Clock, micros
from edge.core.concurrency import log_and_continue
from edge.hosts.registry import HostRegistry
from edge.index import sqlite as sql
from edge.index.index import JobIndex
from edge.index.rows import IndexRow, expires_at, input_digests, input_due_at, result_digests
from edge.jobs.inputs import INPUT_FETCH_FAILED, InputWaiter
from edge.jobs.publish_window import PublishWindow
from edge.store.port import StoreError
from schemas.endpoint_parts import VOLUMES_OWNER
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
from schemas.job import ACTIVE_STATUSES, FINAL_STATUSES, Job, JobFailure, JobKey, Pointer, Priority, Status
from schemas.lifecycle import FAILURES, HOST_LOST_CODE, IllegalTransition, make_job_failure, outcome_after_failure
from schemas.problems import ProblemError

# Expected errors: the next sweep repeats the step. Any other exception is a bug.
TRANSIENT_ERRORS = (BusError, StoreError, ProblemError, RecordUnreadable, IllegalTransition)

RECONCILE_INTERVAL_S = 15.0
JOBS_PER_STEP_LIMIT = 500  # jobs that a step checks in one sweep
ASSET_GONE = "asset_gone"
_ACTIVE_JOB_LIMIT = 1_000_000  # the slots of all hosts bound the number of active jobs, and each must be checked

_log = structlog.get_logger()


class ReconcilePolicy(Struct, frozen=True):
    """The delays and intervals of the reconciler."""

    host_lost_after: timedelta = timedelta(minutes=10)  # or as soon as the power driver reports that the host is off
    low_max_wait: timedelta = timedelta(hours=12)
    retention: timedelta = timedelta(days=30)
    check_interval: timedelta = timedelta(hours=1)


class PowerProbe(Protocol):
    """The power state of hosts, as their power drivers report it."""

    def is_off(self, host: str) -> bool | None:
        """Return whether the host is powered off; None: not known."""
        ...


class IntervalTimer:
    """Is due once per `interval`, the first time one `interval` after `start`."""

    def __init__(self, interval: timedelta, start: datetime) -> None:
        self._interval = interval
        self._last_due = start

    def is_due(self, now: datetime) -> bool:
        """Return whether the timer is due, and restart it if so. A clock that was set back makes it due at once."""
        due = not timedelta(0) <= now - self._last_due < self._interval
        if due:
            self._last_due = now
        return due


class ReconcileContext(Struct, frozen=True, kw_only=True):
    """The services that the steps use, and the writes that they share."""

    bus: Bus
    index: JobIndex
    publish_window: PublishWindow
    hosts: HostRegistry
    assets: AssetService
    input_waiter: InputWaiter
    now: Clock
    index_check_timer: IntervalTimer
    orphan_timer: IntervalTimer
    power_probe: PowerProbe
    policy: ReconcilePolicy = ReconcilePolicy()

    async def find_jobs(
        self, condition: str, ago: timedelta = timedelta(0), limit: int = JOBS_PER_STEP_LIMIT
    ) -> Sequence[VersionedRecord]:
        """Return up to `limit` jobs for which `condition`, of `edge.index.sqlite`, is true at `ago` before now."""
        return await self.index.find_jobs(condition, micros(self.now() - ago), limit)

    async def read_record(self, key: JobKey) -> VersionedRecord | None:
        """Return the record; None if the job does not exist or its record cannot be read."""
        try:
            return await self.bus.job_store.read(key)
        except RecordUnreadable as error:
            _log_unreadable(key, error)
            return None

    async def transition_all(
        self,
        entries: Sequence[VersionedRecord],
        decide: Callable[[Job], Awaitable[JobEvent | None]],
        follow_up: Callable[[Job], Awaitable[object]],
    ) -> int:
        """Write to each job the event that `decide` chooses for its current record (None: none), then call `follow_up`.

        Returns the number of jobs that were changed.
        """
        changed = 0
        for key in (entry.record.job.key for entry in entries):
            with log_and_continue("step_job_failed", *TRANSIENT_ERRORS, owner=key.owner, job_id=key.id):
                changed += await self._transition(key, decide, follow_up)
        return changed

    async def _transition(
        self,
        key: JobKey,
        decide: Callable[[Job], Awaitable[JobEvent | None]],
        follow_up: Callable[[Job], Awaitable[object]],
    ) -> bool:
        try:
            result = await transition(self.bus.job_store, key, decide, lambda _: self.now())
        except RecordUnreadable as error:
            _log_unreadable(key, error)
            return False
        if result.entry is None or not result.is_written:
            return False
        self.index.record_own_write(key.owner, result.entry.revision)
        try:
            await follow_up(result.entry.record.job)
        except BusError as error:
            _log.warning("step_followup_failed", owner=key.owner, job_id=key.id, error=str(error))
        return True

    async def delete_record(self, entry: VersionedRecord) -> bool:
        """Delete the record unless it has changed since it was read; return whether it was deleted."""
        try:
            await self.bus.job_store.delete(entry.record.job.key, entry.revision)
        except RevisionConflict:
            return False
        return True

    async def remove_message(self, job: Job) -> None:
        """Remove the job's message from JOBS."""
        await self.bus.job_queue.remove(job.pointer)


ReconcileStep = Callable[[ReconcileContext], Awaitable[int]]


def _log_unreadable(key: JobKey, error: RecordUnreadable) -> None:
    _log.error("record_read_failed", owner=key.owner, job_id=key.id, error=str(error))


async def queue_completed_inputs(context: ReconcileContext) -> int:
    """Record files that have arrived for waiting jobs, if the edge that received them died before it did so."""
    keys = await context.index.find_keys(sql.AWAITING_INPUT, micros(context.now()), JOBS_PER_STEP_LIMIT)
    return sum([await context.input_waiter.queue_if_complete(key) for key in keys])


async def enqueue_due(context: ReconcileContext) -> int:
    """Queue scheduled jobs whose start time has come."""

    async def decide(job: Job) -> JobEvent | None:
        is_ready = job.status is Status.SCHEDULED and not job.lacks_input
        return Queued() if is_ready and (job.not_before is None or job.not_before <= context.now()) else None

    entries = await context.find_jobs(sql.DUE)
    return await context.transition_all(entries, decide, context.publish_window.publish_if_room)


async def expire_unstarted(context: ReconcileContext) -> int:
    """Expire jobs that have not started by their deadline or within their start timeout."""

    async def decide(job: Job) -> JobEvent | None:
        due = expires_at(job)
        if due is None or due > context.now():
            return None
        return Expired("deadline" if due == job.deadline else "start_timeout")

    entries = await context.find_jobs(sql.EXPIRED)
    return await context.transition_all(entries, decide, context.remove_message)


async def fail_overdue_inputs(context: ReconcileContext) -> int:
    """Fail jobs whose input has not arrived within `input_timeout_s`."""

    async def decide(job: Job) -> JobEvent | None:
        due = input_due_at(job)
        return None if due is None or due > context.now() else Failed(_missing_input_failure(job))

    async def do_nothing(_: Job) -> None:
        """Leave JOBS alone: the job was never queued."""

    return await context.transition_all(await context.find_jobs(sql.INPUT_OVERDUE), decide, do_nothing)


def _missing_input_failure(job: Job) -> JobFailure:
    code = INPUT_FETCH_FAILED if job.pending_urls else ASSET_GONE
    missing = [*(f"sha256:{digest}" for digest in job.missing), *(pending.url for pending in job.pending_urls)]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    timeout = f"{job.policy.input_timeout_s:g} s"
    message = f"missing after {timeout}: {missing[0][:200]}{more}; upload the missing files, then retry the job"
    return make_job_failure(code, message)


async def release_lost_attempts(context: ReconcileContext) -> int:
    """Release the running jobs of lost hosts for another attempt; cancel those that were being cancelled."""

    async def decide(job: Job) -> JobEvent | None:
        gone_for = None if job.claim is None else context.hosts.gone_for(job.claim)
        if gone_for is None or job.claim is None or job.status not in ACTIVE_STATUSES:
            return None
        if job.status is Status.CANCELLING:
            return Cancelled()
        if gone_for < context.policy.host_lost_after and not context.power_probe.is_off(job.claim.host):
            return None
        return lost_attempt_event(job, context.now())

    async def remove_message_of_ended(job: Job) -> None:
        if job.status in FINAL_STATUSES:
            await context.remove_message(job)

    entries = await context.find_jobs(sql.ACTIVE, limit=_ACTIVE_JOB_LIMIT)
    return await context.transition_all(entries, decide, remove_message_of_ended)


def lost_attempt_event(job: Job, at: datetime) -> AttemptReleased | Failed:
    """Return the event of an attempt whose host is lost: a release, or a failure if its free releases are used up."""
    host = job.claim.host if job.claim else "its host"
    return outcome_after_failure(job, HOST_LOST_CODE, f"{host} is gone", FAILURES[HOST_LOST_CODE], at=at, jitter=0.0)


async def promote_aged_low(context: ReconcileContext) -> int:
    """Move jobs of low priority that have waited too long to normal priority."""

    async def decide(job: Job) -> JobEvent | None:
        if job.status is not Status.QUEUED or job.priority is not Priority.LOW or job.queued_at is None:
            return None
        waited = context.now() - job.queued_at
        return Reprioritised(Priority.NORMAL) if waited >= context.policy.low_max_wait else None

    async def move_message(job: Job) -> None:
        # The new message first: after a crash in between there are two, and `reconcile_queue` removes the old one.
        await context.publish_window.publish_if_room(job)
        await context.bus.job_queue.remove(job.pointer._replace(priority=Priority.LOW))

    entries = await context.find_jobs(sql.AGED_LOW, context.policy.low_max_wait)
    return await context.transition_all(entries, decide, move_message)


async def republish_active(context: ReconcileContext) -> int:
    """Publish the messages of active jobs that JOBS has lost: after a restore of STATE, JOBS is empty.

    The runner that receives such a message handles the job by its record, as always. The active jobs are read before
    JOBS, so that a job that ends in between is not published again.
    """
    active = await context.find_jobs(sql.ACTIVE, limit=_ACTIVE_JOB_LIMIT)
    seen = await context.bus.job_queue.list_pending() if active else set()
    published = 0
    for found in active:
        entry = None if found.record.job.pointer in seen else await context.read_record(found.record.job.key)
        if entry is not None and entry.record.job.status in ACTIVE_STATUSES and entry.record.job.pointer not in seen:
            await context.bus.job_queue.publish(entry.record.job.pointer, repair=True)
            published += 1
    return published


async def reconcile_queue(context: ReconcileContext) -> int:
    """Compare JOBS with STATE: remove messages that no unfinished round needs, publish the missing ones."""
    await context.index.wait_for_own_writes()  # else the jobs that the steps before have changed would look wrong
    mark = context.publish_window.publish_count()
    seen = await context.bus.job_queue.list_pending()
    rows = await context.index.find_rows({pointer.key for pointer in seen})
    context.publish_window.sync(seen, rows, mark)
    suspects = [pointer for pointer in seen if not _is_expected(pointer, rows.get(pointer.key))]
    removed = [pointer for pointer in suspects if await _is_stale_pointer(context, pointer)]
    for pointer in removed:
        await context.bus.job_queue.remove(pointer)
    before = context.publish_window.publish_count()
    await context.publish_window.fill()
    return len(removed) + context.publish_window.publish_count() - before


def _is_expected(pointer: Pointer, row: IndexRow | None) -> bool:
    return row is not None and row.pointer == pointer and row.status not in FINAL_STATUSES


async def _is_stale_pointer(context: ReconcileContext, pointer: Pointer) -> bool:
    """Return whether the record does not need this message. If it cannot be read, the runner delays the message."""
    try:
        entry = await context.bus.job_store.read(pointer.key)
    except RecordUnreadable:
        return False
    if entry is None:
        return True
    job = entry.record.job
    return job.status in FINAL_STATUSES or job.pointer != pointer


async def purge_past_retention(context: ReconcileContext) -> int:
    """Delete finished jobs past their retention, and their assets if no other job has used them for a day."""
    purged = 0
    for entry in await context.find_jobs(sql.PAST_RETENTION, context.policy.retention):
        job = entry.record.job
        if not await context.delete_record(entry):
            continue
        await context.bus.feed.delete(*job.key)
        await forget_deliveries(context.bus, job.key)
        await context.index.wait_until_deleted(job.key)
        digests = input_digests(job) | result_digests(job)
        await context.assets.drop_unreferenced(job.owner, digests, only_unused=True)
        purged += 1
    return purged


async def drop_orphan_assets(context: ReconcileContext) -> int:
    """Once an hour: drop assets that no job uses and that were not used for the retention time, at least a day.

    Most assets are dropped with their last job, by `purge_past_retention`. The assets here were never used by a job,
    were too young when their job was deleted, or were left by an edge that died in between. Those of VOLUMES_OWNER are
    for no job, and stay.
    """
    if not context.orphan_timer.is_due(context.now()):
        return 0
    age = max(context.policy.retention, UNREFERENCED_RETENTION)
    rows = await context.bus.asset_references.rows()
    old = [key.split(".") for key, row in rows.items() if context.now() - row.value.last_used_at >= age]
    dropped = [
        len(await context.assets.drop_unreferenced(owner, [sha256], only_unused=True))
        for owner, sha256 in old
        if owner != VOLUMES_OWNER
    ]
    return sum(dropped)


async def sweep_trash(context: ReconcileContext) -> int:
    """Restore trashed files that are referenced again; delete the others for good."""
    return await context.assets.sweep_trash()


async def repair_index(context: ReconcileContext) -> int:
    """Once an hour: compare the index with the key list of STATE, because a purge sends no message."""
    if not context.index_check_timer.is_due(context.now()):
        return 0
    return await context.index.repair()


# Steps that end or move jobs come before JOBS is compared with STATE.
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


class Reconciler:
    """Runs the steps in order, at once and then every `period_s` seconds."""

    def __init__(
        self, context: ReconcileContext, steps: Sequence[ReconcileStep] = STEPS, period_s: float = RECONCILE_INTERVAL_S
    ) -> None:
        self._context = context
        self._steps = steps
        self._period_s = period_s

    async def run(self) -> None:
        """Wait until the index has caught up, then sweep until cancelled."""
        await self._context.index.wait_until_caught_up()
        while True:
            await self.sweep()
            await sleep(self._period_s)

    async def sweep(self) -> dict[str, int]:
        """Run each step once; return the repairs by step. A step that failed is left out: the next sweep repeats it."""
        repairs = {}
        for step in self._steps:
            with log_and_continue("step_crashed", step=step.__name__):
                try:
                    repairs[step.__name__] = await step(self._context)
                except TRANSIENT_ERRORS as error:
                    _log.warning("step_postponed", step=step.__name__, error=str(error))
        if any(repairs.values()):
            _log.info("sweep_finished", **{name: count for name, count in repairs.items() if count})
        return repairs
