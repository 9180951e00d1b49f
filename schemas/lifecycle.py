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
from schemas.asset import SCHEME, replaced
from schemas.job import Job
from schemas.words import FINAL
from schemas.words import Status as S  # noqa: N817 - the table reads as a table

TRANSITIONS: Mapping[type[e.Fact], Mapping[S, S]] = {
    e.Supplied: {S.SCHEDULED: S.SCHEDULED},
    e.Queued: {S.SCHEDULED: S.QUEUED},
    e.Started: {S.QUEUED: S.RUNNING},
    e.Adopted: {S.QUEUED: S.RUNNING, S.RUNNING: S.RUNNING, S.CANCELLING: S.CANCELLING},
    e.Released: {S.RUNNING: S.QUEUED, S.CANCELLING: S.CANCELLED},
    e.Reprioritised: {S.SCHEDULED: S.SCHEDULED, S.QUEUED: S.QUEUED},
    e.CancelRequested: {S.RUNNING: S.CANCELLING},
    e.Cancelled: {S.SCHEDULED: S.CANCELLED, S.QUEUED: S.CANCELLED, S.CANCELLING: S.CANCELLED},
    e.Succeeded: {S.RUNNING: S.SUCCEEDED, S.CANCELLING: S.SUCCEEDED},
    e.Failed: {S.SCHEDULED: S.FAILED, S.QUEUED: S.FAILED, S.RUNNING: S.FAILED, S.CANCELLING: S.FAILED},
    e.Expired: {S.SCHEDULED: S.EXPIRED, S.QUEUED: S.EXPIRED},
    e.Retried: {S.FAILED: S.QUEUED, S.CANCELLED: S.QUEUED, S.EXPIRED: S.QUEUED},
}

# Where a job that lacks input goes instead: what would be queued waits for its files first.
LACKING: Mapping[type[e.Fact], Mapping[S, S]] = {
    e.Retried: {S.FAILED: S.SCHEDULED, S.CANCELLED: S.SCHEDULED, S.EXPIRED: S.SCHEDULED},
}

USED_UP = frozenset({"gpu_fault_repeated", "host_fault_repeated"})  # the only codes that fail a queued job


class IllegalTransition(Exception):
    """The writer tried a step that the law forbids: a race it must re-read for, or a bug."""

    def __init__(self, job: Job, event: e.Event, why: str) -> None:
        self.job, self.event = job, event
        super().__init__(f"{type(event).__name__} on {job.status} job {job.owner}/{job.id} round {job.round}: {why}")


def _own_last_claim(job: Job, event: e.Adopted) -> str | None:
    if event.round != job.round:
        return f"it is of round {event.round}"
    last = job.claim
    if last is None or (last.host, last.attempt) != (event.claim.host, event.claim.attempt):
        return "the last claim is not its own"
    return None


def _never_tried(job: Job, _: e.Expired) -> str | None:
    return "an attempt was made in this round" if job.attempt else None


def _complete(job: Job, _: e.Queued) -> str | None:
    return "its input is not complete" if job.lacks_input else None


def _lacked(job: Job, event: e.Supplied) -> str | None:
    known = event.sha256 in job.missing if event.url is None else any(f.url == event.url for f in job.fetching)
    return None if known else "its input does not lack that file"


def _used_up_if_queued(job: Job, event: e.Failed) -> str | None:
    if job.status is S.QUEUED and event.error.code not in USED_UP:
        return "a queued job fails only when its free releases are used up"
    return None


def _next_attempt(job: Job, event: e.Started) -> str | None:
    return None if event.claim.attempt == job.attempt + 1 else f"the next attempt is {job.attempt + 1}"


GUARDS: Mapping[type[e.Fact], Callable[[Job, Any], str | None]] = {
    e.Supplied: _lacked,
    e.Queued: _complete,
    e.Started: _next_attempt,
    e.Adopted: _own_last_claim,
    e.Expired: _never_tried,
    e.Failed: _used_up_if_queued,
}


