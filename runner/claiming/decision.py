"""The step for a queue message, chosen by the record of its job. Pure."""

from collections.abc import Callable
from datetime import datetime
from enum import Enum, auto

from msgspec import Struct

from bus.interface import VersionedRecord
from runner.execution.fence import start_delay_s
from schemas.job import Job, Pointer
from schemas.status import FINAL_STATUSES, Status

UNSETTLED_NAK_DELAY_S = 2.0  # the record is missing or older than the message: the edge's reconciler decides


class StepOutcome(Enum):
    """Result of a step: the message was answered or its job launched, or the record has changed."""

    DONE = auto()
    READ_AGAIN = auto()


class Ack(Struct, frozen=True):
    """The round is over: acknowledge."""


class Nak(Struct, frozen=True):
    """Not now: deliver the message again in `delay_s`."""

    delay_s: float


class Start(Struct, frozen=True):
    """The job is queued and may start now."""

    entry: VersionedRecord


class AdoptOwn(Struct, frozen=True):
    """The job runs by a claim of this host, from this runner process or an earlier one: adopt it."""

    entry: VersionedRecord


class HeldElsewhere(Struct, frozen=True):
    """The job runs by the claim of another host, which may be gone."""

    entry: VersionedRecord


ClaimDecision = Ack | Nak | Start | AdoptOwn | HeldElsewhere


def _decide_queued(entry: VersionedRecord, _: str, now: datetime) -> ClaimDecision:
    left_s = start_delay_s(entry.record.job, now)
    return Nak(left_s) if left_s else Start(entry)


def _decide_running(entry: VersionedRecord, host: str, _: datetime) -> ClaimDecision:
    claim = entry.record.job.claim
    return AdoptOwn(entry) if claim is not None and claim.host == host else HeldElsewhere(entry)


DECISION_BY_STATUS: dict[Status, Callable[[VersionedRecord, str, datetime], ClaimDecision]] = {
    Status.SCHEDULED: lambda _entry, _host, _now: Nak(UNSETTLED_NAK_DELAY_S),
    Status.QUEUED: _decide_queued,
    Status.RUNNING: _decide_running,
    Status.CANCELLING: _decide_running,
    **{status: lambda _entry, _host, _now: Ack() for status in FINAL_STATUSES},
}


def decide(pointer: Pointer, entry: VersionedRecord | None, host: str, now: datetime) -> ClaimDecision:
    """Return the step for `pointer` on `host`. `entry` is the job's record; None if it does not exist."""
    if entry is None:
        return Nak(UNSETTLED_NAK_DELAY_S)
    job: Job = entry.record.job
    if pointer.round != job.round:
        return Ack() if pointer.round < job.round else Nak(UNSETTLED_NAK_DELAY_S)
    return DECISION_BY_STATUS[job.status](entry, host, now)
