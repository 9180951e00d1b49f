"""The rules of a job's life: which event may follow in which status, and what follows a failed attempt.

Who moves a job: the edge submits, supplies input, queues, reprioritises, expires, retries and asks to cancel. It also
cancels a job that waits, and fails one whose input does not arrive. The runner that holds the claim starts, adopts,
releases, succeeds, fails and cancels. If that runner's host is lost, the edge or a runner without the claim releases
the attempt, or fails the job when its free releases are used up; the edge cancels the job if it was being cancelled.

What is not in `TRANSITIONS` is illegal. `Retried` follows every final status except `succeeded`. `Submitted` by
`resubmission_record`, which replaces the whole record, follows every final status. The writer is strict (`apply_event`
raises), the reader is tolerant (it shows what is recorded). The diagram in docs/lifecycle.md is generated from this
table.

`FAILURES` has every failure code of a job: who is to blame, and whether the job is tried again. `outcome_after_failure`
turns a failed attempt into the event to record. Nothing else decides between another attempt and the end. The runner
calls it for its own attempts, the edge for those of a host that is gone.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, TypedDict

from msgspec import structs

from schemas import events
from schemas.asset import DIGEST_SCHEME, replace_at_paths
from schemas.backoff import Backoff
from schemas.events import AttemptReleased, Failed
from schemas.job import (
    FINAL_STATUSES,
    AttemptUsage,
    Blame,
    Claim,
    Job,
    JobFailure,
    JobMetric,
    JobProgram,
    Output,
    PendingUrl,
    Priority,
    Status,
)

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


class RetryRule(StrEnum):
    """The cost of an attempt that failed in this way."""

    NEVER = "never"
    CHARGED = "counted"  # costs an attempt
    ONCE = "once"  # costs an attempt; the job is tried again only if no earlier attempt was charged
    FREE = "free"  # costs nothing, up to the two limits below


class FailureClass(NamedTuple):
    """One row of FAILURES: whose fault a failure is, and whether the job is tried again."""

    blame: Blame
    retry: RetryRule


GPU_FREE_RELEASE_LIMIT = 3  # free releases of a job for GPU faults, then gpu_fault_repeated
FREE_RELEASE_LIMIT = 10  # free releases of a job in all, then host_fault_repeated
DRAINED_CODE = "drained"
HOST_LOST_CODE = "host_lost"
MODULE_MISSING_CODE = "module_missing"
SECRET_MISSING_CODE = "secret_missing"  # noqa: S105 - the name of a failure
RETRY_BACKOFF = Backoff(first_s=2.0, limit_s=300.0)
JITTERED_BACKOFF_LIMIT = timedelta(seconds=2 * RETRY_BACKOFF.limit_s)

FAILURES: Mapping[str, FailureClass] = {
    "bad_job": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "bad_input": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "unreadable_video": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "unreadable_audio": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "no_face": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "multiple_faces": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "input_too_large": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "input_fetch_failed": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "asset_gone": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    SECRET_MISSING_CODE: FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "disk_exceeded": FailureClass(Blame.CLIENT, RetryRule.NEVER),
    "internal": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    "output_missing": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    "output_invalid": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    "model_load_failed": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    "stalled": FailureClass(Blame.IMAGE, RetryRule.CHARGED),
    MODULE_MISSING_CODE: FailureClass(Blame.IMAGE, RetryRule.NEVER),
    "output_too_large": FailureClass(Blame.IMAGE, RetryRule.NEVER),
    "out_of_memory": FailureClass(Blame.IMAGE, RetryRule.ONCE),
    "execution_timeout": FailureClass(Blame.IMAGE, RetryRule.NEVER),
    "gpu_lost": FailureClass(Blame.GPU, RetryRule.FREE),
    "gpu_unhealthy": FailureClass(Blame.GPU, RetryRule.FREE),
    "gpu_unsupported": FailureClass(Blame.GPU, RetryRule.FREE),
    "cuda_oom": FailureClass(Blame.GPU, RetryRule.CHARGED),
    "gpu_fault_repeated": FailureClass(Blame.GPU, RetryRule.NEVER),
    HOST_LOST_CODE: FailureClass(Blame.HOST, RetryRule.FREE),
    "engine_error": FailureClass(Blame.HOST, RetryRule.FREE),
    "image_missing": FailureClass(Blame.HOST, RetryRule.FREE),
    "disk_full": FailureClass(Blame.HOST, RetryRule.FREE),
    "host_fault_repeated": FailureClass(Blame.HOST, RetryRule.NEVER),
    DRAINED_CODE: FailureClass(Blame.HOST, RetryRule.FREE),
}


# Failures that end the job at once, although a `retry` by its owner may succeed: the machines may be well again, or the
# owner has uploaded the missing file or set the secret.
_RETRYABLE_BY_OWNER = RELEASES_EXHAUSTED_CODES | {"asset_gone", "input_fetch_failed", SECRET_MISSING_CODE}


def classify_failure(code: str, by_exit_code: FailureClass) -> FailureClass:
    """Return the row of `code`; an image's own code has no row and takes the class of the exit code."""
    return FAILURES.get(code, by_exit_code)


