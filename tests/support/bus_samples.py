"""Records and notes that say nothing in particular."""

from datetime import UTC, datetime

from schemas.events import FeedPosition, JobRecord, LogEndMessage, LogMessage, ProgressMessage, Submitted
from schemas.job import Job, JobKey, Priority, Status

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def make_record(
    job_id: str = "one", *, owner: str = "me", status: Status = Status.QUEUED, text: str = "", round_: int = 1
) -> JobRecord:
    """A submitted job; `text` makes records tell apart."""
    job = Job(
        id=job_id,
        owner=owner,
        endpoint="echo",
        pool="echo",
        status=status,
        request_digest="0" * 64,
        input={"text": text},
        priority=Priority.NORMAL,
        created_at=NOW,
        round=round_,
    )
    return JobRecord(NOW, Submitted(), job)


def make_key(job_id: str = "one", owner: str = "me") -> JobKey:
    return JobKey(owner, job_id)


def make_progress(offset: int, fraction: float = 0.5, *, attempt: int = 1) -> ProgressMessage:
    return ProgressMessage(FeedPosition(1, attempt, offset), NOW, fraction)


def make_log_piece(offset: int, text: str = "hello\n", *, attempt: int = 1) -> LogMessage:
    return LogMessage(FeedPosition(1, attempt, offset), NOW, "stdout", text)


def make_log_end(offset: int, *, attempt: int = 1) -> LogEndMessage:
    return LogEndMessage(FeedPosition(1, attempt, offset), NOW)
