"""Decode bytes of the broker to values of the ports, and log what cannot be decoded.

Pure; the fake broker uses it too.
"""

from typing import TypeVar

import msgspec
import structlog

from bus.interface import RowUnreadable, VersionedRecord, WebhookDelivery
from bus.nats import subjects
from schemas.events import DECODE_ERRORS, JobRecord, RecordUnreadable, decode_record
from schemas.feed import FeedMessage
from schemas.usage import JobUsage, PowerUsage


def decode_versioned_record(revision: int, data: bytes) -> VersionedRecord:
    """Decode a record that was read at `revision`. Raises RecordUnreadable."""
    return VersionedRecord(revision, decode_record(data))


def try_decode_delivery(subject: str, data: bytes) -> WebhookDelivery | None:
    """Decode a message of DELIVERIES: its subject names the state, its body is the record.

    None when it is unreadable.
    """
    state, record = subjects.parse_delivery_subject(subject), try_decode_record(data)
    return (
        None
        if state is None or record is None
        else WebhookDelivery(state.revision, record, state.replay, state.webhook)
    )


def try_decode_record(data: bytes) -> JobRecord | None:
    """Decode a record.

    None for a delete marker and for unreadable bytes: a stream of changes must survive one bad record.
    """
    try:
        return decode_record(data)
    except RecordUnreadable:
        return None


encode_feed_message = msgspec.json.encode
_feed_message_decoder: msgspec.json.Decoder[FeedMessage] = msgspec.json.Decoder(FeedMessage)


def try_decode_feed_message(data: bytes) -> FeedMessage | None:
    """Decode a message of FEED. None when it is unreadable: a follower must survive one bad message."""
    try:
        return _feed_message_decoder.decode(data)
    except DECODE_ERRORS:
        return None


_job_usage_decoder = msgspec.json.Decoder(JobUsage)
_power_usage_decoder = msgspec.json.Decoder(PowerUsage)


def try_decode_job_usage(data: bytes) -> JobUsage | None:
    """Decode a job's row of USAGE. None when it is unreadable: a report leaves it out."""
    try:
        return _job_usage_decoder.decode(data)
    except msgspec.DecodeError:
        return None


def try_decode_power_usage(data: bytes) -> PowerUsage | None:
    """Decode a host's row of USAGE. None when it is unreadable: a report leaves it out."""
    try:
        return _power_usage_decoder.decode(data)
    except msgspec.DecodeError:
        return None


T = TypeVar("T")

log = structlog.get_logger(__name__)


def decode_row(decoder: msgspec.json.Decoder[T], subject: str, data: bytes) -> T:
    """Decode the value stored at `subject`. Raises RowUnreadable."""
    try:
        return decoder.decode(data)
    except DECODE_ERRORS as error:
        raise RowUnreadable(f"{subject} does not hold a readable row ({error}): delete it or write it again") from error


def describe_unreadable_row(error: RowUnreadable) -> str:
    """Return what the decoder says of the row."""
    return " ".join(str(error.__cause__ or error).split())


def log_unreadable_row(error: RowUnreadable) -> None:
    """Log that a row is left out of a listing."""
    log.error("row_unreadable", error=str(error))
