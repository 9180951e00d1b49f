"""The state machine of a job: which event may follow in which status, guards, and the changes that each event makes.

Who moves a job: the edge submits, supplies input, queues, reprioritises, expires, retries and asks to cancel. It also
cancels a job that waits, and fails one whose input does not arrive. The runner that holds the claim starts, adopts,
releases, succeeds, fails and cancels. If that runner's host is lost, the edge or a runner without the claim releases
the attempt, or fails the job when its free releases are used up; the edge cancels the job if it was being cancelled.

What is not in the table is illegal. `Retried` follows every final status except `succeeded`. `Submitted` by
`resubmission_record`, which replaces the whole record, follows every final status. The writer is strict (`apply_event`
raises), the reader is tolerant (it shows what is recorded). The diagram in docs/lifecycle.md is generated from this
table.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypedDict

from msgspec import structs

from schemas import events
from schemas.asset import DIGEST_SCHEME, replace_at_paths
from schemas.job import AttemptUsage, Claim, Job, JobFailure, JobMetric, JobProgram, Output, PendingUrl
from schemas.status import FINAL_STATUSES, Priority, Status

TRANSITIONS: Mapping[type[events.JobEventBase], Mapping[Status, Status]] = {
    events.InputArrived: {Status.SCHEDULED: Status.SCHEDULED},
    events.Queued: {Status.SCHEDULED: Status.QUEUED},
    events.Started: {Status.QUEUED: Status.RUNNING},
    events.Adopted: {
        Status.QUEUED: Status.RUNNING,
        Status.RUNNING: Status.RUNNING,
        Status.CANCELLING: Status.CANCELLING,
    },
    events.AttemptReleased: {Status.RUNNING: Status.QUEUED, Status.CANCELLING: Status.CANCELLED},
    events.Reprioritised: {Status.SCHEDULED: Status.SCHEDULED, Status.QUEUED: Status.QUEUED},
    events.CancelRequested: {Status.RUNNING: Status.CANCELLING},
    events.Cancelled: {
        Status.SCHEDULED: Status.CANCELLED,
        Status.QUEUED: Status.CANCELLED,
        Status.CANCELLING: Status.CANCELLED,
    },
    events.Succeeded: {Status.RUNNING: Status.SUCCEEDED, Status.CANCELLING: Status.SUCCEEDED},
    events.Failed: {
        Status.SCHEDULED: Status.FAILED,
        Status.QUEUED: Status.FAILED,
        Status.RUNNING: Status.FAILED,
        Status.CANCELLING: Status.FAILED,
    },
    events.Expired: {Status.SCHEDULED: Status.EXPIRED, Status.QUEUED: Status.EXPIRED},
    events.Retried: {Status.FAILED: Status.QUEUED, Status.CANCELLED: Status.QUEUED, Status.EXPIRED: Status.QUEUED},
}

# A job that lacks input takes this target instead: it waits for its files before it is queued.
TRANSITIONS_WITHOUT_INPUT: Mapping[type[events.JobEventBase], Mapping[Status, Status]] = {
    events.Retried: {
        Status.FAILED: Status.SCHEDULED,
        Status.CANCELLED: Status.SCHEDULED,
        Status.EXPIRED: Status.SCHEDULED,
    },
}

RELEASES_EXHAUSTED_CODES = frozenset({"gpu_fault_repeated", "host_fault_repeated"})  # only these fail a queued job


class IllegalTransition(Exception):
    """The state machine does not allow this event: the record has changed, so read it again; or it is a bug."""

    def __init__(self, job: Job, event: events.JobEvent, why: str) -> None:
        self.job, self.event = job, event
        super().__init__(f"{type(event).__name__} on {job.status} job {job.owner}/{job.id} round {job.round}: {why}")


def _check_last_claim(job: Job, event: events.Adopted) -> str | None:
    if event.round != job.round:
        return f"the event is of round {event.round}"
    last = job.claim
    if last is None or (last.host, last.attempt) != (event.claim.host, event.claim.attempt):
        return "the last claim is of another host or attempt"
    return None


def _check_never_attempted(job: Job, _: events.Expired) -> str | None:
    return "an attempt was made in this round" if job.attempt else None


def _check_input_complete(job: Job, _: events.Queued) -> str | None:
    return "its input is not complete" if job.lacks_input else None


def _check_input_was_missing(job: Job, event: events.InputArrived) -> str | None:
    known = event.sha256 in job.missing if event.url is None else any(f.url == event.url for f in job.pending_urls)
    return None if known else "its input does not lack that file"


def _check_releases_exhausted(job: Job, event: events.Failed) -> str | None:
    if job.status is Status.QUEUED and event.error.code not in RELEASES_EXHAUSTED_CODES:
        return "a queued job fails only when its free releases are used up"
    return None


def _check_attempt_number(job: Job, event: events.Started) -> str | None:
    return None if event.claim.attempt == job.attempt + 1 else f"the next attempt is {job.attempt + 1}"


GUARDS: Mapping[type[events.JobEventBase], Callable[[Job, Any], str | None]] = {
    events.InputArrived: _check_input_was_missing,
    events.Queued: _check_input_complete,
    events.Started: _check_attempt_number,
    events.Adopted: _check_last_claim,
    events.Expired: _check_never_attempted,
    events.Failed: _check_releases_exhausted,
}


class JobChanges(TypedDict, total=False):
    """The fields of a Job that an event may change, besides `status`."""

    input: dict[str, Any]
    missing: tuple[str, ...]
    pending_urls: tuple[PendingUrl, ...]
    priority: Priority
    round: int
    attempt: int
    charged_attempts: int
    free_releases: dict[str, int]
    claim: Claim | None
    program: JobProgram | None
    backoff_until: datetime | None
    retried_at: datetime | None
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    output: Output | None
    error: JobFailure | None
    log: str | None
    usage: AttemptUsage
    metrics: tuple[JobMetric, ...]


def _effect_of_input(job: Job, event: events.InputArrived, _: datetime) -> JobChanges:
    if event.url is None:
        return {"missing": tuple(digest for digest in job.missing if digest != event.sha256)}
    paths = {pending.path for pending in job.pending_urls if pending.url == event.url}
    return {
        "input": replace_at_paths(job.input, paths, event.url, f"{DIGEST_SCHEME}{event.sha256}"),
        "pending_urls": tuple(pending for pending in job.pending_urls if pending.url != event.url),
    }


def _effect_of_start(_job: Job, event: events.Started, at: datetime) -> JobChanges:
    return {
        "claim": event.claim,
        "program": event.program,
        "attempt": event.claim.attempt,
        "started_at": at,
        "backoff_until": None,
    }


def _effect_of_release(job: Job, event: events.AttemptReleased, at: datetime) -> JobChanges:
    if job.status is Status.CANCELLING:
        return {"finished_at": at}
    free_releases = dict(job.free_releases)
    if not event.charged:
        free_releases[event.code] = free_releases.get(event.code, 0) + 1
    return {
        "charged_attempts": job.charged_attempts + event.charged,
        "free_releases": free_releases,
        "backoff_until": event.not_before,
        "queued_at": at,
    }


def _effect_of_end(job: Job, event: events.Succeeded | events.Failed | events.Cancelled, at: datetime) -> JobChanges:
    return {
        "finished_at": at,
        "usage": event.usage or job.usage,
        "log": event.log or job.log,
        "metrics": event.metrics or job.metrics,
    }


def _effect_of_success(job: Job, event: events.Succeeded, at: datetime) -> JobChanges:
    return {**_effect_of_end(job, event, at), "output": event.output}


def _effect_of_failure(job: Job, event: events.Failed, at: datetime) -> JobChanges:
    return {**_effect_of_end(job, event, at), "error": event.error}


def _effect_of_retry(job: Job, _: events.Retried, at: datetime) -> JobChanges:
    return {
        "round": job.round + 1,
        "retried_at": at,
        "queued_at": None if job.lacks_input else at,
        "attempt": 0,
        "charged_attempts": 0,
        "free_releases": {},
        "claim": None,
        "program": None,
        "backoff_until": None,
        "started_at": None,
        "finished_at": None,
        "output": None,
        "error": None,
        "log": None,
        "usage": AttemptUsage(),
        "metrics": (),
    }


EFFECTS: Mapping[type[events.JobEventBase], Callable[[Job, Any, datetime], JobChanges]] = {
    events.InputArrived: _effect_of_input,
    events.Queued: lambda _job, _event, at: {"queued_at": at},
    events.Started: _effect_of_start,
    events.Adopted: lambda _job, event, _at: {"claim": event.claim, "backoff_until": None},
    events.AttemptReleased: _effect_of_release,
    events.Reprioritised: lambda _job, event, _at: {"priority": event.priority},
    events.CancelRequested: lambda _job, _event, _at: {},
    events.Cancelled: _effect_of_end,
    events.Succeeded: _effect_of_success,
    events.Failed: _effect_of_failure,
    events.Expired: lambda _job, _event, at: {"finished_at": at},
    events.Retried: _effect_of_retry,
}


def _transitions_for(job: Job, kind: type[events.JobEvent]) -> Mapping[Status, Status]:
    return (
        TRANSITIONS_WITHOUT_INPUT[kind]
        if job.lacks_input and kind in TRANSITIONS_WITHOUT_INPUT
        else TRANSITIONS.get(kind, {})
    )


def why_illegal(job: Job, event: events.JobEvent) -> str | None:
    """Return why `event` is illegal for `job` now; None when it is legal."""
    if job.status not in _transitions_for(job, type(event)):
        return f"not allowed in status {job.status}"
    guard = GUARDS.get(type(event))
    return guard(job, event) if guard else None


def apply_event(job: Job, event: events.JobEvent, at: datetime) -> Job:
    """Return `job` after `event`. Raises IllegalTransition. Pure: the caller writes it by compare-and-set."""
    why = why_illegal(job, event)
    if why is not None:
        raise IllegalTransition(job, event, why)
    kind = type(event)
    return structs.replace(job, status=_transitions_for(job, kind)[job.status], **EFFECTS[kind](job, event, at))


def next_record(job: Job, event: events.JobEvent, at: datetime) -> events.JobRecord:
    """Return the record to write next: the event, and the job after it. Raises IllegalTransition."""
    return events.JobRecord(at, event, apply_event(job, event, at))


def resubmission_record(ended: Job, admitted: Job) -> events.JobRecord:
    """Return the record to write when the owner submits another request under the id of an ended job.

    `admitted` is the job of the new request. It gets the next round, so that messages, containers and usage rows of an
    earlier round are not mistaken for its own. Raises IllegalTransition.
    """
    if ended.status not in FINAL_STATUSES:
        raise IllegalTransition(ended, events.Submitted(), f"not allowed in status {ended.status}")
    return events.JobRecord(admitted.created_at, events.Submitted(), structs.replace(admitted, round=ended.round + 1))
