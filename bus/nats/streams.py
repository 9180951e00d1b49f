"""The queue and the logs over the broker: JOBS with the nudges to hosts, AUDIT, USAGE, and the outbox of webhooks.

The pointers in JOBS are fetched from one durable consumer for each pool and priority. Nudges ask one host to read a
record now; they are core messages, without storage or acknowledgement.

AUDIT is the stream behind the bucket of that name, read by sequence, from the newest back. Earlier releases wrote the
same rows through the bucket, so theirs are read as ours, and they read ours.

Each row of USAGE has its own subject, so that a second write of it is refused.

The outbox is a durable consumer on STATE, and the stream DELIVERIES with a durable consumer of its own. All edges share
both consumers.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from datetime import datetime
from typing import Generic, TypeVar

import anyio
import msgspec
import structlog
from nats.aio.msg import Msg

from bus.interface import (
    WAKE_GRACE_S,
    AuditEntry,
    AuditPage,
    BrokerUnreachable,
    BusError,
    Lane,
    LeasedItem,
    QueueMessage,
    RevisionConflict,
    RowUnreadable,
    WebhookDelivery,
)
from bus.nats import wire
from bus.nats.connection import NatsConnection
from bus.nats.jetstream import AckableMessage, ConsumedMessage, JetStreamClient, ReadRequest, open_consumer, read_all
from bus.nats.replies import AckSubject, parse_ack_subject
from bus.nats.topology import (
    AUDIT,
    DELIVERIES,
    JOBS,
    STATE,
    USAGE,
    WEBHOOK_CURSOR_CONSUMER,
    WEBHOOK_DELIVERY_CONSUMER,
    ensure_pull_consumers,
)
from bus.notifier import Notifier
from schemas.events import DECODE_ERRORS, encode_record
from schemas.installation import AuditEvent
from schemas.job import JobKey, Pointer, Priority
from schemas.job_view import JobUsage, PowerUsage, UsageRow

T = TypeVar("T")

log = structlog.get_logger(__name__)


class NatsQueueMessage(AckableMessage):
    """A pointer that was delivered to this runner."""

    def __init__(self, jetstream: JetStreamClient, reply: str, pointer: Pointer, sequence: int) -> None:
        super().__init__(jetstream, reply, pointer.id)
        self.pointer = pointer
        self.sequence = sequence


class NatsJobQueue:
    """The queue JOBS at the broker. The caller subscribes to `wake.*` and passes each message to `on_wake`."""

    def __init__(self, jetstream: JetStreamClient) -> None:
        self._jetstream = jetstream
        self._pools: set[str] = set()
        self._fetch_locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._woken: set[Lane] = set()
        self._wakes = Notifier()

    async def ensure_consumers(self, pools: Collection[str]) -> None:
        """Create the consumers now, and again on every reconnect."""
        for pool in set(pools):
            await ensure_pull_consumers(self._jetstream, pool)
            self._pools.add(pool)

    async def ensure_known_consumers(self) -> None:
        """Create the consumers of every pool that is known so far."""
        await self.ensure_consumers(frozenset(self._pools))

    async def publish(self, pointer: Pointer, *, repair: bool = False) -> None:
        """Wake the runners of the lane, then publish the pointer. Wake them again if storing it was slow.

        The round is part of the subject, which is the message id, so that a retry is not dropped as a duplicate. With
        `repair` there is no message id: the broker may still remember the id of the message that is gone.
        """
        subject, wake = wire.pointer_subject(pointer), wire.wake_subject(pointer.pool, pointer.priority)
        started = anyio.current_time()
        await self._jetstream.connection.publish(wake)
        await self._jetstream.publish(subject, msgspec.json.encode(pointer), message_id=None if repair else subject)
        if anyio.current_time() - started > WAKE_GRACE_S / 2:
            await self._jetstream.connection.publish(wake)

    async def fetch(self, pool: str, priority: Priority, wait_s: float = 0.0) -> QueueMessage | None:
        """Fetch one message. A lane has one fetch at a time: a delivered message does not name the fetch it answers."""
        lane = wire.lane_consumer(pool, priority)
        async with self._fetch_locks[lane]:
            while (message := await self._jetstream.connection.fetch(JOBS.name, lane, wait_s)) is not None:
                pointer, ack = wire.parse_pointer_subject(message.subject), parse_ack_subject(message.reply)
                if pointer is not None and ack is not None:
                    return NatsQueueMessage(self._jetstream, message.reply, pointer, ack.sequence)
                log.error("unreadable_pointer_removed", subject=message.subject)
                await self._jetstream.connection.request(message.reply, b"+TERM")
        return None

    async def remove(self, pointer: Pointer) -> None:
        """Delete the messages one by one: nats-server 2.15.1 then continues to deliver the rest.

        A purge of the subject while others publish and fetch moves the consumer past messages that it never delivered,
        and they stay in the stream forever (tests/bus/test_withdraw.py).
        """
        await self._jetstream.secure_delete_subject(JOBS.name, wire.pointer_subject(pointer))

    async def list_pending(self, owner: str | None = None) -> set[Pointer]:
        """Read the subjects that hold a message."""
        stored = await self._jetstream.list_subjects(JOBS.name, f"job.*.*.{owner}.>" if owner else "job.>")
        return {pointer for subject in stored if (pointer := wire.parse_pointer_subject(subject))}

    def on_wake(self, message: Msg | BusError) -> None:
        """Remember the wake: one between an empty fetch and `wait_for_messages` must not be lost."""
        lane = None if isinstance(message, BusError) else wire.parse_wake_subject(message.subject)
        if lane is not None:
            self._woken.add(lane)
            self._wakes.notify()

    async def wait_for_messages(self, pools: Collection[str], timeout_s: float) -> frozenset[Lane]:
        """Return at once for a wake since the last call."""
        with anyio.move_on_after(timeout_s):
            await self._wakes.wait_until(lambda: any(lane.pool in pools for lane in self._woken))
        woken = frozenset(lane for lane in self._woken if lane.pool in pools)
        self._woken -= woken
        return woken


class NatsHostNudges:
    """A nudge may be lost: the runner reads the records of its jobs again a little later anyway."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection

    async def nudge(self, host: str, key: JobKey) -> None:
        """Publish once, without an acknowledgement."""
        await self._connection.publish(wire.nudge_subject(host), msgspec.json.encode(key))

    async def subscribe(self, host: str) -> AsyncIterator[JobKey]:
        """Yield across breaks of the connection. Raises BrokerDenied when the user may not subscribe for `host`."""
        messages: asyncio.Queue[Msg | BusError] = asyncio.Queue()
        async with self._connection.subscribed(wire.nudge_subject(host), messages.put_nowait):
            while True:
                message = await messages.get()
                if isinstance(message, BrokerUnreachable):
                    continue
                if isinstance(message, BusError):
                    raise message
                try:
                    key = msgspec.json.decode(message.data, type=JobKey)
                except DECODE_ERRORS as error:
                    log.warning("nudge_unreadable", subject=message.subject, error=str(error))
                    continue
                yield key