def is_retryable(code: str, row: FailureClass) -> bool:
    """Return whether the same request may succeed when its owner asks for a `retry`.

    False: the request would fail the same way, so change the input or the policy and submit again.
    """
    return row.retry is not RetryRule.NEVER or code in _RETRYABLE_BY_OWNER


def make_job_failure(
    code: str, message: str, row: FailureClass | None = None, log_tail: tuple[str, ...] = ()
) -> JobFailure:
    """Make the `error` of a job that ends with `code`. `row` classifies an image's own code, which has no row."""
    row = row or FAILURES[code]
    return JobFailure(code, message, row.blame, is_retryable(code, row), log_tail)


def retry_backoff(tries: int, jitter: float) -> timedelta:
    """Return how long a released job waits after `tries` earlier releases; `jitter` in [0, 1) adds up to that again."""
    return timedelta(seconds=RETRY_BACKOFF.delay_s(tries, jitter))


def _code_if_releases_exhausted(job: Job, code: str, row: FailureClass) -> str | None:
    """Return the code that ends the job when its free releases are used up; None while one is left."""
    if sum(job.free_releases.values()) >= FREE_RELEASE_LIMIT:
        return "host_fault_repeated"
    gpu_releases = sum(
        n for name, n in job.free_releases.items() if name in FAILURES and FAILURES[name].blame is Blame.GPU
    )
    if row.blame is Blame.GPU and gpu_releases >= GPU_FREE_RELEASE_LIMIT:
        return "gpu_fault_repeated"
    return None


def outcome_after_failure(  # noqa: PLR0913 - each is one fact about the attempt that failed
    job: Job,
    code: str,
    message: str,
    row: FailureClass,
    *,
    at: datetime,
    jitter: float,
    usage: AttemptUsage | None = None,
    log: str | None = None,
    log_tail: tuple[str, ...] = (),
    metrics: tuple[JobMetric, ...] = (),
) -> AttemptReleased | Failed:
    """Return the event to record after an attempt of `job` failed with `code`, classified as `row`.

    `jitter` in [0, 1) spreads the retries. `log_tail`: the last lines of stderr. After a drain and a lost host the job
    waits no time, because nothing is wrong with the job.
    """
    final = Failed(make_job_failure(code, message, row, log_tail), usage=usage, log=log, metrics=metrics)
    if row.retry is RetryRule.NEVER:
        return final
    if row.retry is RetryRule.FREE:
        final_code = _code_if_releases_exhausted(job, code, row)
        if final_code is not None:
            error = make_job_failure(final_code, f"{code}: {message}", log_tail=log_tail)
            return Failed(error, usage=usage, log=log, metrics=metrics)
        starts_at_once = code in {DRAINED_CODE, HOST_LOST_CODE}
        not_before = None if starts_at_once else at + retry_backoff(sum(job.free_releases.values()), jitter)
        return AttemptReleased(code, message, charged=False, not_before=not_before)
    allowed = min(2, job.policy.max_attempts) if row.retry is RetryRule.ONCE else job.policy.max_attempts
    if job.charged_attempts + 1 >= allowed:
        return final
    return AttemptReleased(code, message, charged=True, not_before=at + retry_backoff(job.charged_attempts, jitter))
