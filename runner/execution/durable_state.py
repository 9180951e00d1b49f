"""The durable state of an attempt: its claim in the job's record, and its checkpoint on this host's disk.

Only the runner process whose claim is in the record may write about the attempt: the claim is a fence. JetStream acks
are not fenced, so messages play no part here. Every write is a compare-and-set on the latest revision. After a conflict
the record is read again: if the claim is still ours, decide again; otherwise the claim is lost.

The checkpoint is what the next runner process needs in order to continue the attempt.
"""

import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct, field
from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from bus.compare_and_set import transition
from bus.interface import BrokerUnreachable, MessageTooLarge, RevisionConflict, VersionedRecord
from bus.secret_files import atomic_write
from runner.context import RunnerContext, StartTime, Uptime
from runner.engines.port import OutputCursor
from runner.execution.output_filters import StderrTail
from runner.execution.verdict import StopReason
from schemas.container_protocol import ErrorLine
from schemas.events import Adopted, FeedMessage, JobEvent, JobRecord, encode_record
from schemas.job import (
    ACTIVE_STATUSES,
    RECORD_LIMIT_BYTES,
    Claim,
    Job,
    JobKey,
    JobMetric,
    Status,
)
from schemas.lifecycle import JITTERED_BACKOFF_LIMIT, next_record

T = TypeVar("T")

# A NAKed message is invisible to every runner until its delay ends, so the delay is limited.
START_DELAY_LIMIT_S = JITTERED_BACKOFF_LIMIT.total_seconds()
CHECKPOINT_FILE = "journal.json"


class Checkpoint(Struct, frozen=True, kw_only=True):
    """The content of the checkpoint file.

    `started_at` and `started_up` are when the container began its job, on two clocks. `cursor` is where to
    resume the output; all lines before it are processed. Of the lines after it, those up to `log_offset` and
    `progress_offset` were published. `log_bytes` counts the published log.

    `end_code` is the exit code of a job that ended in a container that runs on.

    `unpublished` are messages that may not have reached the broker. `error_line` is the last error line, `tail` the
    last lines of stderr. `stop_reason` is why the runner stops the container. `disk_excess` says why the job used too
    much disk, if that is the reason.
    """

    started_at: datetime | None = None
    started_up: Uptime | None = None
    stop_reason: StopReason | None = field(default=None, name="intent")
    cursor: OutputCursor | None = field(default=None, name="mark")
    log_offset: int = 0
    progress_offset: int = 0
    log_bytes: int = 0
    unpublished: tuple[FeedMessage, ...] = field(default=(), name="pending")
    error_line: ErrorLine | None = field(default=None, name="said")
    metrics: tuple[JobMetric, ...] = ()
    disk_excess: str | None = field(default=None, name="disk")
    tail: StderrTail = StderrTail()
    end_code: int | None = field(default=None, name="end")

    @property
    def start_time(self) -> StartTime | None:
        """Return when the container began its job."""
        return None if self.started_at is None else StartTime(self.started_at, self.started_up)


