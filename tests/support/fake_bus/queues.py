"""Nudges, FEED, JOBS and the webhook outbox in memory."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from typing import Generic, TypeVar

import anyio

from bus.interface import FeedItem, Lane, LeasedItem, QueueMessage, RecordChange, WebhookDelivery
from bus.nats import wire
from bus.nats.feed import Deduplicator, FeedExtent, format_item_id, resume_sequence
from bus.nats.wire import try_decode_delivery, try_decode_record
from schemas.events import FeedMessage, ProgressMessage, encode_record
from schemas.job import PRIORITIES, JobKey, Pointer, Priority
from tests.support.fake_bus.connection import FakeConnection
from tests.support.fake_bus.stream import Clock, FakeMessage, FakeStatePair, FakeStream


class FakeHostNudges:
    """Nudges are lost when nothing subscribes to them, like core subjects. `connections`: all of the broker."""

    def __init__(self, connection: FakeConnection, connections: list[FakeConnection]) -> None:
        self._connection = connection
        self._connections = connections

    async def nudge(self, host: str, key: JobKey) -> None:
        """Notify every connection that subscribes for `host`."""
        await self._connection.require_connected()
        for connection in self._connections:
            if connection.is_connected and host in connection.pending_nudges:
                connection.pending_nudges[host].append(key)
                connection.notify()

    async def subscribe(self, host: str) -> AsyncIterator[JobKey]:
        """Yield the nudges for `host` from now on."""
        nudges = self._connection.pending_nudges.setdefault(host, deque())
        while True:
            while nudges:
                yield nudges.popleft()
            await self._connection.wait_until_changed()


class FakeJobFeed:
    """FEED over one connection. STATE itself appends the states, as the broker sources them."""

    def __init__(self, connection: FakeConnection, streams: FakeStatePair) -> None:
        self._connection = connection
        self._state, self._feed, self._epoch = streams

    async def publish(self, key: JobKey, message: FeedMessage) -> None:
        """Append the message once."""
        await self._connection.require_connected()
        self._feed.append(
            wire.feed_subject(key, message),
            wire.encode_feed_message(message),
            message_id=wire.feed_message_id(key, message),
        )

    async def follow(self, owner: str, job_id: str | None = None, after: str | None = None) -> AsyncIterator[FeedItem]:
        """Yield the owner's items after `after`, without end."""
        start = resume_sequence(after, FeedExtent(self._epoch, self._feed.first, self._feed.last))
        given, at, heals = Deduplicator(), max(start, self._feed.last), -1
        prefix = f"feed.{owner}.{job_id}." if job_id else f"feed.{owner}."
        async for message in self._connection.tail(self._feed, start, prefix):
            if message is not None:
                at = max(at, message.sequence)
                item = self._to_feed_item(message)
            elif job_id and heals < self._connection.reconnect_count:
                heals = self._connection.reconnect_count
                item = self._unsourced_state(JobKey(owner, job_id), at, given)
            else:
                continue
            if item is not None and given.accept(item):
                yield item

    async def replay(self, owner: str, after: str | None = None) -> AsyncGenerator[FeedItem, None]:
        """Yield the owner's items after `after` that exist now."""
        await self._connection.require_connected()
        start, given = (
            resume_sequence(after, FeedExtent(self._epoch, self._feed.first, self._feed.last)),
            Deduplicator(),
        )
        for message in self._feed.messages_after(start, f"feed.{owner}."):
            await self._connection.require_connected()
            item = self._to_feed_item(message)
            if item is not None and given.accept(item):
                yield item

    def _unsourced_state(self, key: JobKey, at: int, given: Deduplicator) -> FeedItem | None:
        """Return the state in STATE that FEED did not have."""
        held = self._state.messages_of(wire.record_subject(key))
        if not held or held[-1].sequence <= given.last_revision(key):
            return None
        last = held[-1]
        return FeedItem(
            format_item_id(self._epoch, at), key, RecordChange(last.sequence, key, try_decode_record(last.data))
        )

    def _to_feed_item(self, message: FakeMessage) -> FeedItem | None:
        key, name = wire.parse_feed_key(message.subject), format_item_id(self._epoch, message.sequence)
        if message.source is not None:
            change = RecordChange(message.source, key, try_decode_record(message.data))
            return FeedItem(name, key, change=change) if message.data else None
        note = wire.try_decode_feed_message(message.data)
        return FeedItem(name, key, message=note) if note else None

    async def last_progress(self, key: JobKey) -> ProgressMessage | None:
        """Return the latest progress."""
        await self._connection.require_connected()
        held = self._feed.messages_of(f"feed.{key.owner}.{key.id}.progress")
        note = wire.try_decode_feed_message(held[-1].data) if held else None
        return note if isinstance(note, ProgressMessage) else None

    async def messages(self, key: JobKey) -> list[FeedMessage]:
        """Return all stored messages."""
        await self._connection.require_connected()
        held = self._feed.messages_after(0, f"feed.{key.owner}.{key.id}.")
        return [note for m in held if m.source is None and (note := wire.try_decode_feed_message(m.data))]

    async def last_id(self) -> str:
        """Return the id of the end."""
        await self._connection.require_connected()
        return format_item_id(self._epoch, self._feed.last)

    async def delete(self, owner: str, job_id: str | None = None) -> int:
        """Delete the messages."""
        await self._connection.require_connected()
        found = self._feed.messages_after(0, f"feed.{owner}.{job_id}." if job_id else f"feed.{owner}.")
        for message in found:
            self._feed.delete(message.sequence)
        return len(found)


