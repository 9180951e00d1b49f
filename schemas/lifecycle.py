"""The law of a job's life: one table, a walker, and what each event changes in the record.

Who moves a job, in words: the edge submits, queues, reprioritises, expires, retries and asks to cancel; the runner that
holds the claim starts, adopts, releases, succeeds, fails and cancels. A blank in the table is illegal. Terminal states
accept only `Retried`, and `Submitted` from `submitted_again`, which replaces the whole record.
The writer is strict (`apply` raises), the reader tolerant (it shows what is recorded).
The diagram in docs/lifecycle.md is generated from this table.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from msgspec import structs

from schemas import events as e
from schemas.asset import DIGEST_SCHEME, replace_at_paths
from schemas.job import Job
from schemas.status import FINAL_STATUSES
from schemas.status import Status as S  # noqa: N817 - the table reads as a table

TRANSITIONS: Mapping[type[e.JobEventBase], Mapping[S, S]] = {
    e.InputArrived: {S.SCHEDULED: S.SCHEDULED},
    e.Queued: {S.SCHEDULED: S.QUEUED},
    e.Started: {S.QUEUED: S.RUNNING},
    e.Adopted: {S.QUEUED: S.RUNNING, S.RUNNING: S.RUNNING, S.CANCELLING: S.CANCELLING},
    e.AttemptReleased: {S.RUNNING: S.QUEUED, S.CANCELLING: S.CANCELLED},
    e.Reprioritised: {S.SCHEDULED: S.SCHEDULED, S.QUEUED: S.QUEUED},
    e.CancelRequested: {S.RUNNING: S.CANCELLING},
    e.Cancelled: {S.SCHEDULED: S.CANCELLED, S.QUEUED: S.CANCELLED, S.CANCELLING: S.CANCELLED},
    e.Succeeded: {S.RUNNING: S.SUCCEEDED, S.CANCELLING: S.SUCCEEDED},
    e.Failed: {S.SCHEDULED: S.FAILED, S.QUEUED: S.FAILED, S.RUNNING: S.FAILED, S.CANCELLING: S.FAILED},
    e.Expired: {S.SCHEDULED: S.EXPIRED, S.QUEUED: S.EXPIRED},
    e.Retried: {S.FAILED: S.QUEUED, S.CANCELLED: S.QUEUED, S.EXPIRED: S.QUEUED},
}

# Where a job that lacks input goes instead: what would be queued waits for its files first.
TRANSITIONS_WITHOUT_INPUT: Mapping[type[e.JobEventBase], Mapping[S, S]] = {
    e.Retried: {S.FAILED: S.SCHEDULED, S.CANCELLED: S.SCHEDULED, S.EXPIRED: S.SCHEDULED},
}

RELEASES_EXHAUSTED_CODES = frozenset(
    {"gpu_fault_repeated", "host_fault_repeated"}
)  # the only codes that fail a queued job


class IllegalTransition(Exception):
    """The writer tried a step that the law forbids: a race it must re-read for, or a bug."""

    def __init__(self, job: Job, event: e.JobEvent, why: str) -> None:
        self.job, self.event = job, event
        super().__init__(f"{type(event).__name__} on {job.status} job {job.owner}/{job.id} round {job.round}: {why}")


def _check_last_claim(job: Job, event: e.Adopted) -> str | None:
    if event.round != job.round:
        return f"it is of round {event.round}"
    last = job.claim
    if last is None or (last.host, last.attempt) != (event.claim.host, event.claim.attempt):
        return "the last claim is not its own"
    return None


def _check_never_attempted(job: Job, _: e.Expired) -> str | None:
    return "an attempt was made in this round" if job.attempt else None


def _check_input_complete(job: Job, _: e.Queued) -> str | None:
    return "its input is not complete" if job.lacks_input else None


def _check_input_was_missing(job: Job, event: e.InputArrived) -> str | None:
    known = event.sha256 in job.missing if event.url is None else any(f.url == event.url for f in job.pending_urls)
    return None if known else "its input does not lack that file"


def _check_releases_exhausted(job: Job, event: e.Failed) -> str | None:
    if job.status is S.QUEUED and event.error.code not in RELEASES_EXHAUSTED_CODES:
        return "a queued job fails only when its free releases are used up"
    return None


def _check_attempt_number(job: Job, event: e.Started) -> str | None:
    return None if event.claim.attempt == job.attempt + 1 else f"the next attempt is {job.attempt + 1}"


GUARDS: Mapping[type[e.JobEventBase], Callable[[Job, Any], str | None]] = {
    e.InputArrived: _check_input_was_missing,
    e.Queued: _check_input_complete,
    e.Started: _check_attempt_number,
    e.Adopted: _check_last_claim,
    e.Expired: _check_never_attempted,
    e.Failed: _check_releases_exhausted,
}


def _effect_of_input(job: Job, event: e.InputArrived, _: datetime) -> dict[str, Any]:
    if event.url is None:
        return {"missing": tuple(digest for digest in job.missing if digest != event.sha256)}
    places = {fetch.path for fetch in job.pending_urls if fetch.url == event.url}
    return {
        "input": replace_at_paths(job.input, places, event.url, f"{DIGEST_SCHEME}{event.sha256}"),
        "fetching": tuple(fetch for fetch in job.pending_urls if fetch.url != event.url),
    }


def _effect_of_release(job: Job, event: e.AttemptReleased, at: datetime) -> dict[str, Any]:
    if job.status is S.CANCELLING:
        return {"finished_at": at}
    counted = (
        dict(job.free_releases)
        if event.charged
        else {**job.free_releases, event.code: job.free_releases.get(event.code, 0) + 1}
    )
    charged = job.charged_attempts + event.charged
    return {"charged": charged, "releases": counted, "backoff_until": event.not_before, "queued_at": at}


def _effect_of_end(job: Job, event: e.Succeeded | e.Failed | e.Cancelled, at: datetime) -> dict[str, Any]:
    return {"finished_at": at, "usage": event.usage or job.usage, "log": event.log or job.log}


def _effect_of_retry(job: Job, _: e.Retried, at: datetime) -> dict[str, Any]:
    blank = Job(
        id=job.id,
        owner=job.owner,
        endpoint=job.endpoint,
        pool=job.pool,
        status=S.QUEUED,
        request_digest=job.request_digest,
        input=job.input,
        policy=job.policy,
        created_at=job.created_at,
    )
    kept = ("attempt", "charged", "releases", "claim", "backoff_until", "started_at", "finished_at", "output", "error")
    return {name: getattr(blank, name) for name in (*kept, "log", "usage")} | {
        "round": job.round + 1,
        "retried_at": at,
        "queued_at": None if job.lacks_input else at,
    }


EFFECTS: Mapping[type[e.JobEventBase], Callable[[Job, Any, datetime], dict[str, Any]]] = {
    e.InputArrived: _effect_of_input,
    e.Queued: lambda _job, _event, at: {"queued_at": at},
    e.Started: lambda _job, event, at: {
        "claim": event.claim,
        "attempt": event.claim.attempt,
        "started_at": at,
        "backoff_until": None,
    },
    e.Adopted: lambda _job, event, _at: {"claim": event.claim, "backoff_until": None},
    e.AttemptReleased: _effect_of_release,
    e.Reprioritised: lambda _job, event, _at: {"priority": event.priority},
    e.CancelRequested: lambda _job, _event, _at: {},
    e.Cancelled: _effect_of_end,
    e.Succeeded: lambda job, event, at: _effect_of_end(job, event, at) | {"output": event.output},
    e.Failed: lambda job, event, at: _effect_of_end(job, event, at) | {"error": event.error},
    e.Expired: lambda _job, _event, at: {"finished_at": at},
    e.Retried: _effect_of_retry,
}


def _transitions_for(job: Job, kind: type[e.JobEvent]) -> Mapping[S, S]:
    return (
        TRANSITIONS_WITHOUT_INPUT[kind]
        if job.lacks_input and kind in TRANSITIONS_WITHOUT_INPUT
        else TRANSITIONS.get(kind, {})
    )


def why_illegal(job: Job, event: e.JobEvent) -> str | None:
    """Why `event` is illegal for `job` now, or None when it is legal."""
    if job.status not in _transitions_for(job, type(event)):
        return f"no such step from {job.status}"
    guard = GUARDS.get(type(event))
    return guard(job, event) if guard else None


def apply_event(job: Job, event: e.JobEvent, at: datetime) -> Job:
    """`job` after `event`; raises IllegalTransition. Pure: writing it is the caller's compare-and-set."""
    why = why_illegal(job, event)
    if why is not None:
        raise IllegalTransition(job, event, why)
    kind = type(event)
    return structs.replace(job, status=_transitions_for(job, kind)[job.status], **EFFECTS[kind](job, event, at))


def next_record(job: Job, event: e.JobEvent, at: datetime) -> e.JobRecord:
    """The record to write next: `apply`, with the event beside it."""
    return e.JobRecord(at, event, apply_event(job, event, at))


def resubmission_record(ended: Job, admitted: Job) -> e.JobRecord:
    """The record to write next where the owner submits another request under the id of a job that has ended.

    `admitted` is the job that the request makes. It begins a round of its own, so that nothing of an earlier round
    (message, container, note, row of usage) is taken for its own. Raises IllegalTransition.
    """
    if ended.status not in FINAL_STATUSES:
        raise IllegalTransition(ended, e.Submitted(), f"no such step from {ended.status}")
    return e.JobRecord(admitted.created_at, e.Submitted(), structs.replace(admitted, round=ended.round + 1))
