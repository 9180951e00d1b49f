"""A client for the few requests of the JetStream API that we make, the ack protocol, and reading a stream in order.

It reads and writes the API's JSON itself, because the objects of nats-py drop fields that they do not know.

A stream is read by an ephemeral push consumer on our inbox, checked by its own sequence and its heartbeats. It does not
repair itself. On a gap, a silence or a broken connection it raises ConsumerLost, and the caller opens a new one after
the last message. nats-py's ordered consumer stays silent after a restart of the broker.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import anyio
import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from bus.interface import BrokerDenied, BrokerUnreachable, BusError
from bus.nats.connection import REQUEST_TIMEOUT_S, NatsConnection, RequestTimeout, reply_status
from bus.nats.replies import JetStreamNotFound, WriteInProcess, from_api_error, parse_ack_subject
from schemas.events import DECODE_ERRORS

NS_PER_S = 10**9  # the API counts in nanoseconds
IN_PROCESS_RETRY_INTERVAL_S = 0.01  # three servers agree on a write within 3 ms

ResponseT = TypeVar("ResponseT", bound="ApiResponse")

log = structlog.get_logger(__name__)


class JetStreamApiError(Struct, frozen=True):
    """`err_code` names the error; `description` is a text for people."""

    err_code: int = 0
    description: str = ""


class ApiResponse(Struct, frozen=True):
    """A response of the API, which may be an error."""

    error: JetStreamApiError | None = None


class StoredMessage(Struct, frozen=True):
    """A message as the leader holds it; `data` and `hdrs` come in base64."""

    subject: str
    seq: int
    data: bytes = b""
    hdrs: bytes = b""

    @property
    def headers(self) -> dict[str, str]:
        """The headers; the first line is the protocol version."""
        lines = self.hdrs.decode(errors="replace").splitlines()[1:]
        return {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


class _MessageResponse(ApiResponse, frozen=True):
    message: StoredMessage | None = None


class _PubAck(ApiResponse, frozen=True):
    seq: int = 0


class SourceInfo(Struct, frozen=True):
    """The last sequence that a stream has sourced from another."""

    name: str
    seq: int = 0


class StreamState(Struct, frozen=True):
    """The contents of a stream; `subjects` only where the request asks for them. `first_ts`: of the oldest message."""

    first_seq: int = 0
    last_seq: int = 0
    messages: int = 0
    num_subjects: int = 0
    first_ts: str = ""
    subjects: dict[str, int] | None = None


class StreamPlacement(Struct, frozen=True):
    """The part of a stream configuration that the installation chooses: its replicas."""

    num_replicas: int = 1


class StreamInfo(ApiResponse, frozen=True):
    """The parts of STREAM.INFO that are used here.

    `created`, to the nanosecond, tells a stream from a later one of its name. `ts`: the broker's clock.
    """

    config: StreamPlacement = StreamPlacement()
    created: str = ""
    ts: str = ""
    state: StreamState = StreamState()
    sources: tuple[SourceInfo, ...] = ()
    total: int = 0


class JetStreamClient:
    """Requests to the JetStream API. Raises the errors of `bus.interface`."""

    def __init__(self, connection: NatsConnection) -> None:
        self.connection = connection

    async def call(
        self, verb: str, body: Mapping[str, Any], kind: type[ResponseT], within_s: float = REQUEST_TIMEOUT_S
    ) -> ResponseT:
        """Request `$JS.API.<verb>` and decode the response as `kind`."""
        subject = f"$JS.API.{verb}"
        return parse_response(
            subject, await self.connection.request(subject, msgspec.json.encode(body), within_s=within_s), kind
        )

    async def finish_restore(self, verb: str, subject: str, within_s: float) -> None:
        """Tell `subject` that all data of the restore `verb` was sent; return when the broker has stored it."""
        parse_response(verb, await self.connection.request(subject, within_s=within_s), ApiResponse)

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        expect: int | None = None,
        message_id: str | None = None,
        marker: bool = False,
    ) -> int:
        """Publish and return the sequence, once the message is stored (and synced).

        `expect`: the last sequence of the subject, 0 for none; raises RevisionConflict when it is another. A message
        with a `message_id` that was seen before is not stored again. While a cluster still agrees on the first copy of
        a message, this tries again for at most 5 s.
        """
        headers = {
            name: value
            for name, value in (
                ("Nats-Expected-Last-Subject-Sequence", None if expect is None else str(expect)),
                ("Nats-Msg-Id", message_id),
                ("KV-Operation", "DEL" if marker else None),
            )
            if value is not None
        }
        deadline: float | None = None
        while True:
            try:
                return await self._store(subject, data, headers)
            except WriteInProcess:
                deadline = anyio.current_time() + REQUEST_TIMEOUT_S if deadline is None else deadline
                if anyio.current_time() >= deadline:
                    raise
            await anyio.sleep(IN_PROCESS_RETRY_INTERVAL_S)

    async def _store(self, subject: str, data: bytes, headers: Mapping[str, str]) -> int:
        message = await self.connection.request(subject, data, headers)
        if reply_status(message):
            raise BrokerUnreachable(
                f"{subject}: no stream stores it: the broker is starting, or no edge has connected yet; try again"
            )
        ack = _decode_response(subject, message, _PubAck)
        if ack.error is not None:
            raise from_api_error(subject, ack.error.err_code, ack.error.description)
        return ack.seq

    async def get_last(self, stream: str, subject: str) -> StoredMessage | None:
        """Return the last message of a subject, from the leader; `subject` may hold wildcards."""
        return await self._get_message(stream, {"last_by_subj": subject})

    async def get_next(self, stream: str, subject: str, sequence: int) -> StoredMessage | None:
        """Return the first message of a subject with `sequence` or a later one, from the leader."""
        return await self._get_message(stream, {"seq": sequence, "next_by_subj": subject})

    async def get(self, stream: str, sequence: int) -> StoredMessage | None:
        """Return the message with this sequence, from the leader; None if it was removed."""
        return await self._get_message(stream, {"seq": sequence})

    async def _get_message(self, stream: str, which: Mapping[str, Any]) -> StoredMessage | None:
        try:
            return (await self.call(f"STREAM.MSG.GET.{stream}", which, _MessageResponse)).message
        except JetStreamNotFound:
            return None

    async def stream_info(self, stream: str) -> StreamInfo:
        """Return the configuration and state of a stream (API call STREAM.INFO)."""
        return await self.call(f"STREAM.INFO.{stream}", {}, StreamInfo)

    async def list_subjects(self, stream: str, pattern: str) -> set[str]:
        """Return every subject that holds a message."""
        return set(await self.count_by_subject(stream, pattern))

    async def count_by_subject(self, stream: str, pattern: str) -> dict[str, int]:
        """Return the number of messages of each subject that has one.

        Reads page by page: the broker gives 100,000 at once.
        """
        found: dict[str, int] = {}
        while True:
            page = await self.call(
                f"STREAM.INFO.{stream}", {"subjects_filter": pattern, "offset": len(found)}, StreamInfo
            )
            counts = page.state.subjects or {}
            found.update(counts)
            if not counts or len(found) >= page.total:
                return found

    async def secure_delete_subject(self, stream: str, subject: str, below: int | None = None) -> int:
        """Overwrite and remove every message of `subject` (before `below`); return how many there were.

        A purge, an acknowledgement or a limit of the stream would leave the bytes on disk.
        """
        sequence, erased = 1, 0
        while (found := await self.get_next(stream, subject, sequence)) and (below is None or found.seq < below):
            await self.secure_delete_message(stream, found.seq)
            sequence, erased = found.seq + 1, erased + 1
        return erased

    async def secure_delete_message(self, stream: str, sequence: int) -> None:
        """Overwrite and remove one message; nothing happens when it does not exist."""
        try:
            await self.call(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence}, ApiResponse)
        except JetStreamNotFound:
            return


def parse_response(subject: str, message: Msg, kind: type[ResponseT]) -> ResponseT:
    """Decode a response of JetStream.

    Raises BrokerUnreachable when JetStream does not answer, and the error that it answers.
    """
    if reply_status(message):
        raise BrokerUnreachable(f"{subject}: JetStream does not answer yet: try again")
    response = _decode_response(subject, message, kind)
    if response.error is not None:
        raise from_api_error(subject, response.error.err_code, response.error.description)
    return response


def _decode_response(subject: str, message: Msg, kind: type[ResponseT]) -> ResponseT:
    """Decode the bytes of a response. Raises BusError when they are not one of this type."""
    try:
        return msgspec.json.decode(message.data, type=kind)
    except DECODE_ERRORS as error:
        raise BusError(f"{subject}: the broker answered something that is not JetStream's JSON ({error})") from error


def parse_time_ns(text: str) -> int:
    """Return a time of the broker in nanoseconds, which a datetime cannot hold. Raises BusError."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    try:
        seconds = int(datetime.fromisoformat(f"{whole}+00:00").timestamp())
        return seconds * NS_PER_S + int(fraction.ljust(9, "0")[:9] or 0)
    except (ValueError, OverflowError) as error:
        raise BusError(f"the broker answered {text[:40]!r} where a time is expected") from error


