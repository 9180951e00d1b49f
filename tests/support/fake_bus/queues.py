"""Nudges in memory: lost when nobody listens, as core subjects are."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from typing import Generic, TypeVar

import anyio

from bus.interface import FeedItem, Lane, LeasedItem, QueueMessage, RecordChange, WebhookDelivery
from bus.nats import codec, subjects
from bus.nats.codec import try_decode_delivery, try_decode_record
from bus.nats.feed_resume import Deduplicator, FeedExtent, format_item_id, resume_sequence
from schemas.events import encode_record
from schemas.feed import FeedMessage, ProgressMessage
from schemas.ids import JobKey
from schemas.job import Pointer
from schemas.status import PRIORITIES, Priority
from tests.support.fake_bus.connection import FakeConnection
from tests.support.fake_bus.stream import Clock, FakeMessage, FakeStatePair, FakeStream


class FakeHostNudges:
    """`links` are all connections of the broker."""

    def __init__(self, link: FakeConnection, links: list[FakeConnection]) -> None:
        self._link = link
        self._links = links

    async def nudge(self, host: str, key: JobKey) -> None:
        """Tell every connection that listens for `host`."""
        await self._link.require_connected()
        for link in self._links:
            if link.is_connected and host in link.pending_nudges:
                link.pending_nudges[host].append(key)
                link.notify()

    async def subscribe(self, host: str) -> AsyncIterator[JobKey]:
        """What `host` is told from now on."""
        heard = self._link.pending_nudges.setdefault(host, deque())
        while True:
            while heard:
                yield heard.popleft()
            await self._link.wait_until_changed()


# MERGED bus/memory/feed.py: FEED in memory. States are appended by STATE itself, as the broker sources them.


class FakeJobFeed:
    """What one connection does with FEED."""

    def __init__(self, link: FakeConnection, streams: FakeStatePair) -> None:
        self._link = link
        self._state, self._feed, self._epoch = streams

    async def publish(self, key: JobKey, note: FeedMessage) -> None:
        """Say it once."""
        await self._link.require_connected()
        self._feed.append(
            subjects.feed_subject(key, note),
            codec.encode_feed_message(note),
            message_id=subjects.feed_message_id(key, note),
        )

    async def follow(self, owner: str, job_id: str | None = None, after: str | None = None) -> AsyncIterator[FeedItem]:
        """The owner's items behind `after`, without end."""
        start = resume_sequence(after, FeedExtent(self._epoch, self._feed.first, self._feed.last))
        given, at, heals = Deduplicator(), max(start, self._feed.last), -1
        prefix = f"feed.{owner}.{job_id}." if job_id else f"feed.{owner}."
        async for message in self._link.tail(self._feed, start, prefix):
            if message is not None:
                at = max(at, message.sequence)
                item = self._to_feed_item(message)
            elif job_id and heals < self._link.reconnect_count:
                heals = self._link.reconnect_count
                item = self._unsourced_state(JobKey(owner, job_id), at, given)
            else:
                continue
            if item is not None and given.accept(item):
                yield item

    async def replay(self, owner: str, after: str | None = None) -> AsyncGenerator[FeedItem, None]:
        """The owner's items behind `after` that are there now."""
        await self._link.require_connected()
        start, given = (
            resume_sequence(after, FeedExtent(self._epoch, self._feed.first, self._feed.last)),
            Deduplicator(),
        )
        for message in self._feed.messages_after(start, f"feed.{owner}."):
            await self._link.require_connected()
            item = self._to_feed_item(message)
            if item is not None and given.accept(item):
                yield item

    def _unsourced_state(self, key: JobKey, at: int, given: Deduplicator) -> FeedItem | None:
        """The state in STATE that FEED did not give."""
        held = self._state.messages_of(subjects.record_subject(key))
        if not held or held[-1].sequence <= given.last_revision(key):
            return None
        last = held[-1]
        return FeedItem(
            format_item_id(self._epoch, at), key, RecordChange(last.sequence, key, try_decode_record(last.data))
        )

    def _to_feed_item(self, message: FakeMessage) -> FeedItem | None:
        key, name = subjects.parse_feed_key(message.subject), format_item_id(self._epoch, message.sequence)
        if message.source is not None:
            change = RecordChange(message.source, key, try_decode_record(message.data))
            return FeedItem(name, key, change=change) if message.data else None
        note = codec.try_decode_feed_message(message.data)
        return FeedItem(name, key, message=note) if note else None

    async def last_progress(self, key: JobKey) -> ProgressMessage | None:
        """The latest progress."""
        await self._link.require_connected()
        held = self._feed.messages_of(f"feed.{key.owner}.{key.id}.progress")
        note = codec.try_decode_feed_message(held[-1].data) if held else None
        return note if isinstance(note, ProgressMessage) else None

    async def messages(self, key: JobKey) -> list[FeedMessage]:
        """All notes held."""
        await self._link.require_connected()
        held = self._feed.messages_after(0, f"feed.{key.owner}.{key.id}.")
        return [note for m in held if m.source is None and (note := codec.try_decode_feed_message(m.data))]

    async def last_id(self) -> str:
        """The id of the end."""
        await self._link.require_connected()
        return format_item_id(self._epoch, self._feed.last)

    async def delete(self, owner: str, job_id: str | None = None) -> int:
        """Nothing of it stays."""
        await self._link.require_connected()
        found = self._feed.messages_after(0, f"feed.{owner}.{job_id}." if job_id else f"feed.{owner}.")
        for message in found:
            self._feed.delete(message.sequence)
        return len(found)