_audit_event_decoder = msgspec.json.Decoder(AuditEvent)


class NatsAuditStream:
    """AUDIT. The subject of an event is its id, so that a second write of it is refused."""

    def __init__(self, jetstream: JetStreamClient) -> None:
        self._jetstream = jetstream

    async def append(self, event_id: str, event: AuditEvent) -> bool:
        """Publish with the expectation that the subject is empty."""
        try:
            subject = wire.row_subject(AUDIT.name, event_id)
            await self._jetstream.publish(subject, msgspec.json.encode(event), expect=0)
        except RevisionConflict:
            return False
        return True

    async def page(self, before: int | None, span: int) -> AuditPage:
        """Read through a consumer that starts `span` sequences before `before`."""
        state = (await self._jetstream.stream_info(AUDIT.stream)).state
        end = state.last_seq + 1 if before is None else min(before, state.last_seq + 1)
        first = max(state.first_seq, 1)  # 0 in a stream that never held anything
        start = max(first, end - span)
        entries = [entry for item in await self._read(start, end) if (entry := _decode_entry(item))]
        return AuditPage(tuple(reversed(entries)), start if start > first else None)

    async def _read(self, start: int, end: int) -> list[ConsumedMessage]:
        """Return the messages with a sequence from `start` to below `end`."""
        items: list[ConsumedMessage] = []
        if start >= end:
            return items
        reading = ReadRequest(AUDIT.stream, wire.row_subject(AUDIT.name, ">"), after_sequence=start - 1)
        async with open_consumer(self._jetstream, reading) as consumer:
            pending = consumer.pending
            while pending:
                item = await consumer.next()
                if item.sequence >= end:
                    break
                items.append(item)
                pending = item.pending
        return items


def _decode_entry(item: ConsumedMessage) -> AuditEntry | None:
    try:
        return AuditEntry(item.sequence, wire.decode_row(_audit_event_decoder, item.subject, item.data))
    except RowUnreadable as error:
        wire.log_unreadable_row(error)
        return None


