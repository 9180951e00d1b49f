"""The claim in the record is the fence (DESIGN 3): whoever holds it may write, nobody else may end the attempt.

JetStream acks are not fenced, so nothing here asks about messages. Every write is a compare-and-set on the latest
revision; on a conflict the record is read again: still ours → decide again, else we are a zombie.
"""

from collections.abc import Callable
from datetime import datetime
from functools import partial

from bus.port import Conflict, Entry, TooLarge, Unreachable
from runner.life import Life
from schemas.events import Adopted, Event, encode
from schemas.job import RECORD_BYTES, Claim, Job, JobKey
from schemas.lifecycle import step
from schemas.words import ACTIVE, Status


class ClaimLost(Exception):
    """Somebody else decides about this job now: stop the container, end nothing."""


async def advance(life: Life, entry: Entry, event: Event) -> Job:
    """Record `event` behind `entry`; the job as it became. Raises Conflict, TooLarge and what the broker cannot do.

    A write whose answer got lost is looked for when the broker is back: it is done, or it is a Conflict.
    """
    recorded = step(entry.recorded.job, event, _moment(life, entry.recorded.job))
    data = encode(recorded)
    if len(data) > RECORD_BYTES:
        raise TooLarge(f"the record would have {len(data)} bytes, {RECORD_BYTES} are the most")
    key = recorded.job.key
    try:
        await life.bus.records.update(key, recorded, entry.revision)
    except Unreachable as error:
        after = await life.insist("record", partial(life.bus.records.read, key))
        if after is None or encode(after.recorded) != data:
            raise Conflict("the broker went away and did not write it") from error
    return recorded.job


def _moment(life: Life, job: Job) -> datetime:
    """Now by the host's calendar, and never before what the record tells: a host may have been booted into 1970.

    The edge would take such a result for one that has been kept long enough, and forget it.
    """
    told = (job.created_at, job.retried_at, job.queued_at, job.started_at)
    return max(at for at in (life.now(), *told) if at is not None)


class Fence:
    """The right of this life to write about one attempt."""

    def __init__(self, life: Life, key: JobKey, round_: int, claim: Claim) -> None:
        self._life = life
        self._key = key
        self._round = round_
        self._claim = claim

    async def look(self) -> Job:
        """The job as recorded, its claim ours. Raises ClaimLost; BusError when the broker is away."""
        return (await self._held()).recorded.job

    async def apply(self, decide: Callable[[Job], Event]) -> Job:
        """Record `decide(job)` behind whatever the record says by then; the job as it became.

        Tries for ever while the broker is away. Raises ClaimLost, TooLarge.
        """
        return await self._life.insist("record", partial(self._apply, decide))

    async def _apply(self, decide: Callable[[Job], Event]) -> Job:
        while True:
            entry = await self._held()
            try:
                return await advance(self._life, entry, decide(entry.recorded.job))
            except Conflict:
                continue

    async def _held(self) -> Entry:
        """The record, ours. One that was released while we were cut off, and claimed by nobody since, is taken back."""
        while True:
            entry = await self._life.bus.records.read(self._key)
            if entry is None:
                raise ClaimLost("there is no record any more")
            job = entry.recorded.job
            if job.round != self._round or job.claim != self._claim:
                raise ClaimLost(f"the record is of round {job.round}, claimed by {job.claim}")
            if job.status in ACTIVE:
                return entry
            if job.status is not Status.QUEUED:
                raise ClaimLost(f"the job is {job.status}")
            try:
                await advance(self._life, entry, Adopted(self._claim, self._round))
            except Conflict:
                continue
