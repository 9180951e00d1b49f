"""The claim in the record is the fence (DESIGN 3): whoever holds it may write, nobody else may end the attempt.

JetStream acks are not fenced, so nothing here asks about messages. Every write is a compare-and-set on the latest
revision; on a conflict the record is read again: still ours → decide again, else we are a zombie.
"""

from collections.abc import Callable

from bus.port import Conflict, Entry, TooLarge
from runner.life import Life
from schemas.events import Adopted, Event, encode
from schemas.job import RECORD_BYTES, Claim, Job, JobKey
from schemas.lifecycle import step
from schemas.words import ACTIVE, Status


class ClaimLost(Exception):
    """Somebody else decides about this job now: stop the container, end nothing."""


class Fence:
    """The right of this life to write about one attempt."""

    def __init__(self, life: Life, key: JobKey, round_: int, claim: Claim) -> None:
        self._life = life
        self._key = key
        self._round = round_
        self._claim = claim

    async def look(self) -> Job:
        """The job as recorded, its claim ours. Raises ClaimLost; BusError when the broker is away.

        A record that was released while we were cut off, and that nobody has claimed since, is taken back.
        """
        while True:
            entry = self._own(await self._life.bus.records.read(self._key))
            if entry.recorded.job.status is not Status.QUEUED:
                return entry.recorded.job
            try:
                return await self._write(entry, Adopted(self._claim, self._round))
            except Conflict:
                continue

    async def apply(self, decide: Callable[[Job], Event]) -> Job:
        """Record `decide(job)` behind whatever the record says by then; the job as it became.

        Tries for ever while the broker is away. Raises ClaimLost, TooLarge.
        """
        tried: list[bytes] = []

        async def once() -> Job:
            while True:
                entry = await self._life.bus.records.read(self._key)
                if entry is not None and encode(entry.recorded) in tried:
                    return entry.recorded.job  # the write whose answer got lost
                ours = self._own(entry)
                if ours.recorded.job.status is Status.QUEUED:
                    await self.look()
                    continue
                try:
                    return await self._write(ours, decide(ours.recorded.job), tried)
                except Conflict:
                    continue

        return await self._life.insist("record", once)

    def _own(self, entry: Entry | None) -> Entry:
        if entry is None:
            raise ClaimLost("there is no record any more")
        job = entry.recorded.job
        if job.round != self._round or job.claim != self._claim or job.status not in {*ACTIVE, Status.QUEUED}:
            raise ClaimLost(f"the record is {job.status}, round {job.round}, claimed by {job.claim}")
        return entry

    async def _write(self, entry: Entry, event: Event, tried: list[bytes] | None = None) -> Job:
        recorded = step(entry.recorded.job, event, self._life.now())
        data = encode(recorded)
        if len(data) > RECORD_BYTES:
            raise TooLarge(f"the record would have {len(data)} bytes, {RECORD_BYTES} are the most")
        if tried is not None:
            tried.append(data)
        await self._life.bus.records.update(self._key, recorded, entry.revision)
        return recorded.job