_decode_checkpoint = msgspec.json.Decoder(Checkpoint).decode


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint in `folder`; a blank one if it is missing or damaged: the output is then read again."""
    try:
        return _decode_checkpoint((folder / CHECKPOINT_FILE).read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, msgspec.DecodeError):
        return Checkpoint()


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint atomically, in a folder that may be new.

    Not synced: it is of use only while the host, and so the container, stays up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / CHECKPOINT_FILE, msgspec.json.encode(checkpoint), sync=False)


class CheckpointFile:
    """The checkpoint of a job of this runner process: its current content, and the one way to change it.

    A file that cannot be written is logged, and the job goes on. If this process ends before the disk has room again,
    the next one reads some output twice.
    """

    def __init__(self, folder: Path, log: FilteringBoundLogger) -> None:
        self._folder = folder
        self._log = log
        self._lock = anyio.Lock()
        self.current = Checkpoint()

    async def load(self) -> None:
        """Load what an earlier runner process wrote. A new attempt has nothing to load."""
        self.current = await anyio.to_thread.run_sync(read_checkpoint, self._folder)

    async def update(self, **changes: Any) -> None:
        """Change fields of the checkpoint; return after the file was written, or could not be."""
        try:
            await self.update_then(_do_nothing, **changes)
        except OSError as error:
            self._log.warning("checkpoint_write_failed", error=str(error))

    async def update_then(self, then: Callable[[], T], **changes: Any) -> T:
        """Change fields, then call `then` in the same thread: an action that must not precede the write.

        Return its result.

        Raises OSError if the file cannot be written; `then` was not called.
        """
        async with self._lock:
            self.current = replace(self.current, **changes)
            return await anyio.to_thread.run_sync(_write_then, self._folder, self.current, then)


def _write_then(folder: Path, checkpoint: Checkpoint, then: Callable[[], T]) -> T:
    write_checkpoint(folder, checkpoint)
    return then()


def _do_nothing() -> None:
    """Do nothing: the write needs no action after it."""


class ClaimLost(Exception):
    """Somebody else has the job now: stop the container, and do not end the job."""


class RunnerRecords:
    """The records as this runner process writes them: never one that is too large, never one that may have been lost.

    It is the store for `bus.compare_and_set.transition`. `known` is the record as it was last, which the first read
    returns. If it has changed since, the write fails and the record is read.
    """

    def __init__(self, context: RunnerContext, known: VersionedRecord | None = None) -> None:
        self._context = context
        self._known = known

    async def read(self, key: JobKey) -> VersionedRecord | None:
        """Return the last record; None when the job does not exist. Raises BusError, RecordUnreadable."""
        known, self._known = self._known, None
        if known is not None:
            return known
        return await self._context.bus.job_store.read(key)

    async def update(self, key: JobKey, record: JobRecord, revision: int) -> int:
        """Write after `revision` and return the new one.

        Raises RevisionConflict, MessageTooLarge, and other errors of the broker. A write whose answer was lost is
        looked up when the broker is back: it was written, or RevisionConflict is raised.
        """
        data = encode_record(record)
        if len(data) > RECORD_LIMIT_BYTES:
            raise MessageTooLarge(f"the record would have {len(data)} bytes, and the limit is {RECORD_LIMIT_BYTES}")
        try:
            return await self._context.bus.job_store.update(key, record, revision)
        except BrokerUnreachable as error:
            after = await self._context.retry_while_unavailable("record", partial(self.read, key))
            if after is None or encode_record(after.record) != data:
                raise RevisionConflict("the broker went away and did not write it") from error
            return after.revision


async def record_event(context: RunnerContext, entry: VersionedRecord, event: JobEvent) -> VersionedRecord:
    """Append `event` to exactly the record `entry`; return the new record. Raises what `RunnerRecords.update` does."""
    recorded = next_record(entry.record.job, event, _event_time(context, entry.record.job))
    revision = await RunnerRecords(context).update(recorded.job.key, recorded, entry.revision)
    return VersionedRecord(revision, recorded)


async def transition_record(
    context: RunnerContext,
    key: JobKey,
    decide: Callable[[Job], JobEvent | None],
    known: VersionedRecord | None = None,
) -> VersionedRecord | None:
    """Record `decide(job)` for the latest record, decided again after a conflict. None from `decide` changes nothing.

    `known` is the record as it was last, which may save a read. Returns the record as it is then; None if the job does
    not exist. Raises what `RunnerRecords` does.
    """

    async def decide_now(job: Job) -> JobEvent | None:
        return decide(job)

    event_time = partial(_event_time, context)
    # Without a limit of conflicts: a result is never given up.
    records = RunnerRecords(context, known)
    changed = await transition(records, key, decide_now, event_time, conflict_limit=sys.maxsize)
    return changed.entry


def _event_time(context: RunnerContext, job: Job) -> datetime:
    """Return the current time of the host, but never one before the times in the record.

    A host may boot with a clock of 1970. The edge would think that a result of that time had been kept long enough, and
    delete it.
    """
    recorded_times = (job.created_at, job.retried_at, job.queued_at, job.started_at)
    return max(time for time in (context.now(), *recorded_times) if time is not None)


class FencedJob:
    """The right of this runner process to write about one attempt.

    If the attempt was released while we were disconnected, and no other host has claimed it since, it is claimed back.
    `known` is the record with the claim, if this process has just written it. Other processes rarely write it, so the
    next event needs no read.
    """

    def __init__(
        self, context: RunnerContext, key: JobKey, round_: int, claim: Claim, known: VersionedRecord | None = None
    ) -> None:
        self._context = context
        self._key = key
        self._round = round_
        self._claim = claim
        self._known = known

    async def read_job(self, may_claim_back: Callable[[], bool]) -> Job:
        """Return the recorded job if the claim is ours. Raises ClaimLost; BusError if the broker is away.

        `may_claim_back` is asked after each read: a released attempt that must not be claimed back is left as it is.
        """

        def claim_back_if_allowed(job: Job) -> JobEvent | None:
            event = self._claim_back(job)
            return event if may_claim_back() else None

        self._known = None
        return (await self._transition(claim_back_if_allowed)).record.job

    async def record(self, decide: Callable[[Job], JobEvent]) -> Job:
        """Record `decide(job)` for the latest record; return the changed job.

        Retries forever while the broker is away. Raises ClaimLost, MessageTooLarge.
        """
        return await self._context.retry_while_unavailable("record", partial(self._record, decide))

    async def _record(self, decide: Callable[[Job], JobEvent]) -> Job:
        def claim_back_or_decide(job: Job) -> JobEvent:
            return self._claim_back(job) or decide(job)

        while True:
            entry = await self._transition(claim_back_or_decide)
            if not isinstance(entry.record.event, Adopted):
                return entry.record.job

    async def _transition(self, decide: Callable[[Job], JobEvent | None]) -> VersionedRecord:
        known, self._known = self._known, None
        entry = await transition_record(self._context, self._key, decide, known)
        if entry is None:
            raise ClaimLost("the record does not exist any more")
        self._known = entry
        return entry

    def _claim_back(self, job: Job) -> JobEvent | None:
        """Return the event that claims a released attempt back, None if it is claimed. Raises ClaimLost."""
        if job.round != self._round or job.claim != self._claim:
            raise ClaimLost(f"the record is of round {job.round}, claimed by {job.claim}")
        if job.status in ACTIVE_STATUSES:
            return None
        if job.status is not Status.QUEUED:
            raise ClaimLost(f"the job is {job.status}")
        return Adopted(self._claim, self._round)


def start_delay_s(job: Job, now: datetime) -> float:
    """Return the seconds until the queued job may start, 0 if it may start now; START_DELAY_LIMIT_S at most.

    A backoff that ends later than any backoff can was recorded by a clock that was set back since: it is over.
    """
    waits = [] if job.not_before is None else [job.not_before - now]
    if job.backoff_until is not None and job.backoff_until - now <= JITTERED_BACKOFF_LIMIT:
        waits.append(job.backoff_until - now)
    return min(START_DELAY_LIMIT_S, max(0.0, max(waits, default=timedelta(0)).total_seconds()))