# MERGED bus/memory/queue.py: JOBS in memory: leases instead of a broker's acknowledgements.


ACK_TIMEOUT_S = 30.0


class FakeJobsStream:
    """What every connection shares of JOBS: the stream, its lanes, until when each message is handed out."""

    def __init__(self, clock: Clock, log: FakeStream) -> None:
        self.clock = clock
        self.log = log
        self.lanes: set[str] = set()
        self.due: dict[int, float] = {}
        self.links: list[FakeConnection] = []

    def drop(self, sequence: int) -> None:
        """Gone for good."""
        self.log.delete(sequence)
        self.due.pop(sequence, None)


class FakeQueueMessage:
    """A lease on one message."""

    def __init__(self, link: FakeConnection, jobs: FakeJobsStream, pointer: Pointer, sequence: int) -> None:
        self._link = link
        self._jobs = jobs
        self.pointer = pointer
        self.sequence = sequence

    async def in_progress(self) -> None:
        """30 s from now."""
        await self._extend_lease(ACK_TIMEOUT_S)

    async def ack(self) -> None:
        """Gone for good."""
        await self._link.require_connected()
        self._jobs.drop(self.sequence)

    async def nak(self, delay_s: float) -> None:
        """Again in `delay_s`."""
        await self._extend_lease(delay_s)

    async def _extend_lease(self, seconds: float) -> None:
        await self._link.require_connected()
        self._jobs.due[self.sequence] = self._jobs.clock() + seconds


class FakeJobQueue:
    """Pointers that wait."""

    def __init__(self, link: FakeConnection, jobs: FakeJobsStream) -> None:
        self._link = link
        self._jobs = jobs

    async def ensure_consumers(self, pools: Collection[str]) -> None:
        """A lane for every priority of `pools`."""
        await self._link.require_connected()
        self._jobs.lanes.update(subjects.lane_consumer(pool, priority) for pool in pools for priority in PRIORITIES)

    async def publish(self, pointer: Pointer, *, repair: bool = False) -> None:
        """Let it wait, wake its lane."""
        await self._link.require_connected()
        subject = subjects.pointer_subject(pointer)
        self._jobs.log.append(subject, b"", message_id=None if repair else subject)
        for link in self._jobs.links:
            if link.is_connected:
                link.woken_lanes.add(Lane(pointer.pool, pointer.priority))
                link.notify()

    async def fetch(self, pool: str, priority: Priority, wait_s: float = 0.0) -> QueueMessage | None:
        """The oldest that nobody holds."""
        await self._link.require_connected()
        found = self._fetch_due(pool, priority)
        with anyio.move_on_after(wait_s):
            while found is None:
                await self._link.wait_until_changed()
                await self._link.require_connected()
                found = self._fetch_due(pool, priority)
        return found

    def _fetch_due(self, pool: str, priority: Priority) -> QueueMessage | None:
        if subjects.lane_consumer(pool, priority) not in self._jobs.lanes:
            return None
        now = self._jobs.clock()
        for sequence, pointer in self._pointers(f"job.{pool}.{priority}."):
            if self._jobs.due.get(sequence, now) <= now:
                self._jobs.due[sequence] = now + ACK_TIMEOUT_S
                return FakeQueueMessage(self._link, self._jobs, pointer, sequence)
        return None

    def _pointers(self, prefix: str) -> Iterator[tuple[int, Pointer]]:
        for message in self._jobs.log.messages_after(0, prefix):
            pointer = subjects.parse_pointer_subject(message.subject)
            if pointer is not None:
                yield message.sequence, pointer

    async def remove(self, pointer: Pointer) -> None:
        """Remove that round's message."""
        await self._link.require_connected()
        for message in self._jobs.log.messages_of(subjects.pointer_subject(pointer)):
            self._jobs.drop(message.sequence)

    async def list_pending(self, owner: str | None = None) -> set[Pointer]:
        """Every pointer held."""
        await self._link.require_connected()
        return {pointer for _, pointer in self._pointers("job.") if owner in (None, pointer.owner)}

    async def wait_for_messages(self, pools: Collection[str], timeout_s: float) -> frozenset[Lane]:
        """Wait for a wake of `pools`; one that came since the last call counts."""
        with anyio.move_on_after(timeout_s):
            while not any(lane.pool in pools for lane in self._link.woken_lanes):
                await self._link.wait_until_changed()
        heard = frozenset(lane for lane in self._link.woken_lanes if lane.pool in pools)
        self._link.woken_lanes -= heard
        return heard