ACK_TIMEOUT_S = 30.0


class FakeJobsStream:
    """The part of JOBS that all connections share: the stream, its lanes, and the end of each lease."""

    def __init__(self, clock: Clock, log: FakeStream) -> None:
        self.clock = clock
        self.log = log
        self.lanes: set[str] = set()
        self.due: dict[int, float] = {}
        self.connections: list[FakeConnection] = []

    def drop(self, sequence: int) -> None:
        """Delete a message and its lease."""
        self.log.delete(sequence)
        self.due.pop(sequence, None)


class FakeQueueMessage:
    """A lease on one message."""

    def __init__(self, connection: FakeConnection, jobs: FakeJobsStream, pointer: Pointer, sequence: int) -> None:
        self._connection = connection
        self._jobs = jobs
        self.pointer = pointer
        self.sequence = sequence

    async def in_progress(self) -> None:
        """Extend the lease to 30 s from now."""
        await self._extend_lease(ACK_TIMEOUT_S)

    async def ack(self) -> None:
        """Delete the message."""
        await self._connection.require_connected()
        self._jobs.drop(self.sequence)

    async def nak(self, delay_s: float) -> None:
        """Let the lease end in `delay_s`."""
        await self._extend_lease(delay_s)

    async def _extend_lease(self, seconds: float) -> None:
        await self._connection.require_connected()
        self._jobs.due[self.sequence] = self._jobs.clock() + seconds


class FakeJobQueue:
    """JOBS over one connection."""

    def __init__(self, connection: FakeConnection, jobs: FakeJobsStream) -> None:
        self._connection = connection
        self._jobs = jobs

    async def ensure_consumers(self, pools: Collection[str]) -> None:
        """Create a lane for every priority of `pools`."""
        await self._connection.require_connected()
        self._jobs.lanes.update(wire.lane_consumer(pool, priority) for pool in pools for priority in PRIORITIES)

    async def publish(self, pointer: Pointer, *, repair: bool = False) -> None:
        """Append the pointer and wake its lane."""
        await self._connection.require_connected()
        subject = wire.pointer_subject(pointer)
        self._jobs.log.append(subject, b"", message_id=None if repair else subject)
        for connection in self._jobs.connections:
            if connection.is_connected:
                connection.woken_lanes.add(Lane(pointer.pool, pointer.priority))
                connection.notify()

    async def fetch(self, pool: str, priority: Priority, wait_s: float = 0.0) -> QueueMessage | None:
        """Return the oldest message without a lease."""
        await self._connection.require_connected()
        found = self._fetch_due(pool, priority)
        with anyio.move_on_after(wait_s):
            while found is None:
                await self._connection.wait_until_changed()
                await self._connection.require_connected()
                found = self._fetch_due(pool, priority)
        return found

    def _fetch_due(self, pool: str, priority: Priority) -> QueueMessage | None:
        if wire.lane_consumer(pool, priority) not in self._jobs.lanes:
            return None
        now = self._jobs.clock()
        for sequence, pointer in self._pointers(f"job.{pool}.{priority}."):
            if self._jobs.due.get(sequence, now) <= now:
                self._jobs.due[sequence] = now + ACK_TIMEOUT_S
                return FakeQueueMessage(self._connection, self._jobs, pointer, sequence)
        return None

    def _pointers(self, prefix: str) -> Iterator[tuple[int, Pointer]]:
        for message in self._jobs.log.messages_after(0, prefix):
            pointer = wire.parse_pointer_subject(message.subject)
            if pointer is not None:
                yield message.sequence, pointer

    async def remove(self, pointer: Pointer) -> None:
        """Delete the message of this pointer."""
        await self._connection.require_connected()
        for message in self._jobs.log.messages_of(wire.pointer_subject(pointer)):
            self._jobs.drop(message.sequence)

    async def list_pending(self, owner: str | None = None) -> set[Pointer]:
        """Return every stored pointer."""
        await self._connection.require_connected()
        return {pointer for _, pointer in self._pointers("job.") if owner in (None, pointer.owner)}

    async def wait_for_messages(self, pools: Collection[str], timeout_s: float) -> frozenset[Lane]:
        """Wait for a wake of `pools`; one since the last call counts."""
        with anyio.move_on_after(timeout_s):
            while not any(lane.pool in pools for lane in self._connection.woken_lanes):
                await self._connection.wait_until_changed()
        woken = frozenset(lane for lane in self._connection.woken_lanes if lane.pool in pools)
        self._connection.woken_lanes -= woken
        return woken


