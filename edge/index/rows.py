"""What the index knows of a record: the values of its row, its position in the queue, and its page of a list. Pure."""

import base64
import binascii
import re
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from msgspec import Struct

from bus.interface import VersionedRecord
from edge.core.clock import micros
from edge.core.validation import input_invalid_problem
from schemas.asset import DIGEST_SCHEME, is_digest
from schemas.job import FINAL_STATUSES, PRIORITIES, WAITING_STATUSES, Job, JobKey, Moment, Pointer, Priority, Status
from schemas.problems import FieldError


class QueueKey(NamedTuple):
    """A queue: the jobs of one owner that wait for the same pool at the same priority."""

    owner: str
    pool: str
    priority: Priority


class QueueRanks:
    """The queued jobs of all queues, each by the microsecond at which it was queued."""

    def __init__(self) -> None:
        self._times_by_queue: defaultdict[tuple[str, Priority], dict[str, array[int]]] = defaultdict(dict)
        self._totals: defaultdict[tuple[str, Priority], int] = defaultdict(int)

    def add(self, queue: QueueKey, queued_us: int) -> None:
        """Add a job that was queued at `queued_us`."""
        owners = self._times_by_queue[queue.pool, queue.priority]
        times = owners.setdefault(queue.owner, array("q"))
        times.insert(bisect_left(times, queued_us), queued_us)
        self._totals[queue.pool, queue.priority] += 1

    def remove(self, queue: QueueKey, queued_us: int) -> None:
        """Remove one job that was queued at `queued_us`. Raises ValueError without such a job."""
        owners = self._times_by_queue[queue.pool, queue.priority]
        times = owners.get(queue.owner, array("q"))
        at = bisect_left(times, queued_us)
        if at == len(times) or times[at] != queued_us:
            raise ValueError(f"no job was added to {queue} at {queued_us}")
        del times[at]
        self._totals[queue.pool, queue.priority] -= 1
        if not times:
            del owners[queue.owner]

    def count_pending(self, pools: Iterable[str]) -> int:
        """Return the number of queued jobs of all owners in these pools."""
        return sum(self._totals.get((pool, priority), 0) for pool in pools for priority in PRIORITIES)

    def count_by_pool(self, priorities: Collection[Priority]) -> dict[str, int]:
        """Return the number of queued jobs of all owners with one of these priorities, by pool."""
        counts: Counter[str] = Counter()
        for (pool, priority), total in self._totals.items():
            if priority in priorities:
                counts[pool] += total
        return +counts

    def non_empty_keys(self) -> list[QueueKey]:
        """Return the queues that have jobs."""
        return [QueueKey(owner, *queue) for queue, owners in self._times_by_queue.items() for owner in owners]

    def count_ahead(self, job: Job, window_size: int) -> int:
        """Return how many queued jobs start before `job`, as far as can be predicted.

        Jobs of higher priority start first, then those of the same queue that were queued earlier. Of another owner's
        queue at the same priority: if `job` is in its owner's window, the jobs queued earlier, at most `window_size`.
        After the window the owners take turns, so as many jobs as are ahead in its own queue.
        """
        if job.queued_at is None:
            raise ValueError(f"{job.owner}/{job.id} was never queued")
        since = micros(job.queued_at)
        higher = PRIORITIES[: PRIORITIES.index(job.priority)]
        owners = self._times_by_queue[job.pool, job.priority]
        rank = bisect_left(owners.get(job.owner, array("q")), since)
        ahead = sum(self._totals[job.pool, priority] for priority in higher) + rank
        for owner, times in owners.items():
            if owner == job.owner:
                continue
            ahead += min(bisect_left(times, since), window_size) if rank < window_size else min(len(times), rank)
        return ahead


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


DEFAULT_PAGE_LIMIT = 50
PAGE_LIMIT = 500
_CURSOR = re.compile(r"(?P<created_us>-?[0-9]{1,18})\.(?P<name>.+)\Z", re.DOTALL)  # an integer that SQLite can compare


class JobFilters(Struct, frozen=True):
    """The conditions of a list of jobs; None and empty: no condition.

    `statuses`: any of them. `code`: of the failure. `text`: occurs in the id, the input, a tag's value or the error
    message, in any case. `created_from`: at this time or later. `created_to`: before it.
    """

    statuses: tuple[Status, ...] = ()
    endpoint: str | None = None
    priority: Priority | None = None
    tags: tuple[tuple[str, str], ...] = ()
    code: str | None = None
    text: str | None = None
    created_from: Moment | None = None
    created_to: Moment | None = None


class RecordPage(Struct, frozen=True):
    """One page of a list, newest first. The last page has no `next_cursor`."""

    records: tuple[VersionedRecord, ...]
    next_cursor: str | None


def encode_cursor(created_us: int, name: str) -> str:
    """Return a cursor that names the last row of a page, so that new rows do not shift the next pages."""
    return base64.urlsafe_b64encode(f"{created_us}.{name}".encode()).decode().rstrip("=")


def make_job_cursor(job: Job) -> str:
    """Return the cursor of the page that starts after `job`."""
    return encode_cursor(micros(job.created_at), job.id)


def decode_cursor(text: str) -> tuple[int, str]:
    """Return creation time (µs) and name of the last row of the page before. Raises ProblemError `input_invalid`."""
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (binascii.Error, ValueError):
        decoded = ""
    match = _CURSOR.match(decoded)
    if match is None:
        raise input_invalid_problem(
            FieldError("cursor", "is not a cursor of this server: leave it out to start with the first page")
        )
    return int(match["created_us"]), match["name"]
