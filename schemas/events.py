"""What can happen to a job: one frozen tagged Struct per fact. The law that orders them is `schemas.lifecycle`.

`Recorded` is what STATE holds: the fact, when, and the job as it became. The reader is tolerant: a fact that a newer
writer knows and this one does not decodes as `Unknown`, the job beside it still counts.
"""

from typing import Any

import msgspec
from msgspec import Struct

from schemas.job import Claim, Failure, Job, Moment, Output, Usage
from schemas.words import Priority


class Fact(Struct, frozen=True, tag_field="type"):
    """Base of all events."""


class Submitted(Fact, frozen=True, tag="submitted"):
    """The record was made, or made again for the next round; its status says whether it may start at once."""


class Supplied(Fact, frozen=True, tag="supplied"):
    """A file that the input lacked is there: uploaded, or fetched from `url`, whose place in the input it takes."""

    sha256: str
    url: str | None = None


class Queued(Fact, frozen=True, tag="queued"):
    """A scheduled job came due, or its inputs are complete."""


class Started(Fact, frozen=True, tag="started"):
    """A runner claimed the job: a new attempt. No work is done before this is acknowledged."""

    claim: Claim


class Adopted(Fact, frozen=True, tag="adopted"):
    """A new life of the same host found the container of the attempt: no attempt is lost."""

    claim: Claim
    round: int


class Released(Fact, frozen=True, tag="released"):
    """The attempt ended without an end of the job: it waits again, until `not_before`.

    `charged`: whether it cost an attempt. `code` is of `failures.FAILURES`, or `drained`.
    """

    code: str
    message: str = ""
    charged: bool = False
    not_before: Moment | None = None


class Reprioritised(Fact, frozen=True, tag="reprioritised"):
    """The job moves to another queue of its pool."""

    priority: Priority


class CancelRequested(Fact, frozen=True, tag="cancel_requested"):
    """The owner wants a running job stopped."""


class Cancelled(Fact, frozen=True, tag="cancelled"):
    """The owner's wish came true."""

    usage: Usage | None = None
    log: str | None = None


class Succeeded(Fact, frozen=True, tag="succeeded"):
    """The outputs are durable in the asset store."""

    output: Output
    usage: Usage = Usage()
    log: str | None = None


class Failed(Fact, frozen=True, tag="failed"):
    """No further attempt will be made in this round."""

    error: Failure
    usage: Usage | None = None
    log: str | None = None


class Expired(Fact, frozen=True, tag="expired"):
    """The job never started: `reason` is `start_timeout` or `deadline`."""

    reason: str


class Retried(Fact, frozen=True, tag="retried"):
    """The owner asked for a new round, with the same inputs."""


class Unknown(Struct, frozen=True):
    """A fact of a newer writer. It is shown as it came and never applied."""

    type: str


Event = (
    Submitted
    | Supplied
    | Queued
    | Started
    | Adopted
    | Released
    | Reprioritised
    | CancelRequested
    | Cancelled
    | Succeeded
    | Failed
    | Expired
    | Retried
)


class Recorded(Struct, frozen=True):
    """One revision of STATE."""

    at: Moment
    event: Event | Unknown
    job: Job


class _Strict(Struct, frozen=True):
    at: Moment
    event: Event
    job: Job


class _Tolerant(Struct, frozen=True):
    at: Moment
    event: Unknown
    job: Job


class RecordUnreadable(ValueError):
    """The bytes in STATE are no record. The caller decides; nothing is guessed."""


# What msgspec raises for bytes that are no record: no JSON, no UTF-8 inside a text, brackets nested without end.
RUBBISH = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_strict = msgspec.json.Decoder(_Strict)
_tolerant = msgspec.json.Decoder(_Tolerant)


def encode(recorded: Recorded) -> bytes:
    """The bytes that STATE holds."""
    return msgspec.json.encode(recorded)


def decode(data: bytes) -> Recorded:
    """Read `data`; raises RecordUnreadable."""
    try:
        known = _strict.decode(data)
        return Recorded(known.at, known.event, known.job)
    except msgspec.ValidationError:
        pass  # perhaps a fact of a newer writer: the second reading tells
    except RUBBISH as error:
        raise RecordUnreadable(str(error)) from error
    try:
        newer = _tolerant.decode(data)
    except RUBBISH as error:
        raise RecordUnreadable(str(error)) from error
    return Recorded(newer.at, newer.event, newer.job)


def as_json(event: Event | Unknown) -> dict[str, Any]:
    """The event as history rows show it: `{"type": …}` and its fields."""
    shown = msgspec.to_builtins(event)
    if not isinstance(shown, dict):
        raise TypeError(f"an event is an object, not {type(shown).__name__}")
    return shown