def _supplied(job: Job, event: e.Supplied, _: datetime) -> dict[str, Any]:
    if event.url is None:
        return {"missing": tuple(digest for digest in job.missing if digest != event.sha256)}
    places = {fetch.path for fetch in job.fetching if fetch.url == event.url}
    return {
        "input": replaced(job.input, places, event.url, f"{SCHEME}{event.sha256}"),
        "fetching": tuple(fetch for fetch in job.fetching if fetch.url != event.url),
    }


def _released(job: Job, event: e.Released, at: datetime) -> dict[str, Any]:
    if job.status is S.CANCELLING:
        return {"finished_at": at}
    counted = dict(job.releases) if event.charged else {**job.releases, event.code: job.releases.get(event.code, 0) + 1}
    charged = job.charged + event.charged
    return {"charged": charged, "releases": counted, "backoff_until": event.not_before, "queued_at": at}


def _ended(job: Job, event: e.Succeeded | e.Failed | e.Cancelled, at: datetime) -> dict[str, Any]:
    return {"finished_at": at, "usage": event.usage or job.usage, "log": event.log or job.log}


def _retried(job: Job, _: e.Retried, at: datetime) -> dict[str, Any]:
    blank = Job(
        id=job.id,
        owner=job.owner,
        endpoint=job.endpoint,
        pool=job.pool,
        status=S.QUEUED,
        digest=job.digest,
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


CHANGES: Mapping[type[e.Fact], Callable[[Job, Any, datetime], dict[str, Any]]] = {
    e.Supplied: _supplied,
    e.Queued: lambda _job, _event, at: {"queued_at": at},
    e.Started: lambda _job, event, at: {
        "claim": event.claim,
        "attempt": event.claim.attempt,
        "started_at": at,
        "backoff_until": None,
    },
    e.Adopted: lambda _job, event, _at: {"claim": event.claim, "backoff_until": None},
    e.Released: _released,
    e.Reprioritised: lambda _job, event, _at: {"priority": event.priority},
    e.CancelRequested: lambda _job, _event, _at: {},
    e.Cancelled: _ended,
    e.Succeeded: lambda job, event, at: _ended(job, event, at) | {"output": event.output},
    e.Failed: lambda job, event, at: _ended(job, event, at) | {"error": event.error},
    e.Expired: lambda _job, _event, at: {"finished_at": at},
    e.Retried: _retried,
}


def _steps(job: Job, kind: type[e.Event]) -> Mapping[S, S]:
    return LACKING[kind] if job.lacks_input and kind in LACKING else TRANSITIONS.get(kind, {})


def refusal(job: Job, event: e.Event) -> str | None:
    """Why `event` is illegal for `job` now, or None when it is legal."""
    if job.status not in _steps(job, type(event)):
        return f"no such step from {job.status}"
    guard = GUARDS.get(type(event))
    return guard(job, event) if guard else None


def apply(job: Job, event: e.Event, at: datetime) -> Job:
    """`job` after `event`; raises IllegalTransition. Pure: writing it is the caller's compare-and-set."""
    why = refusal(job, event)
    if why is not None:
        raise IllegalTransition(job, event, why)
    kind = type(event)
    return structs.replace(job, status=_steps(job, kind)[job.status], **CHANGES[kind](job, event, at))


def step(job: Job, event: e.Event, at: datetime) -> e.Recorded:
    """The record to write next: `apply`, with the event beside it."""
    return e.Recorded(at, event, apply(job, event, at))


def submitted_again(ended: Job, admitted: Job) -> e.Recorded:
    """The record to write next where the owner submits another request under the id of a job that has ended.

    `admitted` is the job that the request makes. It begins a round of its own, so that nothing of an earlier round
    (message, container, note, row of usage) is taken for its own. Raises IllegalTransition.
    """
    if ended.status not in FINAL:
        raise IllegalTransition(ended, e.Submitted(), f"no such step from {ended.status}")
    return e.Recorded(admitted.created_at, e.Submitted(), structs.replace(admitted, round=ended.round + 1))
