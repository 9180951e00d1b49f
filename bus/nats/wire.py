"""The wire format of the broker: subjects, names of consumers, message ids and bodies, each built and parsed here.

Pure, except that it logs what cannot be decoded. The fake broker uses it too.
"""

from typing import NamedTuple, TypeVar

import msgspec
import structlog

from bus.interface import Lane, RowUnreadable, VersionedRecord, WebhookDelivery
from schemas.events import (
    DECODE_ERRORS,
    FeedMessage,
    JobRecord,
    LogMessage,
    ProgressMessage,
    RecordUnreadable,
    decode_record,
)
from schemas.job import JobKey, Pointer, Priority
from schemas.job_view import JobUsage, PowerUsage, UsageRow

T = TypeVar("T")

log = structlog.get_logger(__name__)


def record_subject(key: JobKey) -> str:
    """Return the subject of the record of `key` in STATE."""
    return f"$KV.STATE.{key.owner}.{key.id}"


def parse_record_key(subject: str) -> JobKey:
    """Return the job key in a subject of STATE."""
    owner, job_id = subject.split(".")[-2:]
    return JobKey(owner, job_id)


def row_subject(bucket: str, key: str) -> str:
    """Return the subject of a row of a bucket."""
    return f"$KV.{bucket}.{key}"


def parse_row_key(bucket: str, subject: str) -> str:
    """Return the row's key in a subject of the bucket."""
    return subject.removeprefix(f"$KV.{bucket}.")


def pointer_subject(pointer: Pointer) -> str:
    """Return the subject of a pointer in JOBS. It names the pointer completely; the body repeats it."""
    return f"job.{pointer.pool}.{pointer.priority}.{pointer.owner}.{pointer.id}.{pointer.round}"


def parse_pointer_subject(subject: str) -> Pointer | None:
    """Return the pointer in a subject of JOBS; None when another program published under `job.`."""
    tokens = subject.split(".")
    if len(tokens) != 6 or tokens[2] not in set(Priority) or not tokens[5].isdecimal():
        return None
    return Pointer(tokens[1], Priority(tokens[2]), tokens[3], tokens[4], int(tokens[5]))


def subject_matches(pattern: str, subject: str) -> bool:
    """Return whether `subject` matches `pattern`: `*` matches one token, a last `>` one or more."""
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, tokens = wanted[:-1], tokens[: len(wanted) - 1] if len(tokens) >= len(wanted) else []
    return len(wanted) == len(tokens) and all(one in ("*", token) for one, token in zip(wanted, tokens, strict=True))


def lane_consumer(pool: str, priority: Priority) -> str:
    """Return the name of the durable consumer of a lane. No priority has a dash, so no two lanes share a name."""
    return f"{pool}-{priority}"


def feed_subject(key: JobKey, message: FeedMessage) -> str:
    """Return the subject of a message in FEED."""
    kind = "progress" if isinstance(message, ProgressMessage) else "log"
    return f"feed.{key.owner}.{key.id}.{kind}"


def feed_message_id(key: JobKey, message: FeedMessage) -> str:
    """Return the Msg-Id of a message.

    The same position and type are stored once, also when another runner repeats them.
    """
    kind = type(message).__struct_config__.tag
    stream = message.stream if isinstance(message, LogMessage) else ""
    position = message.position
    return f"{key.owner}.{key.id}.{kind}.{stream}.{position.round}.{position.attempt}.{position.offset}"


def parse_feed_key(subject: str) -> JobKey:
    """Return the job key in a subject of FEED."""
    _, owner, job_id, _ = subject.split(".")
    return JobKey(owner, job_id)


def is_state_subject(subject: str) -> bool:
    """Return whether a subject of FEED belongs to a state that was sourced from STATE."""
    return subject.endswith(".state")


class DeliverySubject(NamedTuple):
    """The parts of a delivery's subject besides its job. `webhook` is empty for the webhook of the job."""

    revision: int
    replay: int
    webhook: str = ""


def delivery_subject(key: JobKey, delivery: DeliverySubject) -> str:
    """Return the subject of a webhook delivery in DELIVERIES, which is its Msg-Id too."""
    subject = f"delivery.{key.owner}.{key.id}.{delivery.revision}.{delivery.replay}"
    return f"{subject}.{delivery.webhook}" if delivery.webhook else subject


def parse_delivery_subject(subject: str) -> DeliverySubject | None:
    """Parse the subject of a delivery; None when another program published under `delivery.`."""
    tokens = subject.split(".")
    if len(tokens) not in {5, 6} or not all(token.isdecimal() for token in tokens[3:5]):
        return None
    return DeliverySubject(int(tokens[3]), int(tokens[4]), *tokens[5:])


def delivery_subjects(owner: str, job_id: str | None = None) -> str:
    """Return the pattern for all deliveries of a job, or of an owner."""
    return f"delivery.{owner}.{job_id or '*'}.>"


def wake_subject(pool: str, priority: Priority) -> str:
    """Return the core subject that wakes the runners of a lane."""
    return f"wake.{lane_consumer(pool, priority)}"


def parse_wake_subject(subject: str) -> Lane | None:
    """Return the lane in a wake subject; None when it names none."""
    pool, _, priority = subject.removeprefix("wake.").rpartition("-")
    return Lane(pool, Priority(priority)) if priority in set(Priority) else None


def usage_subject(row: UsageRow) -> str:
    """Return the subject of a row of USAGE.

    A job's revision tells it from an earlier job of the same id that was deleted.
    """
    match row:
        case JobUsage():
            return f"usage.job.{row.owner}.{row.id}.{row.revision}"
        case PowerUsage():
            return f"usage.power.{row.host}.{int(row.since.timestamp() * 1000)}"


JOB_USAGE_SUBJECTS = "usage.job.>"
POWER_USAGE_SUBJECTS = "usage.power.>"


def owner_usage_subjects(owner: str) -> str:
    """Return the pattern for the rows of an owner's jobs."""
    return f"usage.job.{owner}.>"


def nudge_subject(host: str) -> str:
    """Return the core subject that asks a host to read a record now."""
    return f"ctl.{host}"


def decode_versioned_record(revision: int, data: bytes) -> VersionedRecord:
    """Decode a record that was read at `revision`. Raises RecordUnreadable."""
    return VersionedRecord(revision, decode_record(data))


def try_decode_delivery(subject: str, data: bytes) -> WebhookDelivery | None:
    """Decode a message of DELIVERIES: its subject names the state, its body is the record.

    None when it is unreadable.
    """
    state, record = parse_delivery_subject(subject), try_decode_record(data)
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


def decode_row(decoder: msgspec.json.Decoder[T], subject: str, data: bytes) -> T:
    """Decode the value stored at `subject`. Raises RowUnreadable."""
    try:
        return decoder.decode(data)
    except DECODE_ERRORS as error:
        raise RowUnreadable(subject, " ".join(str(error).split()), data) from error


def log_unreadable_row(error: RowUnreadable) -> None:
    """Log that a row is left out of a listing."""
    log.error("row_unreadable", error=str(error))
