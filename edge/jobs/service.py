"""Jobs on their way in, and what their owners may do to them: submit, cancel, retry, delete, read (DESIGN 3, "Submit").

Every write is a compare-and-set on the record; what follows it (the pointer in JOBS, a nudge) may fail, because the
reconciler makes it good.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from anyio import CapacityLimiter, create_task_group
from msgspec import Struct, structs

from bus.interface import Bus, BusError, JobStore, RevisionConflict, VersionedRecord, forget_deliveries
from edge.assets.service import AssetService
from edge.core.clock import Clock, Entropy
from edge.core.error_handling import translate_errors
from edge.core.validation import asset_missing_problem, input_invalid_problem, validate_input
from edge.hosts.endpoints import EndpointRegistry
from edge.index.index import JobIndex
from edge.index.row import input_digests, result_digests
from edge.jobs.publish_window import PublishWindow
from edge.jobs.readiness import BrokerReadiness
from edge.jobs.submission import Admission, check_job_id, decode_submission
from schemas.events import Cancelled, CancelRequested, JobEvent, JobRecord, Retried, Submitted, event_to_dict
from schemas.ids import JobKey, derive_job_id, make_uuid7
from schemas.job import Job, request_digest
from schemas.job_view import HistoryRow
from schemas.lifecycle import next_record, resubmission_record
from schemas.problems import FieldError, Problem, ProblemError
from schemas.status import FINAL_STATUSES, WAITING_STATUSES, Status

_CONFLICT_RETRY_LIMIT = 50  # of a compare-and-set; each failure means that somebody else's write went through

_log = structlog.get_logger()


class AcceptedSubmission(Struct, frozen=True):
    """A job that is durable. `replayed`: an earlier request made it."""

    record: VersionedRecord
    replayed: bool


class DeletedJob(Struct, frozen=True):
    """What went with a job: the digests of the outputs and logs that nothing else names."""

    assets: tuple[str, ...]


class JobService:
    """What an owner can do to jobs. Every method raises Refused."""

    def __init__(  # noqa: PLR0913, PLR0917 - the services it orders
        self,
        bus: Bus,
        gate: BrokerReadiness,
        admission: Admission,
        assets: AssetService,
        index: JobIndex,
        window: PublishWindow,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._bus = bus
        self._readiness = gate
        self._admission = admission
        self._assets = assets
        self._index = index
        self._publish_window = window
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
    ) -> AcceptedSubmission:
        """Accept the job of `body`, durable when this returns; or the job that an equal request made before.

        `request_id` is kept with a job that is made: the gateway's pushes carry it.
        """
        key = JobKey(owner, self._choose_id(owner, job_id, idempotency_key))
        digest = request_digest(body)
        taken = "conflict" if job_id is not None else "idempotency_mismatch"
        with translate_errors():
            if job_id is not None or idempotency_key is not None:
                known = await self._bus.job_store.read(key)
                if known is not None:
                    return _existing_submission(known, digest, taken)
            try:
                with self._admission.quotas.count_submit(key):
                    admitted = await self._admission.admit(key, digest, body, trace_id)
                    job = structs.replace(admitted, request_id=request_id)
                    recorded = JobRecord(job.created_at, Submitted(), job)
                    revision = await self._bus.job_store.create(key, recorded)
            except RevisionConflict:
                # Somebody was faster with the same name: that request is the one to be compared with.
                return await self.submit(
                    owner,
                    body,
                    job_id=job_id,
                    idempotency_key=idempotency_key,
                    trace_id=trace_id,
                    request_id=request_id,
                )
        entry = VersionedRecord(revision, recorded)
        self._after_write(entry)
        return AcceptedSubmission(entry, replayed=False)

    async def resubmit(self, ended: VersionedRecord, body: dict[str, Any]) -> bool:
        """Begin the next round of a job that has ended, with `body` in place of the request that made it.

        False: the job was changed since `ended` was read. It is one write, so a crash leaves the old round or the new.
        """
        key = ended.record.job.key
        with translate_errors():
            try:
                with self._admission.quotas.count_submit(key):
                    admitted = await self._admission.admit(key, request_digest(body), body, None)
                    recorded = resubmission_record(ended.record.job, admitted)
                    revision = await self._bus.job_store.update(key, recorded, ended.revision)
            except RevisionConflict:
                return False
        self._after_write(VersionedRecord(revision, recorded))
        return True

    async def validate(self, body: dict[str, Any]) -> None:
        """Raises Refused for what no uploaded file can make acceptable, so that none is kept for it."""
        await self._admission.validate(body)

    def _choose_id(self, owner: str, job_id: str | None, idempotency_key: str | None) -> str:
        if job_id is not None:
            return check_job_id(job_id)
        if idempotency_key is not None:
            return derive_job_id(owner, idempotency_key)
        return make_uuid7(int(self._clock().timestamp() * 1000), self._entropy(10))

    async def read(self, key: JobKey) -> VersionedRecord:
        """The job as it is. Refused `not_found`: there is none of that owner."""
        with translate_errors():
            entry = await self._bus.job_store.read(key)
        if entry is None:
            raise ProblemError("not_found", f"there is no job {key.id}")
        return entry

    async def read_history(self, key: JobKey) -> list[HistoryRow]:
        """The last 64 events, oldest first. Refused `not_found`."""
        await self.read(key)
        with translate_errors():
            entries = await self._bus.job_store.history(key)
        return [_to_history_row(entry) for entry in entries]

    async def cancel(self, key: JobKey, *, only_waiting: bool = False) -> VersionedRecord:
        """End a waiting job now, ask for the end of a running one. Refused `job_final`, `not_found`.

        `only_waiting`: one that has started, or ended, is left as it is.
        """
        entry = await self._transition(key, _cancel_waiting_event if only_waiting else _cancel_event)
        job = entry.record.job
        if job.status is Status.CANCELLED:
            await self._call_broker(self._bus.job_queue.remove, job.pointer)
        elif job.claim is not None:
            await self._call_broker(self._bus.host_nudges.nudge, job.claim.host, key)
        return entry

    async def retry(self, key: JobKey) -> VersionedRecord:
        """Begin another round with the same inputs.

        Refused `job_not_final`, `job_final` (it succeeded), `deadline_passed`, `asset_missing`, `not_found`,
        `quota_exceeded`.
        """
        await self._readiness.check()
        with self._admission.quotas.count_submit(key, is_new=False):
            entry = await self._transition(key, self._retry_event)
        self._after_write(entry)
        return entry

    async def delete(self, key: JobKey) -> DeletedJob:
        """Remove an ended job: record, feed, and outputs and logs that nothing else names. Refused `job_not_final`."""
        with translate_errors():
            entry = await self.read(key)
            if entry.record.job.status not in FINAL_STATUSES:
                raise ProblemError("job_not_final", f"the job is {entry.record.job.status}: cancel it first")
            kept = [*await self._bus.job_store.history(key), entry]
            made = {digest for past in kept for digest in result_digests(past.record.job)}
            await self._bus.job_store.delete(key, entry.revision)
            await self._bus.feed.delete(*key)
            await forget_deliveries(self._bus, key)
            await self._index.wait_until_deleted(key)
            return DeletedJob(tuple(await self._assets.drop_unreferenced(key.owner, made)))

    async def _retry_event(self, job: Job) -> JobEvent | None:
        if job.status not in FINAL_STATUSES:
            raise ProblemError("job_not_final", f"the job is {job.status}: only one that has ended can be tried again")
        if job.status is Status.SUCCEEDED:
            raise ProblemError("job_final", "the job has succeeded: submit a new one to run it again")
        if job.deadline is not None and job.deadline <= self._clock():
            raise ProblemError("deadline_passed", "the job's deadline has passed: submit a new one")
        # What it still waited for when it ended it waits for again.
        missing = await self._assets.find_missing(job.owner, input_digests(job) - set(job.missing))
        if missing:
            raise asset_missing_problem(missing)
        return Retried()

    async def _transition(self, key: JobKey, decide: Callable[[Job], Awaitable[JobEvent | None]]) -> VersionedRecord:
        """Read, let `decide` choose the event for the job (None: leave it), write; again when somebody was faster."""
        with translate_errors():
            for _ in range(_CONFLICT_RETRY_LIMIT):
                entry = await self.read(key)
                event = await decide(entry.record.job)
                if event is None:
                    return entry
                recorded = next_record(entry.record.job, event, self._clock())
                try:
                    revision = await self._bus.job_store.update(key, recorded, entry.revision)
                except RevisionConflict:
                    continue
                self._index.record_own_write(key.owner, revision)
                return VersionedRecord(revision, recorded)
            raise RevisionConflict(f"{key.owner}/{key.id} changed {_CONFLICT_RETRY_LIMIT} times meanwhile")

    def _after_write(self, entry: VersionedRecord) -> None:
        self._index.record_own_write(entry.record.job.owner, entry.revision)
        self._publish_window.publish_soon(entry.record.job)

    async def _call_broker(self, call: Callable[..., Any], *about: object) -> None:
        """The record has been written, so what follows from it must not fail the request."""
        try:
            await call(*about)
        except BusError as error:
            _log.warning("left_to_reconciler", error=str(error))


async def _cancel_event(job: Job) -> JobEvent | None:
    if job.status in FINAL_STATUSES:
        raise ProblemError("job_final", f"the job has already ended: {job.status}")
    if job.status is Status.CANCELLING:
        return None
    return CancelRequested() if job.status is Status.RUNNING else Cancelled()


async def _cancel_waiting_event(job: Job) -> JobEvent | None:
    return Cancelled() if job.status in WAITING_STATUSES else None


def _existing_submission(known: VersionedRecord, digest: str, taken: str) -> AcceptedSubmission:
    if known.record.job.request_digest != digest:
        raise ProblemError(
            taken, "another request was accepted under this name: use a new one, or send the same body again"
        )
    return AcceptedSubmission(known, replayed=True)


def _to_history_row(entry: VersionedRecord) -> HistoryRow:
    return HistoryRow(entry.revision, entry.record.at, event_to_dict(entry.record.event), entry.record.job.status)


# MERGED edge/services/sameness.py: A job that came in other words, or by another door, under a code it already has:
# the same work is the same job.


async def submit_with_id(
    intake: JobService, records: JobStore, catalog: EndpointRegistry, key: JobKey, body: dict[str, Any], **named: str
) -> AcceptedSubmission:
    """`JobService.submit` under a code that the client chose, `named` being more for it.

    A job that is there under that code is answered when it is the same work. Raises ProblemError as
    `JobService.submit` does.
    """
    try:
        return await intake.submit(key.owner, body, job_id=key.id, **named)
    except ProblemError as refused:
        if refused.code != "conflict":
            raise
        with translate_errors():
            past = await records.history(key)
        if not past or not await is_equivalent_request(catalog, past, body):
            raise
        return AcceptedSubmission(past[-1], replayed=True)


async def is_equivalent_request(
    catalog: EndpointRegistry, past: Sequence[VersionedRecord], body: dict[str, Any]
) -> bool:
    """Whether `body` asks for the work of the job whose revisions `past` holds.

    The endpoint and the input count, its defaults filled in, files by their digests; limits, priority and tags do not.
    The input as it was since the last submit counts: a file that was fetched has taken the place of its URL. Raises
    Refused.
    """
    submission = decode_submission(body)
    endpoint = catalog.get(submission.endpoint)
    given = (await validate_input(endpoint, submission.input)).input
    begun = max((n for n, entry in enumerate(past) if isinstance(entry.record.event, Submitted)), default=0)
    jobs = (entry.record.job for entry in past[begun:])
    return any(job.endpoint == endpoint.name and job.input == given for job in jobs)


# MERGED edge/services/batches.py: Many submits in one request: each is accepted or rejected by itself.


BATCH_LIMIT = 1000  # jobs of one request
SUBMIT_CONCURRENCY_LIMIT = 16


class RejectedSubmission(Struct, frozen=True):
    """One that was not accepted: which of the request, from 0, and why."""

    index: int
    problem: Problem


class BatchResult(Struct, frozen=True):
    """What became of a batch; both in the order of the request."""

    accepted: tuple[AcceptedSubmission, ...]
    rejected: tuple[RejectedSubmission, ...]


async def submit_batch(
    intake: JobService,
    owner: str,
    bodies: Sequence[Any],
    *,
    idempotency_key: str | None = None,
    trace_id: str | None = None,
) -> BatchResult:
    """Submit each of `bodies`. With an idempotency key the same batch again is the same jobs, one by one.

    Raises Refused `input_invalid` when there are more than BATCH, or none.
    """
    if not 0 < len(bodies) <= BATCH_LIMIT:
        raise input_invalid_problem(
            FieldError("$.jobs", f"a batch has 1 to {BATCH_LIMIT} jobs, this one {len(bodies)}")
        )
    results: list[AcceptedSubmission | Problem | None] = [None] * len(bodies)
    places = CapacityLimiter(SUBMIT_CONCURRENCY_LIMIT)

    async def submit(index: int, body: Any) -> None:
        async with places:
            try:
                if not isinstance(body, dict):
                    raise input_invalid_problem(FieldError(f"$.jobs[{index}]", "is no object"))
                key = None if idempotency_key is None else f"{idempotency_key}\n{index}"
                results[index] = await intake.submit(owner, body, idempotency_key=key, trace_id=trace_id)
            except ProblemError as error:
                results[index] = error.problem

    async with create_task_group() as tasks:
        for index, body in enumerate(bodies):
            tasks.start_soon(submit, index, body)
    return BatchResult(
        tuple(result for result in results if isinstance(result, AcceptedSubmission)),
        tuple(RejectedSubmission(index, result) for index, result in enumerate(results) if isinstance(result, Problem)),
    )
