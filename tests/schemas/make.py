"""Sample values for tests of the vocabulary."""

from datetime import UTC, datetime, timedelta
from typing import Any

from schemas import events as e
from schemas.job import Claim, Failure, Job, Output
from schemas.words import Priority, Status

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=5)


def job(status: Status = Status.QUEUED, **changes: Any) -> Job:
    """A job in `status` that has come there legally: one that runs has a claim, one that waits has none."""
    claimed = status not in {Status.SCHEDULED, Status.QUEUED, Status.EXPIRED}
    base: dict[str, Any] = {
        "id": "j1",
        "owner": "ada",
        "endpoint": "echo",
        "pool": "echo",
        "status": status,
        "digest": "d" * 64,
        "input": {"text": "hello"},
        "created_at": NOW,
        "attempt": 1 if claimed else 0,
        "claim": claim(1) if claimed else None,
    }
    return Job(**(base | changes))


def claim(attempt: int, host: str = "gpu-1", incarnation: str = "i1") -> Claim:
    return Claim(host=host, incarnation=incarnation, attempt=attempt)


def failure(code: str = "internal") -> Failure:
    return Failure(code, "it broke", "image", retryable=False)


def event(kind: type[e.Fact], subject: Job) -> Any:
    """An event of `kind` that its guard lets pass for `subject` where any can."""
    made = {
        e.Submitted: e.Submitted(),
        e.Supplied: e.Supplied(*subject.missing[:1] or ("",)),
        e.Queued: e.Queued(),
        e.Started: e.Started(claim(subject.attempt + 1)),
        e.Adopted: e.Adopted(claim(subject.attempt, incarnation="i2"), subject.round),
        e.Released: e.Released("host_lost"),
        e.Reprioritised: e.Reprioritised(Priority.NORMAL),
        e.CancelRequested: e.CancelRequested(),
        e.Cancelled: e.Cancelled(),
        e.Succeeded: e.Succeeded(Output()),
        e.Failed: e.Failed(failure("host_fault_repeated")),
        e.Expired: e.Expired("deadline"),
        e.Retried: e.Retried(),
    }
    return made[kind]
