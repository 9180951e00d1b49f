"""Events of jobs, one frozen tagged Struct for each, and messages of running jobs to their followers.

`schemas.lifecycle` says when an event may happen. STATE holds JobRecords: the event, its time, and the job after it.
The reader is tolerant: an event of a newer writer decodes as UnknownEvent, and the job beside it still counts.

The messages of a running job are published under `feed.<owner>.<job_id>.{progress,log}`. Each names its attempt and the
offset of the last output byte that it covers. So a runner that adopts the job continues after the last one published,
and a client sees rising offsets without repeats.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from schemas.job import AttemptUsage, Claim, Job, JobFailure, JobMetric, JobProgram, Moment, Output, Priority


class JobEventBase(Struct, frozen=True, tag_field="type"):
    """The base of all events; their tag is the field `type` of the stored record."""


class Submitted(JobEventBase, frozen=True, tag="submitted"):
    """The record was created, or replaced for the next round. Its status says whether it may start at once."""


class InputArrived(JobEventBase, frozen=True, tag="supplied"):
    """A missing file of the input is there: uploaded, or fetched from `url`, which it replaces in the input."""

    sha256: str
    url: str | None = None


class Queued(JobEventBase, frozen=True, tag="queued"):
    """A scheduled job is due, or its input is complete."""


class Started(JobEventBase, frozen=True, tag="started"):
    """A runner claimed the job for a new attempt, to run `program`. No work is done before this is recorded."""

    claim: Claim
    program: JobProgram | None = None


class Adopted(JobEventBase, frozen=True, tag="adopted"):
    """A new runner process of the same host took over the container of the attempt."""

    claim: Claim
    round: int


class AttemptReleased(JobEventBase, frozen=True, tag="released"):
    """The attempt ended and the job did not: it waits again, until `not_before`.

    `charged`: whether the attempt counts against `max_attempts`. `code` is a key of `schemas.lifecycle.FAILURES`.
    """

    code: str
    message: str = ""
    charged: bool = False
    not_before: Moment | None = None


class Reprioritised(JobEventBase, frozen=True, tag="reprioritised"):
    """The job moves to another queue of its pool."""

    priority: Priority


class CancelRequested(JobEventBase, frozen=True, tag="cancel_requested"):
    """The owner asked to stop a running job."""


class Cancelled(JobEventBase, frozen=True, tag="cancelled"):
    """The job was cancelled at its owner's request."""

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
    """The job failed; this round has no further attempt."""

    error: JobFailure
    usage: AttemptUsage | None = None
    log: str | None = None
    metrics: tuple[JobMetric, ...] = ()


class Expired(JobEventBase, frozen=True, tag="expired"):
    """The job never started: `reason` is `start_timeout` or `deadline`."""

    reason: str


class Retried(JobEventBase, frozen=True, tag="retried"):
    """The owner asked for a new round with the same input."""


class UnknownEvent(Struct, frozen=True):
    """An event of a newer writer. It is shown as it is and never applied."""

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
    """One revision of STATE: a job, and the event that led to this state."""

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
    """The bytes in STATE are not a record. The caller decides what to do."""


# The exceptions of msgspec for unreadable bytes: not JSON, not UTF-8 inside a string, brackets nested too deeply.
DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_strict_decoder = msgspec.json.Decoder(_StrictRecord)
_tolerant_decoder = msgspec.json.Decoder(_TolerantRecord)


def encode_record(record: JobRecord) -> bytes:
    """Return the bytes that STATE holds."""
    return msgspec.json.encode(record)


def decode_record(data: bytes) -> JobRecord:
    """Decode the bytes of STATE. Raises RecordUnreadable."""
    try:
        known = _strict_decoder.decode(data)
        return JobRecord(known.at, known.event, known.job)
    except msgspec.ValidationError:
        pass  # perhaps an event of a newer writer: the tolerant decoder decides
    except DECODE_ERRORS as error:
        raise RecordUnreadable(str(error)) from error
    try:
        newer = _tolerant_decoder.decode(data)
    except DECODE_ERRORS as error:
        raise RecordUnreadable(str(error)) from error
    return JobRecord(newer.at, newer.event, newer.job)


def event_to_dict(event: JobEvent | UnknownEvent) -> dict[str, Any]:
    """Return the event as history rows show it: `{"type": …}` and its fields."""
    shown = msgspec.to_builtins(event)
    if not isinstance(shown, dict):
        raise TypeError(f"an event is an object, not {type(shown).__name__}")
    return shown


class FeedPosition(Struct, frozen=True):
    """A position in the output of a job: the container (round, attempt) and the bytes before it."""

    round: int
    attempt: int
    offset: int


class ProgressMessage(Struct, frozen=True, tag_field="type", tag="progress"):
    """The progress of the job; `fraction` in [0, 1]. At most 4 a second for each job."""

    position: FeedPosition = field(name="place")
    at: Moment
    fraction: float
    stage: str | None = None
    done: int | None = None
    total: int | None = None


class LogMessage(Struct, frozen=True, tag_field="type", tag="log"):
    """A piece of the job's output: at most 16 KiB, or 250 ms of it."""

    position: FeedPosition = field(name="place")
    at: Moment
    stream: Literal["stdout", "stderr"]
    text: str


class LogEndMessage(Struct, frozen=True, tag_field="type", tag="log_end"):
    """The last message of an attempt's output."""

    position: FeedPosition = field(name="place")
    at: Moment


FeedMessage = ProgressMessage | LogMessage | LogEndMessage

PROGRESS_LIMIT_PER_S = 4
LOG_INTERVAL_S = 0.25
LOG_MESSAGE_LIMIT_BYTES = 16 * 1024
JOB_LOG_LIMIT_BYTES = 4 * 1024 * 1024  # of one job's log that is published; the stored log has the rest
