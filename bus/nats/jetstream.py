"""The few requests of the JetStream API that we make, as its own JSON: nats-py's objects drop unknown fields."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

import anyio
import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from bus.interface import BrokerUnreachable, BusError
from bus.nats.connection import REQUEST_TIMEOUT_S, NatsConnection, RequestTimeout, reply_status
from bus.nats.errors import JetStreamNotFound, WriteInProcess, from_api_error
from schemas.events import DECODE_ERRORS

IN_PROCESS_RETRY_INTERVAL_S = 0.01  # three servers agree on a write in 2 to 3 ms

ResponseT = TypeVar("ResponseT", bound="ApiResponse")


class JetStreamApiError(Struct, frozen=True):
    """`err_code` names the error; `description` is for people."""

    err_code: int = 0
    description: str = ""


class ApiResponse(Struct, frozen=True):
    """Every answer of the API may be an error."""

    error: JetStreamApiError | None = None


class StoredMessage(Struct, frozen=True):
    """A message as the leader holds it; `data` and `hdrs` come in base64."""

    subject: str
    seq: int
    data: bytes = b""
    hdrs: bytes = b""

    @property
    def headers(self) -> dict[str, str]:
        """Its headers; the first line is the protocol's own."""
        lines = self.hdrs.decode(errors="replace").splitlines()[1:]
        return {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


class _MessageResponse(ApiResponse, frozen=True):
    message: StoredMessage | None = None


class _PubAck(ApiResponse, frozen=True):
    seq: int = 0


class SourceInfo(Struct, frozen=True):
    """How far a stream has come with one of its sources."""

    name: str
    seq: int = 0


class StreamState(Struct, frozen=True):
    """What a stream holds; `subjects` only where they were asked for."""

    first_seq: int = 0
    last_seq: int = 0
    subjects: dict[str, int] | None = None


class StreamPlacement(Struct, frozen=True):
    """The part of a stream's configuration that the installation chooses: on how many servers it is kept."""

    num_replicas: int = 1


class StreamInfo(ApiResponse, frozen=True):
    """The parts of STREAM.INFO that are used here. `created` names this life of the stream, to the nanosecond."""

    config: StreamPlacement = StreamPlacement()
    created: str = ""
    state: StreamState = StreamState()
    sources: tuple[SourceInfo, ...] = ()
    total: int = 0


class JetStreamClient:
    """Raises the port's errors."""

    def __init__(self, wire: NatsConnection) -> None:
        self.connection = wire

    async def call(
        self, verb: str, body: Mapping[str, Any], kind: type[ResponseT], within_s: float = REQUEST_TIMEOUT_S
    ) -> ResponseT:
        """Ask `$JS.API.<verb>`."""
        subject = f"$JS.API.{verb}"
        return parse_response(
            subject, await self.connection.request(subject, msgspec.json.encode(body), within_s=within_s), kind
        )

    async def finish_restore(self, verb: str, subject: str, within_s: float) -> None:
        """Say to `subject` that all was sent of what `verb` asked for; return when the broker has taken it in."""
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
        """Publish and return the sequence, once stored (and synced).

        Said again while a cluster still agrees on it, it is asked for until that is over, 5 s at most.
        `expect`: the last sequence of the subject, 0 for none, else Conflict. `message_id` seen before: stored once.
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
        ends = anyio.current_time() + REQUEST_TIMEOUT_S
        while True:
            try:
                return await self._store(subject, data, headers)
            except WriteInProcess:
                if anyio.current_time() >= ends:
                    raise
            await anyio.sleep(IN_PROCESS_RETRY_INTERVAL_S)

    async def _store(self, subject: str, data: bytes, headers: Mapping[str, str]) -> int:
        message = await self.connection.request(subject, data, headers)
        if reply_status(message):
            raise BrokerUnreachable(
                f"{subject}: no stream takes it; the broker is starting, or the edge has not been there"
            )
        ack = _decode_response(subject, message, _PubAck)
        if ack.error is not None:
            raise from_api_error(subject, ack.error.err_code, ack.error.description)
        return ack.seq

    async def get_last(self, stream: str, subject: str) -> StoredMessage | None:
        """The last message of a subject, from the leader; `subject` may hold wildcards."""
        return await self._get_message(stream, {"last_by_subj": subject})

    async def get_next(self, stream: str, subject: str, sequence: int) -> StoredMessage | None:
        """The first message of a subject at or behind `sequence`, from the leader."""
        return await self._get_message(stream, {"seq": sequence, "next_by_subj": subject})

    async def _get_message(self, stream: str, which: Mapping[str, Any]) -> StoredMessage | None:
        try:
            return (await self.call(f"STREAM.MSG.GET.{stream}", which, _MessageResponse)).message
        except JetStreamNotFound:
            return None

    async def stream_info(self, stream: str) -> StreamInfo:
        """The state of a stream."""
        return await self.call(f"STREAM.INFO.{stream}", {}, StreamInfo)

    async def list_subjects(self, stream: str, pattern: str) -> set[str]:
        """Every subject that holds a message."""
        return set(await self.count_by_subject(stream, pattern))

    async def count_by_subject(self, stream: str, pattern: str) -> dict[str, int]:
        """How many messages each subject holds that holds one, page by page (the broker gives 100,000 at once)."""
        found: dict[str, int] = {}
        while True:
            page = await self.call(
                f"STREAM.INFO.{stream}", {"subjects_filter": pattern, "offset": len(found)}, StreamInfo
            )
            held = page.state.subjects or {}
            found.update(held)
            if not held or len(found) >= page.total:
                return found

    async def secure_delete_subject(self, stream: str, subject: str, below: int | None = None) -> int:
        """Overwrite and remove every message of `subject` (under `below`); how many there were.

        A purge would leave the bytes on disk, and so does an acknowledgement, or a limit of the stream.
        """
        at, erased = 1, 0
        while (found := await self.get_next(stream, subject, at)) and (below is None or found.seq < below):
            await self.secure_delete_message(stream, found.seq)
            at, erased = found.seq + 1, erased + 1
        return erased

    async def secure_delete_message(self, stream: str, sequence: int) -> None:
        """Erase one message; nothing happens when it is gone."""
        try:
            await self.call(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence}, ApiResponse)
        except JetStreamNotFound:
            return


def parse_response(subject: str, message: Msg, kind: type[ResponseT]) -> ResponseT:
    """What JetStream answered. Raises Unreachable where nobody did, and the port's error for its error."""
    if reply_status(message):
        raise BrokerUnreachable(f"{subject}: JetStream does not answer yet")
    answer = _decode_response(subject, message, kind)
    if answer.error is not None:
        raise from_api_error(subject, answer.error.err_code, answer.error.description)
    return answer


def _decode_response(subject: str, message: Msg, kind: type[ResponseT]) -> ResponseT:
    """Return the decoded answer. Raises BusError where the bytes are not an answer of this kind."""
    try:
        return msgspec.json.decode(message.data, type=kind)
    except DECODE_ERRORS as error:
        raise BusError(f"{subject}: the broker answered something that is not JetStream's JSON ({error})") from error


def parse_created_ns(created: str) -> int:
    """The broker's `created` as one number: its digits, since nanoseconds do not fit a datetime. Raises BusError."""
    whole, _, fraction = created.rstrip("Z").partition(".")
    try:
        seconds = int(datetime.fromisoformat(f"{whole}+00:00").timestamp())
        return seconds * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)
    except (ValueError, OverflowError) as error:
        raise BusError(f"the broker says that a stream was created at {created[:40]!r}, which is not a time") from error