ANSWER_TIMEOUT_S = 2.0  # for the confirmation of an ack, a nak or a sign of progress


class AckableMessage:
    """An unacknowledged JetStream message: in-progress, ack, nak.

    Each answer is confirmed by the broker, so one that is lost in a break raises BrokerUnreachable. A broker that
    crashed right after a delivery may have forgotten it. It then ignores answers to that delivery and delivers the
    message again, so a missing confirmation is not waited for without end.
    """

    def __init__(self, jetstream: JetStreamClient, reply: str, name: str) -> None:
        self._jetstream = jetstream
        self._reply = reply
        self._name = name

    async def in_progress(self) -> None:
        """Extend the lease of the message."""
        await self._send_answer(b"+WPI")

    async def ack(self) -> None:
        """Acknowledge the message, and wait for the confirmation."""
        await self._send_answer(b"+ACK")

    async def nak(self, delay_s: float) -> None:
        """Return the message, always with a delay: without one the broker delivers it again at once."""
        await self._send_answer(b'-NAK {"delay": %d}' % max(1, int(delay_s * NS_PER_S)))

    async def _send_answer(self, answer: bytes) -> None:
        try:
            message = await self._jetstream.connection.request(self._reply, answer, within_s=ANSWER_TIMEOUT_S)
        except RequestTimeout:
            await self._jetstream.connection.ping()
            log.warning("delivery_forgotten_by_broker", name=self._name)
            return
        if reply_status(message):
            raise BrokerUnreachable(f"{self._name}: its consumer does not answer: the broker is starting, try again")