LEASE_TIMEOUT_S = 60.0

T = TypeVar("T")


class FakeSharedConsumer:
    """Messages of a stream after `cursor`, each leased to one connection at a time."""

    def __init__(self, clock: Clock, log: FakeStream, prefix: str) -> None:
        self._clock = clock
        self._cursor = 0
        self.prefix = prefix
        self.log = log
        self.due: dict[int, float] = {}

    def next_due(self) -> int | None:
        """Return the first message that is due, and lease it."""
        now = self._clock()
        for message in self.log.messages_after(self._cursor, self.prefix):
            self._cursor = message.sequence
            self.due[message.sequence] = now
        ready = next((sequence for sequence, due in self.due.items() if due <= now), None)
        if ready is not None:
            self.delay(ready, LEASE_TIMEOUT_S)
        return ready

    def count_pending(self) -> int:
        """Return the number of messages that were not acked."""
        return len(self.due) + len(self.log.messages_after(self._cursor, self.prefix))

    def delay(self, sequence: int, seconds: float) -> None:
        """Deliver the message again in `seconds`, after those that are due by then."""
        if self.due.pop(sequence, None) is not None:
            self.due[sequence] = self._clock() + seconds


class FakeWebhookStreams:
    """The parts that all connections share: the cursor on STATE, and DELIVERIES."""

    def __init__(self, clock: Clock, state: FakeStream, deliveries: FakeStream) -> None:
        self.states = FakeSharedConsumer(clock, state, "$KV.STATE.")
        self.deliveries = FakeSharedConsumer(clock, deliveries, "delivery.")


class FakeLeasedItem(Generic[T]):
    """A leased message."""

    def __init__(
        self, connection: FakeConnection, consumer: FakeSharedConsumer, sequence: int, value: T, *, erase: bool
    ) -> None:
        self._connection = connection
        self._consumer = consumer
        self._sequence = sequence
        self._value = value
        self._erase = erase
        self.is_last = not consumer.log.messages_after(sequence, consumer.prefix)

    @property
    def value(self) -> T:
        """The decoded message."""
        return self._value

    async def ack(self) -> None:
        """End the lease, and delete the message of DELIVERIES."""
        await self._connection.require_connected()
        self._consumer.due.pop(self._sequence, None)
        if self._erase:
            self._consumer.log.delete(self._sequence)

    async def nak(self, delay_s: float) -> None:
        """Deliver the message again in `delay_s`."""
        await self._connection.require_connected()
        self._consumer.delay(self._sequence, delay_s)


class FakeWebhookOutbox:
    """The outbox over one connection."""

    def __init__(self, connection: FakeConnection, streams: FakeWebhookStreams) -> None:
        self._connection = connection
        self._streams = streams

    async def next_state_change(self) -> LeasedItem[WebhookDelivery | None] | None:
        """Return the next message of STATE."""
        found = await self._next_message(self._streams.states)
        if found is None:
            return None
        sequence, message = found
        record = try_decode_record(message.data)
        delivery = None if record is None else WebhookDelivery(sequence, record)
        return FakeLeasedItem(self._connection, self._streams.states, sequence, delivery, erase=False)

    async def enqueue(self, delivery: WebhookDelivery) -> None:
        """Append the delivery."""
        await self._connection.require_connected()
        place = wire.DeliverySubject(delivery.revision, delivery.replay, delivery.webhook)
        subject = wire.delivery_subject(delivery.record.job.key, place)
        self._streams.deliveries.log.append(subject, encode_record(delivery.record), message_id=subject)

    async def fetch(self) -> LeasedItem[WebhookDelivery] | None:
        """Return the next delivery."""
        found = await self._next_message(self._streams.deliveries)
        if found is None:
            return None
        sequence, message = found
        delivery = try_decode_delivery(message.subject, message.data)
        if delivery is None:
            raise AssertionError("only deliveries are written to this stream")
        return FakeLeasedItem(self._connection, self._streams.deliveries, sequence, delivery, erase=True)

    async def _next_message(self, consumer: FakeSharedConsumer) -> tuple[int, FakeMessage] | None:
        await self._connection.require_connected()
        while (sequence := consumer.next_due()) is not None:
            stored = consumer.log.get(sequence)
            if stored is not None:
                return sequence, stored
            consumer.due.pop(sequence, None)  # dropped by a limit of the stream, or removed
        return None

    async def remove(self, owner: str, job_id: str | None = None) -> int:
        """Delete the deliveries."""
        await self._connection.require_connected()
        prefix = wire.delivery_subjects(owner, job_id).removesuffix(">").removesuffix("*.")
        found = self._streams.deliveries.log.messages_after(0, prefix)
        for message in found:
            self._streams.deliveries.log.delete(message.sequence)
        return len(found)
