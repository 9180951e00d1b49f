"""Reading a stream in order: one ephemeral consumer that pushes to our inbox, watched by its own count and heartbeat.

It never mends itself. On a gap, a silence or a broken connection it raises Broken, and whoever reads opens anew behind
what was given last: nats-py's ordered consumer stays silent after a restart of the broker.
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
from bus.nats.jetstream import ApiResponse, JetStreamClient
from bus.nats.requests import parse_ack_subject

NS_PER_S = 10**9
IDLE_HEARTBEAT_INTERVAL_S = 5
SILENCE_TIMEOUT_S = 2.5 * IDLE_HEARTBEAT_INTERVAL_S
INACTIVE_TIMEOUT_S = 30
REOPEN_DELAY_S = 0.1


class ConsumerLost(BrokerUnreachable):
    """This consumer gives nothing more: open another one."""


class ReadRequest(NamedTuple):
    """What to read: behind a sequence (0: from the start), or what was stored since a moment, or the last of every
    subject; bodies or headers only."""

    stream: str
    subjects: str
    after_sequence: int = 0
    last_per_subject: bool = False
    headers_only: bool = False
    since: datetime | None = None


class ConsumedMessage(NamedTuple):
    """A message. `pending` more match behind it; `at` is when it was stored, in ns."""

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
    """`pending`: how many messages matched when it was opened."""

    def __init__(self, js: JetStreamClient, name: str, pending: int, inbox: asyncio.Queue[Msg | BusError]) -> None:
        self.name = name
        self.pending = pending
        self._js = js
        self._inbox = inbox
        self._step = 0

    async def next(self) -> ConsumedMessage:
        """The next message. Raises Broken; Denied when the user may not listen."""
        while True:
            try:
                async with asyncio.timeout(
                    SILENCE_TIMEOUT_S
                ):  # a cancel scope costs four times as much, a message each
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
        got = parse_ack_subject(message.reply)
        self._step += 1
        if got is None or got.consumer_sequence != self._step:
            raise ConsumerLost(
                f"consumer {self.name} lost messages before step {got.consumer_sequence if got else '?'}"
            )
        return ConsumedMessage(
            got.sequence, message.subject, message.data, message.headers or {}, got.stored_at_ns, got.pending
        )

    async def _handle_control(self, message: Msg) -> None:
        """Answer flow control, once what came before it was read; judge a heartbeat's count."""
        headers = message.headers or {}
        if headers.get("Status") != "100":
            raise ConsumerLost(f"consumer {self.name} ended: {headers.get('Description')}")
        if int(headers.get("Nats-Last-Consumer", self._step)) > self._step:
            raise ConsumerLost(f"consumer {self.name} lost messages behind step {self._step}")
        stalled = message.reply or headers.get("Nats-Consumer-Stalled")
        if stalled:
            await self._js.connection.publish(stalled)


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
async def open_consumer(js: JetStreamClient, reading: ReadRequest) -> AsyncIterator[OrderedConsumer]:
    """A consumer, deleted at the end. Raises what the API raises."""
    messages: asyncio.Queue[Msg | BusError] = asyncio.Queue()
    inbox = js.connection.new_inbox_subject()
    name = inbox.replace(".", "-")
    async with js.connection.subscribed(inbox, messages.put_nowait):
        body = {"stream_name": reading.stream, "config": {"name": name, **_consumer_config(reading, inbox)}}
        verb = f"CONSUMER.CREATE.{reading.stream}.{name}.{reading.subjects}"
        made = await js.call(verb, body, _ConsumerCreated)
        try:
            yield OrderedConsumer(js, name, made.num_pending, messages)
        finally:
            await _delete_consumer(js, f"$JS.API.CONSUMER.DELETE.{reading.stream}.{name}")


async def _delete_consumer(js: JetStreamClient, subject: str) -> None:
    """Not waited for: a consumer that nobody listens to goes by itself after 30 s."""
    with anyio.CancelScope(shield=True):
        try:
            await js.connection.publish(subject)
        except BrokerUnreachable:
            return


async def read_all(js: JetStreamClient, reading: ReadRequest) -> list[ConsumedMessage]:
    """All that matches now, oldest first. Raises Broken when the connection breaks meanwhile."""
    items: list[ConsumedMessage] = []
    async with open_consumer(js, reading) as consumer:
        pending = consumer.pending
        while pending:
            item = await consumer.next()
            items.append(item)
            pending = item.pending
    return items


async def wait_until_reconnected(js: JetStreamClient) -> None:
    """Wait for the connection after a break, and a moment for a broker that is still starting."""
    await anyio.sleep(REOPEN_DELAY_S)
    await js.connection.wait_until_connected()
