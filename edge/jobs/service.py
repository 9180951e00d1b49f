"""The operations of owners on jobs: submit, cancel, retry, delete and read.

Each write is a compare-and-set on the record. A step after the write (publish the pointer to JOBS, nudge the host) may
fail: the reconciler repeats it.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import structlog
from msgspec import Struct, structs

from bus.compare_and_set import transition
from bus.interface import Bus, BusError, RevisionConflict, VersionedRecord, forget_deliveries
from bus.spans import NO_SPANS, OpenSpan, SpanRecorder, current_traceparent, span
from edge.assets.service import AssetService
from edge.core.clock import Clock
from edge.core.concurrency import gather_bounded, translate_errors
from edge.core.metrics import EdgeMetrics
from edge.core.validation import asset_missing_problem, input_invalid_problem
from edge.index.index import JobIndex
from edge.index.rows import input_digests, result_digests
from edge.jobs.publish_window import PublishWindow
from edge.jobs.submission import Admission, check_job_id
from schemas.events import Cancelled, CancelRequested, JobEvent, JobRecord, Retried, Submitted, event_to_dict
from schemas.job import FINAL_STATUSES, WAITING_STATUSES, Job, JobKey, Status, request_digest
from schemas.job_view import HistoryRow
from schemas.lifecycle import resubmission_record
from schemas.problems import FieldError, Problem, ProblemError

BATCH_LIMIT = 1000  # jobs of one request
SUBMIT_CONCURRENCY_LIMIT = 16

_log = structlog.get_logger()


class AcceptedSubmission(Struct, frozen=True):
    """An accepted job; its record is durable. `replayed`: an earlier request has created the job."""

    entry: VersionedRecord
    replayed: bool


class ComparedSubmission(NamedTuple):
    """A job under the wanted id. `is_equivalent`: its work is that of the request, as for a new job."""

    submission: AcceptedSubmission
    is_equivalent: bool


class DeletedJob(Struct, frozen=True):
    """The result of a deletion: the digests of the outputs and logs that were deleted with the job."""

    assets: tuple[str, ...]


class JobService:
    """The operations on jobs. Every method raises ProblemError."""

    def __init__(  # noqa: PLR0913 - the services that it calls
        self,
        *,
        bus: Bus,
        admission: Admission,
        assets: AssetService,
        index: JobIndex,
        publish_window: PublishWindow,
        clock: Clock,
        metrics: EdgeMetrics,
        spans: SpanRecorder = NO_SPANS,
    ) -> None:
        self._spans = spans
        self._bus = bus
        self._admission = admission
        self._assets = assets
        self._index = index
        self._publish_window = publish_window
        self._clock = clock
        self._metrics = metrics

    async def submit(  # noqa: PLR0913 - each is one property of the request
        self,
        owner: str,
        body: dict[str, Any],
        *,
        job_id: str | None = None,
        idempotency_key: str | None = None,
        trace_id: str | None = None,
        request_id: str = "",
    ) -> AcceptedSubmission:
        """Create the job of `body`, or return the job that an equal request has created. The record is durable.

        `job_id` or `idempotency_key` identify the request; without both, each call creates a job. `request_id` is
        stored in the record: the gateway puts it into its messages about the job.
        """
        may_exist = job_id is not None or idempotency_key is not None
        with self._counted_refusals():
            while True:
                key = JobKey(owner, self._admission.choose_id(owner, job_id, idempotency_key))
                submission = await self._create_or_find(key, body, trace_id, request_id, may_exist=may_exist)
                if may_exist or not submission.replayed:  # else the generated id is in use: generate another one
                    break
            if not _is_of_request(submission, body):
                raise id_in_use("conflict" if job_id is not None else "idempotency_mismatch")
        self._count_submission(submission)
        return submission

    async def submit_equivalent(
        self, key: JobKey, body: dict[str, Any], *, trace_id: str | None = None, request_id: str = ""
    ) -> AcceptedSubmission:
        """Create the job `key` from `body`, as `submit` does; or return the existing job if its work is the same.

        Raises ProblemError `conflict` if the existing job does other work.
        """
        compared = await self.submit_or_compare(key, body, trace_id=trace_id, request_id=request_id)
        if not compared.is_equivalent:
            with self._counted_refusals():
                raise id_in_use("conflict")
        return compared.submission

    async def submit_or_compare(
        self, key: JobKey, body: dict[str, Any], *, trace_id: str | None = None, request_id: str = ""
    ) -> ComparedSubmission:
        """Create the job `key` from `body`, as `submit` does; or compare the existing job with `body`."""
        with self._counted_refusals():
            compared = await self._create_or_compare(key, body, trace_id, request_id)
        if compared.is_equivalent:
            self._count_submission(compared.submission)
        return compared

    async def _create_or_compare(
        self, key: JobKey, body: dict[str, Any], trace_id: str | None, request_id: str
    ) -> ComparedSubmission:
        check_job_id(key.id)
        submission = await self._create_or_find(key, body, trace_id, request_id, may_exist=True)
        if _is_of_request(submission, body):
            return ComparedSubmission(submission, is_equivalent=True)
        with translate_errors():
            history = await self._bus.job_store.history(key)
        if not history:  # deleted since it was found
            return ComparedSubmission(submission, is_equivalent=False)
        is_equivalent = await self._admission.is_equivalent(history, body)
        return ComparedSubmission(AcceptedSubmission(history[-1], replayed=True), is_equivalent)

    def _submit_span(self, key: JobKey) -> AbstractContextManager[OpenSpan]:
        return span(self._spans, "submit", current_traceparent(), owner=key.owner, job_id=key.id)

    async def _create_or_find(
        self, key: JobKey, body: dict[str, Any], trace_id: str | None, request_id: str, *, may_exist: bool
    ) -> AcceptedSubmission:
        """Create the job `key` from `body`; or return the existing job, even if another request created it."""
        with translate_errors():
            existing = await self._bus.job_store.read(key) if may_exist else None
            if existing is not None:
                return AcceptedSubmission(existing, replayed=True)
            try:
                with self._admission.quotas.count_submit(key), self._submit_span(key) as submitting:
                    admitted = await self._admission.admit(key, request_digest(body), body, trace_id)
                    job = structs.replace(admitted, request_id=request_id, traceparent=submitting.traceparent)
                    record = JobRecord(job.created_at, Submitted(), job)
                    revision = await self._bus.job_store.create(key, record)
            except RevisionConflict:  # a concurrent request has created the job
                existing = await self._bus.job_store.read(key)
                if existing is None:  # and another one has deleted it
                    raise
                return AcceptedSubmission(existing, replayed=True)
        entry = VersionedRecord(revision, record)
        self._after_write(entry)
        return AcceptedSubmission(entry, replayed=False)

    async def resubmit(self, ended: VersionedRecord, body: dict[str, Any]) -> bool:
        """Start the next round of a finished job, with `body` in place of the original request.

        Returns False if the job was changed since `ended` was read. It is a single write, so that a crash leaves either
        the old round or the new one.
        """
        key = ended.record.job.key
        with self._counted_refusals(), translate_errors():
            try:
                with self._admission.quotas.count_submit(key):
                    admitted = await self._admission.admit(key, request_digest(body), body, None)
                    record = resubmission_record(ended.record.job, admitted)
                    revision = await self._bus.job_store.update(key, record, ended.revision)
            except RevisionConflict:
                return False
        entry = VersionedRecord(revision, record)
        self._after_write(entry)
        self._count_submission(AcceptedSubmission(entry, replayed=False))
        return True

    @contextmanager
    def _counted_refusals(self) -> Iterator[None]:
        """Count a ProblemError that leaves the block."""
        try:
            yield
        except ProblemError as error:
            self._metrics.submit_refusals.inc(error.code)
            raise

    def _count_submission(self, submission: AcceptedSubmission) -> None:
        job = submission.entry.record.job
        if submission.replayed:
            self._metrics.submit_replays.inc(job.endpoint)
        else:
            self._metrics.count_submit(job.owner, job.endpoint)

    async def validate(self, body: dict[str, Any]) -> None:
        """Check what does not depend on uploaded files, so that no file is stored for a request that must fail."""
        await self._admission.validate(body)

    async def read(self, key: JobKey) -> VersionedRecord:
        """Return the record. Raises ProblemError `not_found` if the owner has no such job."""
        with translate_errors():
            entry = await self._bus.job_store.read(key)
        if entry is None:
            raise _job_not_found(key)
        return entry

    async def read_history(self, key: JobKey) -> list[HistoryRow]:
        """Return the last 64 events, oldest first. Raises ProblemError `not_found`."""
        await self.read(key)
        with translate_errors():
            entries = await self._bus.job_store.history(key)
        return [_to_history_row(entry) for entry in entries]

    async def cancel(self, key: JobKey) -> VersionedRecord:
        """Cancel a waiting job at once, request the cancellation of a running one.

        Raises ProblemError `job_final`, `not_found`.
        """
        return await self._cancel(key, _cancel_event)

    async def cancel_unfinished(self, key: JobKey) -> VersionedRecord:
        """Do what `cancel` does; return a job that has ended unchanged. Raises ProblemError `not_found`."""
        return await self._cancel(key, _cancel_unfinished_event)

    async def cancel_waiting(self, key: JobKey) -> VersionedRecord:
        """Cancel the job if it has not started; else return it unchanged. Raises ProblemError `not_found`."""
        return await self._cancel(key, _cancel_waiting_event)

    async def _cancel(self, key: JobKey, decide: Callable[[Job], Awaitable[JobEvent | None]]) -> VersionedRecord:
        entry = await self._transition(key, decide)
        job = entry.record.job
        if job.status is Status.CANCELLED:
            await self._try_followup(key, "remove_pointer", self._bus.job_queue.remove, job.pointer)
        elif job.claim is not None and job.status is Status.CANCELLING:
            await self._try_followup(key, "nudge_host", self._bus.host_nudges.nudge, job.claim.host, key)
        return entry

    async def retry(self, key: JobKey) -> VersionedRecord:
        """Start another round of a finished job with the same input.

        Raises ProblemError `job_not_final`, `job_final` (it succeeded), `deadline_passed`, `asset_missing`,
        `not_found`, `quota_exceeded`.
        """
        await self._admission.readiness.check()
        with self._admission.quotas.count_submit(key, is_new=False):
            entry = await self._transition(key, self._retry_event)
        self._after_write(entry)
        return entry

    async def delete(self, key: JobKey) -> DeletedJob:
        """Delete a finished job: its record, its feed, and outputs and logs that no other job uses.

        Raises ProblemError `job_not_final`, `not_found`.
        """
        with translate_errors():
            entry = await self.read(key)
            if entry.record.job.status not in FINAL_STATUSES:
                raise ProblemError("job_not_final", f"the job is {entry.record.job.status}: cancel it first")
            revisions = [*await self._bus.job_store.history(key), entry]
            results = {digest for past in revisions for digest in result_digests(past.record.job)}
            await self._bus.job_store.delete(key, entry.revision)
            await self._bus.feed.delete(*key)
            await forget_deliveries(self._bus, key)
            await self._index.wait_until_deleted(key)
            return DeletedJob(tuple(await self._assets.drop_unreferenced(key.owner, results)))

    async def _retry_event(self, job: Job) -> JobEvent | None:
        if job.status not in FINAL_STATUSES:
            raise ProblemError("job_not_final", f"the job is {job.status}: only a finished job can be retried")
        if job.status is Status.SUCCEEDED:
            raise ProblemError("job_final", "the job has succeeded: submit a new one to run it again")
        if job.deadline is not None and job.deadline <= self._clock():
            raise ProblemError("deadline_passed", "the job's deadline has passed: submit a new one")
        # The new round waits for the files that the job was still waiting for when it ended.
        missing = await self._assets.find_missing(job.owner, input_digests(job) - set(job.missing))
        if missing:
            raise asset_missing_problem(missing)
        return Retried()

    async def _transition(self, key: JobKey, decide: Callable[[Job], Awaitable[JobEvent | None]]) -> VersionedRecord:
        """Write the event that `decide` chooses for the job (None: no change); return the record as it is now."""
        with translate_errors():
            result = await transition(self._bus.job_store, key, decide, lambda _: self._clock())
        if result.entry is None:
            raise _job_not_found(key)
        if result.is_written:
            self._index.record_own_write(key.owner, result.entry.revision)
        return result.entry

    def _after_write(self, entry: VersionedRecord) -> None:
        self._index.record_own_write(entry.record.job.owner, entry.revision)
        self._publish_window.publish_soon(entry.record.job)

    async def _try_followup(self, key: JobKey, name: str, call: Callable[..., Any], *arguments: object) -> None:
        """Make a call that follows a write. Its failure must not fail the request: the reconciler repeats it."""
        try:
            await call(*arguments)
        except BusError as error:
            _log.warning("followup_failed", call=name, owner=key.owner, job_id=key.id, error=str(error))


def _job_not_found(key: JobKey) -> ProblemError:
    return ProblemError("not_found", f"job {key.id} does not exist")


async def _cancel_event(job: Job) -> JobEvent | None:
    if job.status in FINAL_STATUSES:
        raise ProblemError("job_final", f"the job has already ended: {job.status}")
    return await _cancel_unfinished_event(job)


async def _cancel_unfinished_event(job: Job) -> JobEvent | None:
    if job.status in FINAL_STATUSES or job.status is Status.CANCELLING:
        return None
    return CancelRequested() if job.status is Status.RUNNING else Cancelled()


async def _cancel_waiting_event(job: Job) -> JobEvent | None:
    return Cancelled() if job.status in WAITING_STATUSES else None


def _is_of_request(submission: AcceptedSubmission, body: dict[str, Any]) -> bool:
    return not submission.replayed or submission.entry.record.job.request_digest == request_digest(body)


def id_in_use(code: str) -> ProblemError:
    """Return the problem `code` for an id whose job does other work than the request."""
    return ProblemError(
        code, "another request was accepted with this id or key: use a new one, or send the same body again"
    )


def _to_history_row(entry: VersionedRecord) -> HistoryRow:
    return HistoryRow(entry.revision, entry.record.at, event_to_dict(entry.record.event), entry.record.job.status)


class RejectedSubmission(Struct, frozen=True):
    """A job of a batch that was not accepted: its index in the request, from 0, and the reason."""

    index: int
    problem: Problem


class BatchResult(Struct, frozen=True):
    """The result of a batch; both lists are in the order of the request."""

    accepted: tuple[AcceptedSubmission, ...]
    rejected: tuple[RejectedSubmission, ...]


async def submit_batch(
    jobs: JobService,
    owner: str,
    bodies: Sequence[Any],
    *,
    idempotency_key: str | None = None,
    trace_id: str | None = None,
) -> BatchResult:
    """Submit each of `bodies`; each is accepted or rejected by itself.

    With an idempotency key, the same batch again returns the same jobs. Raises ProblemError `input_invalid` if the
    batch is empty or has more than BATCH_LIMIT jobs.
    """
    if not 0 < len(bodies) <= BATCH_LIMIT:
        raise input_invalid_problem(
            FieldError("$.jobs", f"a batch has 1 to {BATCH_LIMIT} jobs, this one has {len(bodies)}")
        )

    async def submit(index: int, body: Any) -> AcceptedSubmission | Problem:
        try:
            if not isinstance(body, dict):
                raise input_invalid_problem(FieldError(f"$.jobs[{index}]", "is not an object"))
            key = None if idempotency_key is None else f"{idempotency_key}\n{index}"
            return await jobs.submit(owner, body, idempotency_key=key, trace_id=trace_id)
        except ProblemError as error:
            return error.problem

    calls = [partial(submit, index, body) for index, body in enumerate(bodies)]
    results = await gather_bounded(calls, SUBMIT_CONCURRENCY_LIMIT)
    return BatchResult(
        tuple(result for result in results if isinstance(result, AcceptedSubmission)),
        tuple(RejectedSubmission(index, result) for index, result in enumerate(results) if isinstance(result, Problem)),
    )
