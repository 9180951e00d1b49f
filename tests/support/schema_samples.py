"""Sample values for tests of the vocabulary."""

from datetime import UTC, datetime, timedelta
from typing import Any

from schemas import events as e
from schemas.job import Claim, Job, JobFailure, Output, Priority, Status

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=5)


def make_job(status: Status = Status.QUEUED, **changes: Any) -> Job:
    """A job in `status` that has come there legally: one that runs has a claim, one that waits has none."""
    claimed = status not in {Status.SCHEDULED, Status.QUEUED, Status.EXPIRED}
    base: dict[str, Any] = {
        "id": "j1",
        "owner": "ada",
        "endpoint": "echo",
        "pool": "echo",
        "status": status,
        "request_digest": "d" * 64,
        "input": {"text": "hello"},
        "created_at": NOW,
        "attempt": 1 if claimed else 0,
        "claim": make_claim(1) if claimed else None,
    }
    return Job(**(base | changes))


def make_claim(attempt: int, host: str = "gpu-1", incarnation: str = "i1") -> Claim:
    return Claim(host=host, incarnation=incarnation, attempt=attempt)


def make_failure(code: str = "internal") -> JobFailure:
    return JobFailure(code, "it broke", "image", retryable=False)


def make_event(kind: type[e.JobEventBase], subject: Job) -> Any:
    """An event of `kind` that its guard lets pass for `subject` where any can."""
    made = {
        e.Submitted: e.Submitted(),
        e.InputArrived: e.InputArrived(*subject.missing[:1] or ("",)),
        e.Queued: e.Queued(),
        e.Started: e.Started(make_claim(subject.attempt + 1)),
        e.Adopted: e.Adopted(make_claim(subject.attempt, incarnation="i2"), subject.round),
        e.AttemptReleased: e.AttemptReleased("host_lost"),
        e.Reprioritised: e.Reprioritised(Priority.NORMAL),
        e.CancelRequested: e.CancelRequested(),
        e.Cancelled: e.Cancelled(),
        e.Succeeded: e.Succeeded(Output()),
        e.Failed: e.Failed(make_failure("host_fault_repeated")),
        e.Expired: e.Expired("deadline"),
        e.Retried: e.Retried(),
    }
    return made[kind]
