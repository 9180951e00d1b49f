"""Records and notes that say nothing in particular."""

from datetime import UTC, datetime

from schemas.events import Recorded, Submitted
from schemas.feed import LogEnd, LogNote, Place, ProgressNote
from schemas.job import Job, JobKey
from schemas.words import Priority, Status

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def recorded(
    job_id: str = "one", *, owner: str = "me", status: Status = Status.QUEUED, text: str = "", round_: int = 1
) -> Recorded:
    """A submitted job; `text` makes records tell apart."""
    job = Job(
        id=job_id,
        owner=owner,
        endpoint="echo",
        pool="echo",
        status=status,
        digest="0" * 64,
        input={"text": text},
        priority=Priority.NORMAL,
        created_at=NOW,
        round=round_,
    )
    return Recorded(NOW, Submitted(), job)


def key(job_id: str = "one", owner: str = "me") -> JobKey:
    return JobKey(owner, job_id)


def progress(offset: int, fraction: float = 0.5, *, attempt: int = 1) -> ProgressNote:
    return ProgressNote(Place(1, attempt, offset), NOW, fraction)


def piece(offset: int, text: str = "hello\n", *, attempt: int = 1) -> LogNote:
    return LogNote(Place(1, attempt, offset), NOW, "stdout", text)


def end(offset: int, *, attempt: int = 1) -> LogEnd:
    return LogEnd(Place(1, attempt, offset), NOW)