# MERGED bus/memory/outbox.py: The outbox in memory.


LEASE_TIMEOUT_S = 60.0

T = TypeVar("T")


class FakeSharedConsumer:
    """Messages of a log, each handed out to one holder at a time, from behind `cursor` on."""

    def __init__(self, clock: Clock, log: FakeStream, prefix: str) -> None:
        self._clock = clock
        self._prefix = prefix
        self._cursor = 0
        self.log = log
        self.due: dict[int, float] = {}

    def next_due(self) -> int | None:
        """The first message that is due, held by the asker from now on."""
        now = self._clock()
        for message in self.log.messages_after(self._cursor, self._prefix):
            self._cursor = message.sequence
            self.due[message.sequence] = now
        ready = next((sequence for sequence, due in self.due.items() if due <= now), None)
        if ready is not None:
            self.delay(ready, LEASE_TIMEOUT_S)
        return ready

    def delay(self, sequence: int, seconds: float) -> None:
        """Hand it out again in `seconds`, behind what is due by then."""
        if self.due.pop(sequence, None) is not None:
            self.due[sequence] = self._clock() + seconds


class FakeWebhookStreams:
    """What every connection shares: STATE as it is judged, and DELIVERIES."""

    def __init__(self, clock: Clock, state: FakeStream, letters: FakeStream) -> None:
        self.states = FakeSharedConsumer(clock, state, "$KV.STATE.")
        self.letters = FakeSharedConsumer(clock, letters, "delivery.")


class FakeLeasedItem(Generic[T]):
    """A message in somebody's hands."""

    def __init__(self, link: FakeConnection, tray: FakeSharedConsumer, sequence: int, value: T, *, erase: bool) -> None:
        self._link = link
        self._tray = tray
        self._sequence = sequence
        self._value = value
        self._erase = erase

    @property
    def value(self) -> T:
        """What it says."""
        return self._value

    async def ack(self) -> None:
        """Gone for good."""
        await self._link.require_connected()
        self._tray.due.pop(self._sequence, None)
        if self._erase:
            self._tray.log.delete(self._sequence)

    async def nak(self, delay_s: float) -> None:
        """Again in `delay_s`."""
        await self._link.require_connected()
        self._tray.delay(self._sequence, delay_s)


class FakeWebhookOutbox:
    """States to judge, letters to send."""

    def __init__(self, link: FakeConnection, mail: FakeWebhookStreams) -> None:
        self._link = link
        self._mail = mail

    async def next_state_change(self) -> LeasedItem[WebhookDelivery | None] | None:
        """The next state."""
        found = await self._next_message(self._mail.states)
        if found is None:
            return None
        sequence, message = found
        recorded = try_decode_record(message.data)
        letter = None if recorded is None else WebhookDelivery(sequence, recorded)
        return FakeLeasedItem(self._link, self._mail.states, sequence, letter, erase=False)

    async def enqueue(self, letter: WebhookDelivery) -> None:
        """Keep it."""
        await self._link.require_connected()
        subject = subjects.delivery_subject(letter.record.job.key, letter.revision, letter.replay)
        self._mail.letters.log.append(subject, encode_record(letter.record), message_id=subject)

    async def fetch(self) -> LeasedItem[WebhookDelivery] | None:
        """The next letter."""
        found = await self._next_message(self._mail.letters)
        if found is None:
            return None
        sequence, message = found
        letter = try_decode_delivery(message.subject, message.data)
        if letter is None:
            raise AssertionError("nobody writes anything else there")
        return FakeLeasedItem(self._link, self._mail.letters, sequence, letter, erase=True)

    async def _next_message(self, tray: FakeSharedConsumer) -> tuple[int, FakeMessage] | None:
        await self._link.require_connected()
        while (sequence := tray.next_due()) is not None:
            held = tray.log.get(sequence)
            if held is not None:
                return sequence, held
            tray.due.pop(sequence, None)  # rolled out of the log, or withdrawn
        return None

    async def remove(self, owner: str, job_id: str | None = None) -> int:
        """Erase what lies there of it."""
        await self._link.require_connected()
        prefix = subjects.delivery_subjects(owner, job_id).removesuffix(">").removesuffix("*.")
        found = self._mail.letters.log.messages_after(0, prefix)
        for message in found:
            self._mail.letters.log.delete(message.sequence)
        return len(found)
