"""FEED: notes from the runners, and states that the broker sources from STATE."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping

import anyio

from bus.interface import BrokerUnreachable, FeedItem, RecordChange
from bus.nats import codec, subjects
from bus.nats.codec import try_decode_record
from bus.nats.feed_resume import Deduplicator, FeedExtent, format_item_id, resume_sequence
from bus.nats.jetstream import JetStreamClient, parse_created_ns
from bus.nats.ordered_consumer import ConsumedMessage, ReadRequest, open_consumer, read_all, wait_until_reconnected
from bus.nats.topology import FEED, STATE
from schemas.feed import FeedMessage, ProgressMessage
from schemas.ids import JobKey

SOURCING_TIMEOUT_S = 10.0
SOURCING_LAG_TIMEOUT_S = 2.0  # sourcing is 0.6 ms behind; a broker that has just started takes longer
SOURCING_CHECK_INTERVAL_S = 0.02


class NatsJobFeed:
    """An id is the life of the stream (when it was made) and the sequence in it."""

    def __init__(self, js: JetStreamClient) -> None:
        self._js = js

    async def publish(self, key: JobKey, note: FeedMessage) -> None:
        """Acknowledged, so that the runner may journal the offset as said."""
        data = codec.encode_feed_message(note)
        await self._js.publish(subjects.feed_subject(key, note), data, message_id=subjects.feed_message_id(key, note))

    async def follow(self, owner: str, job_id: str | None = None, after: str | None = None) -> AsyncIterator[FeedItem]:
        """Opens anew after every break; `Given` keeps what is read twice then from being given twice."""
        given = Deduplicator()
        while True:
            try:
                async for item in self._read(owner, job_id, after, given):
                    after = item.id
                    if given.accept(item):
                        yield item
            except BrokerUnreachable:
                await wait_until_reconnected(self._js)

    async def _read(
        self, owner: str, job_id: str | None, after: str | None, given: Deduplicator
    ) -> AsyncIterator[FeedItem]:
        """One consumer's life; once it has caught up, a state of STATE that FEED did not give."""
        now = await self._read_extent()
        behind = resume_sequence(after, now)
        reading = ReadRequest(FEED.name, f"feed.{owner}.{job_id or '*'}.>", after_sequence=behind)
        async with open_consumer(self._js, reading) as consumer:
            at, pending, looked = max(behind, now.last), consumer.pending, job_id is None
            while True:
                if not pending and not looked and job_id:
                    looked = True
                    unsaid = await self._unsourced_state(
                        JobKey(owner, job_id), format_item_id(now.epoch, at), behind, given
                    )
                    if unsaid is not None:
                        yield unsaid
                read = await consumer.next()
                at, pending = max(at, read.sequence), read.pending
                item = _to_feed_item(now.epoch, read)
                if item is not None:
                    yield item

    async def replay(self, owner: str, after: str | None = None) -> AsyncGenerator[FeedItem, None]:
        """Through a consumer of its own that ends once it has caught up."""
        given, now = Deduplicator(), await self._read_extent()
        reading = ReadRequest(FEED.name, f"feed.{owner}.*.>", after_sequence=resume_sequence(after, now))
        async with open_consumer(self._js, reading) as consumer:
            pending = consumer.pending
            while pending:
                read = await consumer.next()
                pending = read.pending
                item = _to_feed_item(now.epoch, read)
                if item is not None and given.accept(item):
                    yield item

    async def _unsourced_state(self, key: JobKey, name: str, behind: int, given: Deduplicator) -> FeedItem | None:
        """The last state of STATE, unless this consumer gave it or is about to.

        Sourcing lags behind STATE. A state given from there too early would make those before it, which are still on
        their way, look old; so FEED is asked only once it has caught up.
        """
        found = await self._js.get_last(STATE.name, subjects.record_subject(key))
        if found is None or found.seq <= given.last_revision(key):
            return None
        with anyio.move_on_after(SOURCING_LAG_TIMEOUT_S):
            await self._wait_until_sourced(found.seq)
        held_state = await self._js.get_last(FEED.name, f"feed.{key.owner}.{key.id}.state")
        if held_state is not None and held_state.seq > behind and _source_revision(held_state.headers) >= found.seq:
            return None
        return FeedItem(name, key, change=RecordChange(found.seq, key, try_decode_record(found.data)))

    async def _wait_until_sourced(self, revision: int) -> None:
        """Wait until FEED has what STATE held at `revision`."""
        while await self._sourced_revision() < revision:  # noqa: ASYNC110 - another server's work
            await anyio.sleep(SOURCING_CHECK_INTERVAL_S)

    async def _read_extent(self) -> FeedExtent:
        info = await self._js.stream_info(FEED.name)
        return FeedExtent(f"{parse_created_ns(info.created):x}", info.state.first_seq, info.state.last_seq)

    async def last_progress(self, key: JobKey) -> ProgressMessage | None:
        """One request."""
        found = await self._js.get_last(FEED.name, f"feed.{key.owner}.{key.id}.progress")
        note = codec.try_decode_feed_message(found.data) if found else None
        return note if isinstance(note, ProgressMessage) else None

    async def messages(self, key: JobKey) -> list[FeedMessage]:
        """Read through a consumer of its own."""
        items = await read_all(self._js, ReadRequest(FEED.name, f"feed.{key.owner}.{key.id}.>"))
        return [
            note
            for item in items
            if not subjects.is_state_subject(item.subject) and (note := codec.try_decode_feed_message(item.data))
        ]

    async def last_id(self) -> str:
        """One request."""
        now = await self._read_extent()
        return format_item_id(now.epoch, now.last)

    async def delete(self, owner: str, job_id: str | None = None) -> int:
        """Waits for what STATE said last to be sourced: it would come after us otherwise. Raises Unreachable."""
        last = await self._js.get_last(STATE.name, subjects.record_subject(JobKey(owner, job_id or "*")))
        try:
            with anyio.fail_after(SOURCING_TIMEOUT_S):
                if last is not None:
                    await self._wait_until_sourced(last.seq)
        except TimeoutError as error:
            raise BrokerUnreachable(
                f"FEED has not caught up with STATE in {SOURCING_TIMEOUT_S} s: try again later"
            ) from error
        return await self._js.secure_delete_subject(FEED.name, f"feed.{owner}.{job_id or '*'}.>")

    async def _sourced_revision(self) -> int:
        sources = (await self._js.stream_info(FEED.name)).sources
        return max((source.seq for source in sources), default=0)


def _to_feed_item(epoch: str, read: ConsumedMessage) -> FeedItem | None:
    """What a message says; None for a delete marker and for rubbish."""
    key, name = subjects.parse_feed_key(read.subject), format_item_id(epoch, read.sequence)
    if not subjects.is_state_subject(read.subject):
        note = codec.try_decode_feed_message(read.data)
        return FeedItem(name, key, message=note) if note else None
    if not read.data:
        return None
    return FeedItem(name, key, change=RecordChange(_source_revision(read.headers), key, try_decode_record(read.data)))


def _source_revision(headers: Mapping[str, str] | None) -> int:
    """The revision of STATE that a sourced message was, from "<stream> <sequence> <filter> …"; 0 for none."""
    source = (headers or {}).get("Nats-Stream-Source", "")
    return int(source.split(" ")[1]) if source else 0