class NatsUsageLog:
    """USAGE.

    The subject keeps a row unique, not the Msg-Id, which the broker forgets after minutes and at a restart.
    """

    def __init__(self, jetstream: JetStreamClient) -> None:
        self._jetstream = jetstream

    async def add(self, row: UsageRow) -> bool:
        """Publish with the expectation that the subject is empty."""
        try:
            await self._jetstream.publish(wire.usage_subject(row), msgspec.json.encode(row), expect=0)
        except RevisionConflict:
            return False
        return True

    async def job_rows(self, since: datetime) -> list[JobUsage]:
        """Read the rows through a consumer that starts at `since`."""
        return [
            row
            for data in await self._read_rows(wire.JOB_USAGE_SUBJECTS, since)
            if (row := wire.try_decode_job_usage(data))
        ]

    async def power_rows(self, since: datetime) -> list[PowerUsage]:
        """Read the rows through a consumer that starts at `since`."""
        return [
            row
            for data in await self._read_rows(wire.POWER_USAGE_SUBJECTS, since)
            if (row := wire.try_decode_power_usage(data))
        ]

    async def last_job_row(self) -> JobUsage | None:
        """Read the last message of all jobs, in one request."""
        found = await self._jetstream.get_last(USAGE.name, wire.JOB_USAGE_SUBJECTS)
        return wire.try_decode_job_usage(found.data) if found else None

    async def delete_owner(self, owner: str) -> int:
        """Overwrite the rows one by one."""
        return await self._jetstream.secure_delete_subject(USAGE.name, wire.owner_usage_subjects(owner))

    async def _read_rows(self, pattern: str, since: datetime) -> list[bytes]:
        return [item.data for item in await read_all(self._jetstream, ReadRequest(USAGE.name, pattern, since=since))]


class NatsLeasedItem(AckableMessage, Generic[T]):
    """A message of STATE for the webhooks, or of DELIVERIES."""

    def __init__(self, jetstream: JetStreamClient, message: Msg, ack: AckSubject, value: T) -> None:
        super().__init__(jetstream, message.reply, message.subject)
        self._ack = ack
        self._value = value

    @property
    def value(self) -> T:
        """The message, decoded to the item's type."""
        return self._value

    @property
    def is_last(self) -> bool:
        """As the broker counted the pending messages of the consumer."""
        return not self._ack.pending


class NatsLeasedDelivery(NatsLeasedItem[WebhookDelivery]):
    """A message of DELIVERIES. It holds the input and output of a job."""

    async def ack(self) -> None:
        """Erase the message before the ack: after an ack alone its bytes would stay on the broker's disk."""
        await self._jetstream.secure_delete_message(DELIVERIES.name, self._ack.sequence)
        await super().ack()


class NatsWebhookOutbox:
    """The outbox of webhooks, by its two consumers: that on STATE, and that on DELIVERIES.

    Only one task fetches from a consumer at a time, because a delivered message does not name its request.
    """

    def __init__(self, jetstream: JetStreamClient) -> None:
        self._jetstream = jetstream
        self._turns: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def next_state_change(self) -> LeasedItem[WebhookDelivery | None] | None:
        """Fetch the next message of STATE from the durable consumer of webhooks."""
        found = await self._fetch_message(STATE.name, WEBHOOK_CURSOR_CONSUMER)
        if found is None:
            return None
        message, ack = found
        record = wire.try_decode_record(message.data)
        delivery = None if record is None else WebhookDelivery(ack.sequence, record)
        return NatsLeasedItem(self._jetstream, message, ack, delivery)

    async def enqueue(self, delivery: WebhookDelivery) -> None:
        """Publish with the subject as the Msg-Id."""
        place = wire.DeliverySubject(delivery.revision, delivery.replay, delivery.webhook)
        subject = wire.delivery_subject(delivery.record.job.key, place)
        await self._jetstream.publish(subject, encode_record(delivery.record), message_id=subject)

    async def fetch(self) -> LeasedItem[WebhookDelivery] | None:
        """Fetch one delivery; remove a message that is not a delivery."""
        while (found := await self._fetch_message(DELIVERIES.name, WEBHOOK_DELIVERY_CONSUMER)) is not None:
            message, ack = found
            delivery = wire.try_decode_delivery(message.subject, message.data)
            if delivery is not None:
                return NatsLeasedDelivery(self._jetstream, message, ack, delivery)
            log.error("unreadable_delivery_removed", subject=message.subject)
            await self._jetstream.connection.request(message.reply, b"+TERM")
        return None

    async def remove(self, owner: str, job_id: str | None = None) -> int:
        """Overwrite the messages one by one."""
        return await self._jetstream.secure_delete_subject(DELIVERIES.name, wire.delivery_subjects(owner, job_id))

    async def _fetch_message(self, stream: str, consumer: str) -> tuple[Msg, AckSubject] | None:
        async with self._turns[consumer]:
            message = await self._jetstream.connection.fetch(stream, consumer)
        ack = None if message is None else parse_ack_subject(message.reply)
        return None if message is None or ack is None else (message, ack)