IDLE_HEARTBEAT_INTERVAL_S = 5
SILENCE_TIMEOUT_S = 2.5 * IDLE_HEARTBEAT_INTERVAL_S
INACTIVE_TIMEOUT_S = 30
REOPEN_DELAY_S = 0.1


class ConsumerLost(BrokerUnreachable):
    """This consumer delivers nothing more: open another one."""


class ReadRequest(NamedTuple):
    """The messages to read: after a sequence (0: from the start), or since a time, or the last of every subject.

    `headers_only` leaves out the bodies.
    """

    stream: str
    subjects: str
    after_sequence: int = 0
    last_per_subject: bool = False
    headers_only: bool = False
    since: datetime | None = None


class ConsumedMessage(NamedTuple):
    """A message. `pending` more match after it; `stored_at_ns` is when it was stored."""

    sequence: int
    subject: str
    data: bytes
    headers: Mapping[str, str]
    stored_at_ns: int
    pending: int


class _ConsumerCreated(ApiResponse, frozen=True):
    name: str = ""
    num_pending: int = 0


class OrderedConsumer:
    """An open consumer. `pending`: how many messages matched when it was opened."""

    def __init__(
        self, jetstream: JetStreamClient, name: str, pending: int, inbox: asyncio.Queue[Msg | BusError]
    ) -> None:
        self.name = name
        self.pending = pending
        self._jetstream = jetstream
        self._inbox = inbox
        self._sequence = 0

    async def next(self) -> ConsumedMessage:
        """Return the next message. Raises ConsumerLost; BrokerDenied when the user may not subscribe."""
        while True:
            try:
                # An anyio cancel scope for each message costs four times as much.
                async with asyncio.timeout(SILENCE_TIMEOUT_S):
                    message = await self._inbox.get()
            except TimeoutError as error:
                raise ConsumerLost(
                    f"consumer {self.name} is silent: not even a heartbeat in {SILENCE_TIMEOUT_S} s"
                ) from error
            if isinstance(message, BrokerDenied):
                raise message
            if isinstance(message, BusError):
                raise ConsumerLost(str(message)) from message
            if reply_status(message):
                await self._handle_control(message)
            else:
                return self._to_message(message)

    def _to_message(self, message: Msg) -> ConsumedMessage:
        ack = parse_ack_subject(message.reply)
        self._sequence += 1
        if ack is None or ack.consumer_sequence != self._sequence:
            raise ConsumerLost(
                f"consumer {self.name} lost messages before sequence {ack.consumer_sequence if ack else '?'}"
            )
        return ConsumedMessage(
            ack.sequence, message.subject, message.data, message.headers or {}, ack.stored_at_ns, ack.pending
        )

    async def _handle_control(self, message: Msg) -> None:
        """Answer flow control, after all earlier messages were read; compare the sequence of a heartbeat."""
        headers = message.headers or {}
        if headers.get("Status") != "100":
            raise ConsumerLost(f"consumer {self.name} ended: {headers.get('Description')}")
        if int(headers.get("Nats-Last-Consumer", self._sequence)) > self._sequence:
            raise ConsumerLost(f"consumer {self.name} lost messages after sequence {self._sequence}")
        stalled = message.reply or headers.get("Nats-Consumer-Stalled")
        if stalled:
            await self._jetstream.connection.publish(stalled)


