"""Jobs on their way in, and what their owners may do to them: submit, cancel, retry, delete, read (DESIGN 3, "Submit").

Every write is a compare-and-set on the record; what follows it (the pointer in JOBS, a nudge) may fail, because the
reconciler makes it good.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from msgspec import Struct, structs

from bus.port import Bus, BusError, Conflict, Entry
from edge.services.admission import Admission
from edge.services.assets import Assets
from edge.services.clock import Clock, Entropy
from edge.services.gate import Gate
from edge.services.index import Index
from edge.services.inputs import assets_missing
from edge.services.refusals import refusing
from edge.services.standing import input_digests, result_digests
from edge.services.submission import check_id
from edge.services.window import Window
from edge.webhooks.ledger import forget_deliveries
from schemas.errors import Refused
from schemas.events import Cancelled, CancelRequested, Event, Recorded, Retried, Submitted, as_json
from schemas.job import Job, JobKey, request_digest
from schemas.lifecycle import step, submitted_again
from schemas.view import HistoryRow
from schemas.words import FINAL, WAITING, Status, derived_id, uuid7

_TRIES = 50  # of a compare-and-set; each failure means that somebody else's write went through

_log = structlog.get_logger()


class Accepted(Struct, frozen=True):
    """A job that is durable. `replayed`: an earlier request made it."""

    entry: Entry
    replayed: bool


class Deletion(Struct, frozen=True):
    """What went with a job: the digests of the outputs and logs that nothing else names."""

    assets: tuple[str, ...]


class Intake:
    """What an owner can do to jobs. Every method raises Refused."""

    def __init__(  # noqa: PLR0913, PLR0917 - the services it orders
        self,
        bus: Bus,
        gate: Gate,
        admission: Admission,
        assets: Assets,
        index: Index,
        window: Window,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._bus = bus
        self._gate = gate
        self._admission = admission
        self._assets = assets
        self._index = index
        self._window = window
        self._clock = clock
        self._entropy = entropy

    async def submit(  # noqa: PLR0913 - each is one fact of the request
        self,
        owner: str,
        body: dict[str, Any],
        *,
        job_id: str | None = None,
        idempotency_key: str | None = None,
        trace_id: str | None = None,
        request_id: str = "",
    ) -> Accepted:
        """Accept the job of `body`, durable when this returns; or the job that an equal request made before.

        `request_id` is kept with a job that is made: the gateway's pushes carry it.
        """
        key = JobKey(owner, self._id(owner, job_id, idempotency_key))
        digest = request_digest(body)
        taken = "conflict" if job_id is not None else "idempotency_mismatch"
        with refusing():
            if job_id is not None or idempotency_key is not None:
                known = await self._bus.records.read(key)
                if known is not None:
                    return _replayed(known, digest, taken)
            try:
                with self._admission.quotas.submitting(key):
                    admitted = await self._admission.admit(key, digest, body, trace_id)
                    job = structs.replace(admitted, request_id=request_id)
                    recorded = Recorded(job.created_at, Submitted(), job)
                    revision = await self._bus.records.create(key, recorded)
            except Conflict:
                # Somebody was faster with the same name: that request is the one to be compared with.
                return await self.submit(
                    owner,
                    body,
                    job_id=job_id,
                    idempotency_key=idempotency_key,
                    trace_id=trace_id,
                    request_id=request_id,
                )
        entry = Entry(revision, recorded)
        self._follow_up(entry)
        return Accepted(entry, replayed=False)

    async def submit_again(self, ended: Entry, body: dict[str, Any]) -> bool:
        """Begin the next round of a job that has ended, with `body` in place of the request that made it.

        False: the job was changed since `ended` was read. It is one write, so a crash leaves the old round or the new.
        """
        key = ended.recorded.job.key
        with refusing():
            try:
                with self._admission.quotas.submitting(key):
                    admitted = await self._admission.admit(key, request_digest(body), body, None)
                    recorded = submitted_again(ended.recorded.job, admitted)
                    revision = await self._bus.records.update(key, recorded, ended.revision)
            except Conflict:
                return False
        self._follow_up(Entry(revision, recorded))
        return True

    async def vet(self, body: dict[str, Any]) -> None:
        """Raises Refused for what no uploaded file can make acceptable, so that none is kept for it."""
        await self._admission.vet(body)

    def _id(self, owner: str, job_id: str | None, idempotency_key: str | None) -> str:
        if job_id is not None:
            return check_id(job_id)
        if idempotency_key is not None:
            return derived_id(owner, idempotency_key)
        return uuid7(int(self._clock().timestamp() * 1000), self._entropy(10))

    async def read(self, key: JobKey) -> Entry:
        """The job as it is. Refused `not_found`: there is none of that owner."""
        with refusing():
            entry = await self._bus.records.read(key)
        if entry is None:
            raise Refused("not_found", f"there is no job {key.id}")
        return entry

    async def history(self, key: JobKey) -> list[HistoryRow]:
        """The last 64 events, oldest first. Refused `not_found`."""
        await self.read(key)
        with refusing():
            entries = await self._bus.records.history(key)
        return [_row(entry) for entry in entries]

    async def cancel(self, key: JobKey, *, only_waiting: bool = False) -> Entry:
        """End a waiting job now, ask for the end of a running one. Refused `job_final`, `not_found`.

        `only_waiting`: one that has started, or ended, is left as it is.
        """
        entry = await self._change(key, _withdrawing if only_waiting else _cancelling)
        job = entry.recorded.job
        if job.status is Status.CANCELLED:
            await self._attempt(self._bus.queue.withdraw, job.pointer)
        elif job.claim is not None:
            await self._attempt(self._bus.control.nudge, job.claim.host, key)
        return entry

    async def retry(self, key: JobKey) -> Entry:
        """Begin another round with the same inputs.

        Refused `job_not_final`, `job_final` (it succeeded), `deadline_passed`, `asset_missing`, `not_found`,
        `quota_exceeded`.
        """
        await self._gate.check()
        with self._admission.quotas.submitting(key, anew=False):
            entry = await self._change(key, self._retrying)
        self._follow_up(entry)
        return entry

    async def delete(self, key: JobKey) -> Deletion:
        """Remove an ended job: record, feed, and outputs and logs that nothing else names. Refused `job_not_final`."""
        with refusing():
            entry = await self.read(key)
            if entry.recorded.job.status not in FINAL:
                raise Refused("job_not_final", f"the job is {entry.recorded.job.status}: cancel it first")
            kept = [*await self._bus.records.history(key), entry]
            made = {digest for past in kept for digest in result_digests(past.recorded.job)}
            await self._bus.records.delete(key, entry.revision)
            await self._bus.feed.erase(*key)
            await forget_deliveries(self._bus, key)
            await self._index.vanished(key)
            return Deletion(tuple(await self._assets.release(key.owner, made)))

    async def _retrying(self, job: Job) -> Event | None:
        if job.status not in FINAL:
            raise Refused("job_not_final", f"the job is {job.status}: only one that has ended can be tried again")
        if job.status is Status.SUCCEEDED:
            raise Refused("job_final", "the job has succeeded: submit a new one to run it again")
        if job.deadline is not None and job.deadline <= self._clock():
            raise Refused("deadline_passed", "the job's deadline has passed: submit a new one")
        # What it still waited for when it ended it waits for again.
        missing = await self._assets.missing(job.owner, input_digests(job) - set(job.missing))
        if missing:
            raise assets_missing(missing)
        return Retried()

    async def _change(self, key: JobKey, decide: Callable[[Job], Awaitable[Event | None]]) -> Entry:
        """Read, let `decide` choose the event for the job (None: leave it), write; again when somebody was faster."""
        with refusing():
            for _ in range(_TRIES):
                entry = await self.read(key)
                event = await decide(entry.recorded.job)
                if event is None:
                    return entry
                recorded = step(entry.recorded.job, event, self._clock())
                try:
                    revision = await self._bus.records.update(key, recorded, entry.revision)
                except Conflict:
                    continue
                self._index.written(key.owner, revision)
                return Entry(revision, recorded)
            raise Conflict(f"{key.owner}/{key.id} changed {_TRIES} times meanwhile")

    def _follow_up(self, entry: Entry) -> None:
        self._index.written(entry.recorded.job.owner, entry.revision)
        self._window.send(entry.recorded.job)

    async def _attempt(self, call: Callable[..., Any], *about: object) -> None:
        """The record has been written, so what follows from it must not fail the request."""
        try:
            await call(*about)
        except BusError as error:
            _log.warning("left_to_reconciler", error=str(error))


async def _cancelling(job: Job) -> Event | None:
    if job.status in FINAL:
        raise Refused("job_final", f"the job has already ended: {job.status}")
    if job.status is Status.CANCELLING:
        return None
    return CancelRequested() if job.status is Status.RUNNING else Cancelled()


async def _withdrawing(job: Job) -> Event | None:
    return Cancelled() if job.status in WAITING else None


def _replayed(known: Entry, digest: str, taken: str) -> Accepted:
    if known.recorded.job.digest != digest:
        raise Refused(taken, "another request was accepted under this name: use a new one, or send the same body again")
    return Accepted(known, replayed=True)


def _row(entry: Entry) -> HistoryRow:
    return HistoryRow(entry.revision, entry.recorded.at, as_json(entry.recorded.event), entry.recorded.job.status)
