"""From bytes of STATE to what the port gives; both buses use it."""

from typing import TypeVar

import msgspec
import structlog

from bus.interface import RowUnreadable, VersionedRecord, WebhookDelivery
from bus.nats import subjects
from schemas.events import DECODE_ERRORS, JobRecord, RecordUnreadable, decode_record
from schemas.feed import FeedMessage
from schemas.usage import JobUsage, PowerUsage


def decode_versioned_record(revision: int, data: bytes) -> VersionedRecord:
    """The record as read; raises RecordUnreadable."""
    return VersionedRecord(revision, decode_record(data))


def try_decode_delivery(subject: str, data: bytes) -> WebhookDelivery | None:
    """A letter of DELIVERIES: its subject says which, its body is the record. None when it is none."""
    which, recorded = subjects.parse_delivery_subject(subject), try_decode_record(data)
    return None if which is None or recorded is None else WebhookDelivery(which[0], recorded, which[1])


def try_decode_record(data: bytes) -> JobRecord | None:
    """The record, None for a delete marker and for rubbish: a stream of changes must not die of one bad record."""
    try:
        return decode_record(data)
    except RecordUnreadable:
        return None


# MERGED bus/notes.py: Notes of FEED as bytes; both buses use it.


encode_feed_message = msgspec.json.encode
_feed_message_decoder: msgspec.json.Decoder[FeedMessage] = msgspec.json.Decoder(FeedMessage)


def try_decode_feed_message(data: bytes) -> FeedMessage | None:
    """The note, None for what is none: a follower must not die of one bad message."""
    try:
        return _feed_message_decoder.decode(data)
    except DECODE_ERRORS:
        return None


# MERGED bus/uses.py: Rows of USAGE from bytes; both buses use it. What is no such row is left out: a report must not
# die of one.


_job_usage_decoder = msgspec.json.Decoder(JobUsage)
_power_usage_decoder = msgspec.json.Decoder(PowerUsage)


def try_decode_job_usage(data: bytes) -> JobUsage | None:
    """The row of a job."""
    try:
        return _job_usage_decoder.decode(data)
    except msgspec.DecodeError:
        return None


def try_decode_power_usage(data: bytes) -> PowerUsage | None:
    """The row of a host's span."""
    try:
        return _power_usage_decoder.decode(data)
    except msgspec.DecodeError:
        return None


# MERGED bus/rows.py: From the bytes of a bucket to a row; both buses use it.


T = TypeVar("T")

log = structlog.get_logger(__name__)


def decode_row(decoder: msgspec.json.Decoder[T], subject: str, data: bytes) -> T:
    """The value stored at `subject`. Raises Unreadable."""
    try:
        return decoder.decode(data)
    except DECODE_ERRORS as error:
        raise RowUnreadable(f"{subject} does not hold a readable row ({error}): delete it or write it again") from error


def log_unreadable_row(error: RowUnreadable) -> None:
    """Log that a row is left out of a listing."""
    log.error("a row cannot be read, it is set aside", error=str(error))
