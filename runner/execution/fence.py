"""Fencing: only the runner process whose claim is in the record may write about the attempt.

JetStream acks are not fenced, so messages play no part here. Every write is a compare-and-set on the latest revision.
After a conflict the record is read again: if the claim is still ours, decide again; otherwise the claim is lost.
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
    """Somebody else has the job now: stop the container, and do not end the job."""


async def record_event(context: RunnerContext, entry: VersionedRecord, event: JobEvent) -> Job:
    """Append `event` to the record `entry`; return the changed job.

    Raises RevisionConflict, MessageTooLarge, and other errors of the broker. A write whose answer was lost is looked up
    when the broker is back: it was written, or RevisionConflict is raised.
    """
    recorded = next_record(entry.record.job, event, _event_time(context, entry.record.job))
    data = encode_record(recorded)
    if len(data) > RECORD_LIMIT_BYTES:
        raise MessageTooLarge(f"the record would have {len(data)} bytes, and the limit is {RECORD_LIMIT_BYTES}")
    key = recorded.job.key
    try:
        await context.bus.job_store.update(key, recorded, entry.revision)
    except BrokerUnreachable as error:
        after = await context.retry_while_unavailable("record", partial(context.bus.job_store.read, key))
        if after is None or encode_record(after.record) != data:
            raise RevisionConflict("the broker went away and did not write it") from error
    return recorded.job


def _event_time(context: RunnerContext, job: Job) -> datetime:
    """Return the current time of the host, but never one before the times in the record.

    A host may boot with a clock of 1970.

    The edge would think that such a result had been kept long enough, and delete it.
    """
    recorded_times = (job.created_at, job.retried_at, job.queued_at, job.started_at)
    return max(time for time in (context.now(), *recorded_times) if time is not None)


class FencedJob:
    """The right of this runner process to write about one attempt."""

    def __init__(self, context: RunnerContext, key: JobKey, round_: int, claim: Claim) -> None:
        self._context = context
        self._key = key
        self._round = round_
        self._claim = claim

    async def read_job(self) -> Job:
        """Return the recorded job if the claim is ours. Raises ClaimLost; BusError if the broker is away."""
        return (await self._read_claimed()).record.job

    async def record(self, decide: Callable[[Job], JobEvent]) -> Job:
        """Record `decide(job)` for the latest record; return the changed job.

        Retries forever while the broker is away. Raises ClaimLost, MessageTooLarge.
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
        """Return the record with our claim.

        If the attempt was released while we were disconnected, and no other host has claimed it since, it is claimed
        back.
        """
        while True:
            entry = await self._context.bus.job_store.read(self._key)
            if entry is None:
                raise ClaimLost("the record does not exist any more")
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
    """Return the seconds until the queued job may start, 0 if it may start now; START_DELAY_LIMIT_S at most.

    A backoff that ends later than any backoff can was recorded by a clock that was set back since: it is over.
    """
    waits = [] if job.not_before is None else [job.not_before - now]
    if job.backoff_until is not None and job.backoff_until - now <= JITTERED_BACKOFF_LIMIT:
        waits.append(job.backoff_until - now)
    return min(START_DELAY_LIMIT_S, max(0.0, max(waits, default=timedelta(0)).total_seconds()))


# A NAKed message is invisible to every runner until its delay ends, so the delay is limited.
START_DELAY_LIMIT_S = JITTERED_BACKOFF_LIMIT.total_seconds()
