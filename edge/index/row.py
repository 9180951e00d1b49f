"""The values by which the index sorts, counts and finds a record, and facts derived from a job. Pure."""

from datetime import datetime, timedelta
from typing import NamedTuple

from bus.interface import VersionedRecord
from edge.core.clock import micros
from edge.index.queue_ranks import QueueKey
from schemas.asset import DIGEST_SCHEME, is_digest
from schemas.ids import JobKey
from schemas.job import Job, Pointer
from schemas.status import FINAL_STATUSES, WAITING_STATUSES, Priority, Status


class IndexRow(NamedTuple):
    """One job in the index. Times are microseconds since 1970; `queued_us` is 0 before the job is queued."""

    owner: str
    id: str
    revision: int
    status: Status
    endpoint: str
    pool: str
    priority: Priority
    round: int
    queued_us: int
    backoff_us: int | None

    @property
    def key(self) -> JobKey:
        return JobKey(self.owner, self.id)

    @property
    def pointer(self) -> Pointer:
        return Pointer(self.pool, self.priority, self.owner, self.id, self.round)

    @property
    def queue_key(self) -> QueueKey:
        return QueueKey(self.owner, self.pool, self.priority)

    def is_in_backoff(self, now_us: int) -> bool:
        """Return whether the job waits for the end of its backoff. Such a job takes no place in its owner's window."""
        return self.status is Status.QUEUED and self.backoff_us is not None and self.backoff_us > now_us


class RowChange(NamedTuple):
    """One change of the index. A new job has no `before`, a deleted one no `after`."""

    before: IndexRow | None
    after: IndexRow | None


def make_index_row(entry: VersionedRecord) -> IndexRow:
    """Return the index row of a record."""
    job = entry.record.job
    return IndexRow(
        job.owner,
        job.id,
        entry.revision,
        job.status,
        job.endpoint,
        job.pool,
        job.priority,
        job.round,
        micros(job.queued_at) if job.queued_at else 0,
        micros(job.backoff_until) if job.backoff_until else None,
    )


def expires_at(job: Job) -> datetime | None:
    """Return when a job that has never started expires: `start_timeout_s` or its deadline. None: it cannot expire."""
    if job.status not in WAITING_STATUSES or job.attempt:
        return None
    since = max(moment for moment in (job.created_at, job.not_before, job.retried_at) if moment is not None)
    started_by = since + timedelta(seconds=job.policy.start_timeout_s)
    return started_by if job.deadline is None else min(started_by, job.deadline)


def input_due_at(job: Job) -> datetime | None:
    """Return when a job that lacks input fails: `input_timeout_s` after submit or retry. None: it lacks no input."""
    if job.status is not Status.SCHEDULED or not job.lacks_input:
        return None
    return (job.retried_at or job.created_at) + timedelta(seconds=job.policy.input_timeout_s)


def holder(job: Job) -> str | None:
    """Return the host of the last claim, released or not: it may still write the end. None for a finished job."""
    return job.claim.host if job.claim is not None and job.status not in FINAL_STATUSES else None


def input_digests(job: Job) -> set[str]:
    """Return the digests of the assets in the input, found by their form: the endpoint may not exist any more."""
    found: set[str] = set()
    pending: list[object] = [job.input]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif (
            isinstance(value, str) and value.startswith(DIGEST_SCHEME) and is_digest(value.removeprefix(DIGEST_SCHEME))
        ):
            found.add(value.removeprefix(DIGEST_SCHEME))
    return found


def result_digests(job: Job) -> set[str]:
    """Return the digests of the assets that the job made: its outputs and its stored log."""
    files = () if job.output is None else job.output.files
    candidates = [*(file.sha256 for file in files), (job.log or "").removeprefix(DIGEST_SCHEME)]
    return {digest for digest in candidates if is_digest(digest)}
