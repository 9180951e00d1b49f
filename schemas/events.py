"""What can happen to a job: one frozen tagged Struct per fact. The law that orders them is `schemas.lifecycle`.

`JobRecord` is what STATE holds: the fact, when, and the job as it became. The reader is tolerant: a fact that a newer
writer knows and this one does not decodes as `UnknownEvent`, the job beside it still counts.
"""

from typing import Any

import msgspec
from msgspec import Struct

from schemas.job import AttemptUsage, Claim, Job, JobFailure, JobMetric, Moment, Output
from schemas.status import Priority


class JobEventBase(Struct, frozen=True, tag_field="type"):
    """Base of all events."""


class Submitted(JobEventBase, frozen=True, tag="submitted"):
    """The record was made, or made again for the next round; its status says whether it may start at once."""


class InputArrived(JobEventBase, frozen=True, tag="supplied"):
    """A file that the input lacked is there: uploaded, or fetched from `url`, whose place in the input it takes."""

    sha256: str
    url: str | None = None


class Queued(JobEventBase, frozen=True, tag="queued"):
    """A scheduled job came due, or its inputs are complete."""


class Started(JobEventBase, frozen=True, tag="started"):
    """A runner claimed the job: a new attempt. No work is done before this is acknowledged."""

    claim: Claim


class Adopted(JobEventBase, frozen=True, tag="adopted"):
    """A new life of the same host found the container of the attempt: no attempt is lost."""

    claim: Claim
    round: int


class AttemptReleased(JobEventBase, frozen=True, tag="released"):
    """The attempt ended without an end of the job: it waits again, until `not_before`.

    `charged`: whether it cost an attempt. `code` is of `failures.FAILURES`, or `drained`.
    """

    code: str
    message: str = ""
    charged: bool = False
    not_before: Moment | None = None


class Reprioritised(JobEventBase, frozen=True, tag="reprioritised"):
    """The job moves to another queue of its pool."""

    priority: Priority


class CancelRequested(JobEventBase, frozen=True, tag="cancel_requested"):
    """The owner wants a running job stopped."""


class Cancelled(JobEventBase, frozen=True, tag="cancelled"):
    """The owner's wish came true."""

    usage: AttemptUsage | None = None
    log: str | None = None
    metrics: tuple[JobMetric, ...] = ()


class Succeeded(JobEventBase, frozen=True, tag="succeeded"):
    """The outputs are durable in the asset store."""

    output: Output
    usage: AttemptUsage = AttemptUsage()
    log: str | None = None
    metrics: tuple[JobMetric, ...] = ()


class Failed(JobEventBase, frozen=True, tag="failed"):
    """No further attempt will be made in this round."""

    error: JobFailure
    usage: AttemptUsage | None = None
    log: str | None = None
    metrics: tuple[JobMetric, ...] = ()


class Expired(JobEventBase, frozen=True, tag="expired"):
    """The job never started: `reason` is `start_timeout` or `deadline`."""

    reason: str


class Retried(JobEventBase, frozen=True, tag="retried"):
    """The owner asked for a new round, with the same inputs."""


class UnknownEvent(Struct, frozen=True):
    """A fact of a newer writer. It is shown as it came and never applied."""

    type: str


JobEvent = (
    Submitted
    | InputArrived
    | Queued
    | Started
    | Adopted
    | AttemptReleased
    | Reprioritised
    | CancelRequested
    | Cancelled
    | Succeeded
    | Failed
    | Expired
    | Retried
)


class JobRecord(Struct, frozen=True):
    """One revision of STATE."""

    at: Moment
    event: JobEvent | UnknownEvent
    job: Job


class _StrictRecord(Struct, frozen=True):
    at: Moment
    event: JobEvent
    job: Job


class _TolerantRecord(Struct, frozen=True):
    at: Moment
    event: UnknownEvent
    job: Job


class RecordUnreadable(ValueError):
    """The bytes in STATE are no record. The caller decides; nothing is guessed."""


# What msgspec raises for bytes that are no record: no JSON, no UTF-8 inside a text, brackets nested without end.
DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_strict_decoder = msgspec.json.Decoder(_StrictRecord)
_tolerant_decoder = msgspec.json.Decoder(_TolerantRecord)


def encode_record(recorded: JobRecord) -> bytes:
    """The bytes that STATE holds."""
    return msgspec.json.encode(recorded)


def decode_record(data: bytes) -> JobRecord:
    """Read `data`; raises RecordUnreadable."""
    try:
        known = _strict_decoder.decode(data)
        return JobRecord(known.at, known.event, known.job)
    except msgspec.ValidationError:
        pass  # perhaps a fact of a newer writer: the second reading tells
    except DECODE_ERRORS as error:
        raise RecordUnreadable(str(error)) from error
    try:
        newer = _tolerant_decoder.decode(data)
    except DECODE_ERRORS as error:
        raise RecordUnreadable(str(error)) from error
    return JobRecord(newer.at, newer.event, newer.job)


def event_to_dict(event: JobEvent | UnknownEvent) -> dict[str, Any]:
    """The event as history rows show it: `{"type": …}` and its fields."""
    shown = msgspec.to_builtins(event)
    if not isinstance(shown, dict):
        raise TypeError(f"an event is an object, not {type(shown).__name__}")
    return shown