# MERGED bus/handing.py: A message that a pull consumer handed out, and what may be said of it.


ACK_TIMEOUT_S = 2.0

log = structlog.get_logger(__name__)


class AckableMessage:
    """Every answer to the broker is itself answered, so that one that was lost in a break raises Unreachable.

    A broker that crashed right after handing a message out may have forgotten that it did; it then ignores what is said
    of that delivery and hands the message out again. To wait for an acknowledgement would be to wait for ever.
    """

    def __init__(self, js: JetStreamClient, reply: str, name: str) -> None:
        self._js = js
        self._reply = reply
        self._name = name

    async def in_progress(self) -> None:
        """In progress."""
        await self._send_answer(b"+WPI")

    async def ack(self) -> None:
        """Acknowledged, and that confirmed."""
        await self._send_answer(b"+ACK")

    async def nak(self, delay_s: float) -> None:
        """Always with a delay: without one the broker hands it out again at once."""
        await self._send_answer(b'-NAK {"delay": %d}' % max(1, int(delay_s * 10**9)))

    async def _send_answer(self, answer: bytes) -> None:
        try:
            message = await self._js.connection.request(self._reply, answer, within_s=ACK_TIMEOUT_S)
        except RequestTimeout:
            await self._js.connection.ping()
            log.warning("the broker forgot a delivery, it comes again", name=self._name)
            return
        if reply_status(message):
            raise BrokerUnreachable(f"{self._name}: its consumer does not answer; the broker is starting")
