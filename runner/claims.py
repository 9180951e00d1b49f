"""What to do with a pointer that was handed out, by the record it points to (DESIGN 3, Claim and Gone). Pure."""

from collections.abc import Callable
from datetime import datetime, timedelta

from msgspec import Struct

from bus.port import Entry
from schemas.failures import LONGEST_BACKOFF
from schemas.job import Job, Pointer
from schemas.words import FINAL, Status

LOOK_S = LONGEST_BACKOFF.total_seconds()  # a message that is put off is nobody's: for no longer than that
UNSETTLED_S = 2.0  # the record is not there or behind: the edge's reconciler judges


class Drop(Struct, frozen=True):
    """The round is over: acknowledge."""


class Later(Struct, frozen=True):
    """Hand it out again in `delay_s`."""

    delay_s: float


class Start(Struct, frozen=True):
    """It waits, and may start now."""

    entry: Entry


class Ours(Struct, frozen=True):
    """It runs by a claim of this host, of this life or an earlier one: adopt."""

    entry: Entry


class Theirs(Struct, frozen=True):
    """It runs by the claim of another host, which may be gone."""

    entry: Entry


Step = Drop | Later | Start | Ours | Theirs


def wait_s(job: Job, now: datetime) -> float:
    """Seconds until the queued job may start, 0 when it may; LOOK_S at most, for calendars are set.

    A back-off that ends later than any does was noted by a calendar that has been set back since: it is over.
    """
    left = [] if job.not_before is None else [job.not_before - now]
    if job.backoff_until is not None and job.backoff_until - now <= LONGEST_BACKOFF:
        left.append(job.backoff_until - now)
    return min(LOOK_S, max(0.0, max(left, default=timedelta(0)).total_seconds()))


def _waiting(entry: Entry, _: str, now: datetime) -> Step:
    left_s = wait_s(entry.recorded.job, now)
    return Later(left_s) if left_s else Start(entry)


def _running(entry: Entry, host: str, _: datetime) -> Step:
    claim = entry.recorded.job.claim
    return Ours(entry) if claim is not None and claim.host == host else Theirs(entry)


BY_STATUS: dict[Status, Callable[[Entry, str, datetime], Step]] = {
    Status.SCHEDULED: lambda _entry, _host, _now: Later(UNSETTLED_S),
    Status.QUEUED: _waiting,
    Status.RUNNING: _running,
    Status.CANCELLING: _running,
    **{status: lambda _entry, _host, _now: Drop() for status in FINAL},
}


def judge(pointer: Pointer, entry: Entry | None, host: str, now: datetime) -> Step:
    """The step for `pointer`, whose record reads `entry`, on `host`."""
    if entry is None:
        return Later(UNSETTLED_S)
    job: Job = entry.recorded.job
    if pointer.round != job.round:
        return Drop() if pointer.round < job.round else Later(UNSETTLED_S)
    return BY_STATUS[job.status](entry, host, now)
