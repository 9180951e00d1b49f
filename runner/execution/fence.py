"""The claim in the record is the fence (DESIGN 3): whoever holds it may write, nobody else may end the attempt.

JetStream acks are not fenced, so nothing here asks about messages. Every write is a compare-and-set on the latest
revision; on a conflict the record is read again: still ours → decide again, else we are a zombie.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from bus.interface import BrokerUnreachable, MessageTooLarge, RevisionConflict, VersionedRecord
from runner.context import RunnerContext
from schemas.events import Adopted, JobEvent, encode_record
from schemas.ids import JobKey
from schemas.job import RECORD_LIMIT_BYTES, Claim, Job
from schemas.lifecycle import next_record
from schemas.retry_policy import JITTERED_BACKOFF_LIMIT
from schemas.status import ACTIVE_STATUSES, Status


class ClaimLost(Exception):
    """Somebody else decides about this job now: stop the container, end nothing."""


async def record_event(life: RunnerContext, entry: VersionedRecord, event: JobEvent) -> Job:
    """Record `event` behind `entry`; the job as it became. Raises Conflict, TooLarge and what the broker cannot do.

    A write whose answer got lost is looked for when the broker is back: it is done, or it is a Conflict.
    """
    recorded = next_record(entry.record.job, event, _event_time(life, entry.record.job))
    data = encode_record(recorded)
    if len(data) > RECORD_LIMIT_BYTES:
        raise MessageTooLarge(f"the record would have {len(data)} bytes, {RECORD_LIMIT_BYTES} are the most")
    key = recorded.job.key
    try:
        await life.bus.job_store.update(key, recorded, entry.revision)
    except BrokerUnreachable as error:
        after = await life.retry_while_unavailable("record", partial(life.bus.job_store.read, key))
        if after is None or encode_record(after.record) != data:
            raise RevisionConflict("the broker went away and did not write it") from error
    return recorded.job


def _event_time(life: RunnerContext, job: Job) -> datetime:
    """Now by the host's calendar, and never before what the record tells: a host may have been booted into 1970.

    The edge would take such a result for one that has been kept long enough, and forget it.
    """
    told = (job.created_at, job.retried_at, job.queued_at, job.started_at)
    return max(at for at in (life.now(), *told) if at is not None)


class FencedJob:
    """The right of this life to write about one attempt."""

    def __init__(self, life: RunnerContext, key: JobKey, round_: int, claim: Claim) -> None:
        self._context = life
        self._key = key
        self._round = round_
        self._claim = claim

    async def read_job(self) -> Job:
        """The job as recorded, its claim ours. Raises ClaimLost; BusError when the broker is away."""
        return (await self._read_claimed()).record.job

    async def record(self, decide: Callable[[Job], JobEvent]) -> Job:
        """Record `decide(job)` behind whatever the record says by then; the job as it became.

        Tries for ever while the broker is away. Raises ClaimLost, TooLarge.
        """
        return await self._context.retry_while_unavailable("record", partial(self._record, decide))

    async def _record(self, decide: Callable[[Job], JobEvent]) -> Job:
        while True:
            entry = await self._read_claimed()
            try:
                return await record_event(self._context, entry, decide(entry.record.job))
            except RevisionConflict:
                continue

    async def _read_claimed(self) -> VersionedRecord:
        """The record, ours. One that was released while we were cut off, and claimed by nobody since, is taken back."""
        while True:
            entry = await self._context.bus.job_store.read(self._key)
            if entry is None:
                raise ClaimLost("there is no record any more")
            job = entry.record.job
            if job.round != self._round or job.claim != self._claim:
                raise ClaimLost(f"the record is of round {job.round}, claimed by {job.claim}")
            if job.status in ACTIVE_STATUSES:
                return entry
            if job.status is not Status.QUEUED:
                raise ClaimLost(f"the job is {job.status}")
            try:
                await record_event(self._context, entry, Adopted(self._claim, self._round))
            except RevisionConflict:
                continue


def start_delay_s(job: Job, now: datetime) -> float:
    """Seconds until the queued job may start, 0 when it may; LOOK_S at most, for calendars are set.

    A back-off that ends later than any does was noted by a calendar that has been set back since: it is over.
    """
    left = [] if job.not_before is None else [job.not_before - now]
    if job.backoff_until is not None and job.backoff_until - now <= JITTERED_BACKOFF_LIMIT:
        left.append(job.backoff_until - now)
    return min(START_DELAY_LIMIT_S, max(0.0, max(left, default=timedelta(0)).total_seconds()))


START_DELAY_LIMIT_S = (
    JITTERED_BACKOFF_LIMIT.total_seconds()
)  # a message that is put off is nobody's: for no longer than that
