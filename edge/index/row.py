"""What the index keeps of a record to sort, count and find it by; the record itself lies beside it."""

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
    """A job's place. Times in microseconds since 1970; `queued_us` 0: not queued yet."""

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
        """Whether it waits out a back-off: such a job does not count in its owner's window."""
        return self.status is Status.QUEUED and self.backoff_us is not None and self.backoff_us > now_us


class RowChange(NamedTuple):
    """One change of the index; None: the job was not there before, or is gone."""

    before: IndexRow | None
    after: IndexRow | None


def make_index_row(entry: VersionedRecord) -> IndexRow:
    """The place of a record."""
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
    """When a job that has not started expires, or None when it cannot any more (PROTOCOLS 1, `start_timeout_s`)."""
    if job.status not in WAITING_STATUSES or job.attempt:
        return None
    since = max(moment for moment in (job.created_at, job.not_before, job.retried_at) if moment is not None)
    started_by = since + timedelta(seconds=job.policy.start_timeout_s)
    return started_by if job.deadline is None else min(started_by, job.deadline)


def input_due_at(job: Job) -> datetime | None:
    """When a job that lacks input fails, or None when it lacks none (`input_timeout_s`, from submit or retry)."""
    if job.status is not Status.SCHEDULED or not job.lacks_input:
        return None
    return (job.retried_at or job.created_at) + timedelta(seconds=job.policy.input_timeout_s)


def holder(job: Job) -> str | None:
    """The host that may still end the job: of its last claim, released or not. None once the job has ended."""
    return job.claim.host if job.claim is not None and job.status not in FINAL_STATUSES else None


def input_digests(job: Job) -> set[str]:
    """Digests of the assets in the input, found by their form: the endpoint may be long gone."""
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
    """Digests of the assets that the job made: outputs and the kept log."""
    files = () if job.output is None else job.output.files
    named = [*(file.sha256 for file in files), (job.log or "").removeprefix(DIGEST_SCHEME)]
    return {digest for digest in named if is_digest(digest)}
