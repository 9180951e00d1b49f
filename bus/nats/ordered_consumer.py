"""Read a stream in order: an ephemeral push consumer on our inbox, checked by its own sequence and its heartbeats.

It does not repair itself. On a gap, a silence or a broken connection it raises ConsumerLost, and the caller opens a new
one after the last message. nats-py's ordered consumer stays silent after a restart of the broker.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import anyio
from nats.aio.msg import Msg

from bus.interface import BrokerDenied, BrokerUnreachable, BusError
from bus.nats.connection import reply_status
from bus.nats.jetstream import NS_PER_S, ApiResponse, JetStreamClient
from bus.nats.requests import parse_ack_subject

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
                async with asyncio.timeout(
                    SILENCE_TIMEOUT_S
                ):  # an anyio cancel scope for each message costs four times as much
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