def _consumer_config(reading: ReadRequest, inbox: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "deliver_subject": inbox,
        "filter_subject": reading.subjects,
        "deliver_policy": "all",
        "headers_only": reading.headers_only,
        "ack_policy": "none",
        "max_deliver": 1,
        "mem_storage": True,
        "num_replicas": 1,
        "flow_control": True,
        "idle_heartbeat": IDLE_HEARTBEAT_INTERVAL_S * NS_PER_S,
        "inactive_threshold": INACTIVE_TIMEOUT_S * NS_PER_S,
    }
    if reading.last_per_subject:
        config["deliver_policy"] = "last_per_subject"
    elif reading.since:
        config |= {"deliver_policy": "by_start_time", "opt_start_time": reading.since.astimezone(UTC).isoformat()}
    elif reading.after_sequence:
        config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": reading.after_sequence + 1}
    return config


@asynccontextmanager
async def open_consumer(jetstream: JetStreamClient, reading: ReadRequest) -> AsyncIterator[OrderedConsumer]:
    """Open a consumer, and delete it at the end. Raises what the JetStream API raises."""
    messages: asyncio.Queue[Msg | BusError] = asyncio.Queue()
    inbox = jetstream.connection.new_inbox_subject()
    name = inbox.replace(".", "-")
    async with jetstream.connection.subscribed(inbox, messages.put_nowait):
        body = {"stream_name": reading.stream, "config": {"name": name, **_consumer_config(reading, inbox)}}
        verb = f"CONSUMER.CREATE.{reading.stream}.{name}.{reading.subjects}"
        created = await jetstream.call(verb, body, _ConsumerCreated)
        try:
            yield OrderedConsumer(jetstream, name, created.num_pending, messages)
        finally:
            await _delete_consumer(jetstream, f"$JS.API.CONSUMER.DELETE.{reading.stream}.{name}")


async def _delete_consumer(jetstream: JetStreamClient, subject: str) -> None:
    """Ask for the deletion without waiting: the broker removes an unused consumer after 30 s anyway."""
    with anyio.CancelScope(shield=True):
        try:
            await jetstream.connection.publish(subject)
        except BrokerUnreachable:
            return


async def read_all(jetstream: JetStreamClient, reading: ReadRequest) -> list[ConsumedMessage]:
    """Return all messages that match now, oldest first.

    Raises ConsumerLost when the connection breaks in the meantime.
    """
    items: list[ConsumedMessage] = []
    async with open_consumer(jetstream, reading) as consumer:
        pending = consumer.pending
        while pending:
            item = await consumer.next()
            items.append(item)
            pending = item.pending
    return items


async def wait_until_reconnected(jetstream: JetStreamClient) -> None:
    """Wait for the connection after a break, and a moment more for a broker that is still starting."""
    await anyio.sleep(REOPEN_DELAY_S)
    await jetstream.connection.wait_until_connected()
