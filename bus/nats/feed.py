"""FEED: messages from the runners, and states that the broker copies from STATE."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping

import anyio

from bus.interface import BrokerUnreachable, FeedItem, RecordChange
from bus.nats import codec, subjects
from bus.nats.codec import try_decode_record
from bus.nats.feed_resume import Deduplicator, FeedExtent, format_item_id, resume_sequence
from bus.nats.jetstream import JetStreamClient, parse_time_ns
from bus.nats.ordered_consumer import ConsumedMessage, ReadRequest, open_consumer, read_all, wait_until_reconnected
from bus.nats.topology import FEED, STATE
from schemas.feed import FeedMessage, ProgressMessage
from schemas.ids import JobKey

SOURCING_TIMEOUT_S = 10.0
SOURCING_LAG_TIMEOUT_S = 2.0  # sourcing lags 0.6 ms; a broker that has just started takes longer
SOURCING_CHECK_INTERVAL_S = 0.02


class NatsJobFeed:
    """FEED. The epoch of an item id is the creation time of the stream."""

    def __init__(self, jetstream: JetStreamClient) -> None:
        self._jetstream = jetstream

    async def publish(self, key: JobKey, message: FeedMessage) -> None:
        """Return after the acknowledgement, so that the runner may write the offset to its checkpoint."""
        data = codec.encode_feed_message(message)
        await self._jetstream.publish(
            subjects.feed_subject(key, message), data, message_id=subjects.feed_message_id(key, message)
        )

    async def follow(self, owner: str, job_id: str | None = None, after: str | None = None) -> AsyncIterator[FeedItem]:
        """Open a new consumer after every break. The deduplicator drops what is then read twice."""
        seen = Deduplicator()
        while True:
            try:
                async for item in self._read(owner, job_id, after, seen):
                    after = item.id
                    if seen.accept(item):
                        yield item
            except BrokerUnreachable:
                await wait_until_reconnected(self._jetstream)

    async def _read(
        self, owner: str, job_id: str | None, after: str | None, seen: Deduplicator
    ) -> AsyncIterator[FeedItem]:
        """Read with one consumer. When it has caught up, yield the latest state if FEED did not have it."""
        extent = await self._read_extent()
        start = resume_sequence(after, extent)
        reading = ReadRequest(FEED.name, f"feed.{owner}.{job_id or '*'}.>", after_sequence=start)
        async with open_consumer(self._jetstream, reading) as consumer:
            at, pending, looked = max(start, extent.last), consumer.pending, job_id is None
            while True:
                if not pending and not looked and job_id:
                    looked = True
                    unsourced = await self._unsourced_state(
                        JobKey(owner, job_id), format_item_id(extent.epoch, at), start, seen
                    )
                    if unsourced is not None:
                        yield unsourced
                read = await consumer.next()
                at, pending = max(at, read.sequence), read.pending
                item = _to_feed_item(extent.epoch, read)
                if item is not None:
                    yield item

    async def replay(self, owner: str, after: str | None = None) -> AsyncGenerator[FeedItem, None]:
        """Read with a consumer of its own up to the last message that existed at the start."""
        seen, extent = Deduplicator(), await self._read_extent()
        reading = ReadRequest(FEED.name, f"feed.{owner}.*.>", after_sequence=resume_sequence(after, extent))
        async with open_consumer(self._jetstream, reading) as consumer:
            pending = consumer.pending
            while pending:
                read = await consumer.next()
                pending = read.pending
                item = _to_feed_item(extent.epoch, read)
                if item is not None and seen.accept(item):
                    yield item

    async def _unsourced_state(self, key: JobKey, name: str, start: int, seen: Deduplicator) -> FeedItem | None:
        """Return the last state in STATE; None if this consumer has yielded it or will yield it.

        FEED lags behind STATE. If a state were yielded from STATE too early, the deduplicator would drop the earlier
        states, which FEED does not have yet. So wait until FEED has caught up.
        """
        found = await self._jetstream.get_last(STATE.name, subjects.record_subject(key))
        if found is None or found.seq <= seen.last_revision(key):
            return None
        with anyio.move_on_after(SOURCING_LAG_TIMEOUT_S):
            await self._wait_until_sourced(found.seq)
        sourced_state = await self._jetstream.get_last(FEED.name, f"feed.{key.owner}.{key.id}.state")
        if (
            sourced_state is not None
            and sourced_state.seq > start
            and _source_revision(sourced_state.headers) >= found.seq
        ):
            return None
        return FeedItem(name, key, change=RecordChange(found.seq, key, try_decode_record(found.data)))

    async def _wait_until_sourced(self, revision: int) -> None:
        """Wait until FEED has sourced STATE up to `revision`."""
        while await self._sourced_revision() < revision:  # noqa: ASYNC110 - the broker sends no event
            await anyio.sleep(SOURCING_CHECK_INTERVAL_S)

    async def _read_extent(self) -> FeedExtent:
        info = await self._jetstream.stream_info(FEED.name)
        return FeedExtent(f"{parse_time_ns(info.created):x}", info.state.first_seq, info.state.last_seq)

    async def last_progress(self, key: JobKey) -> ProgressMessage | None:
        """Read the last message of the job's progress, in one request."""
        found = await self._jetstream.get_last(FEED.name, f"feed.{key.owner}.{key.id}.progress")
        message = codec.try_decode_feed_message(found.data) if found else None
        return message if isinstance(message, ProgressMessage) else None

    async def messages(self, key: JobKey) -> list[FeedMessage]:
        """Read with a consumer of its own."""
        items = await read_all(self._jetstream, ReadRequest(FEED.name, f"feed.{key.owner}.{key.id}.>"))
        return [
            message
            for item in items
            if not subjects.is_state_subject(item.subject) and (message := codec.try_decode_feed_message(item.data))
        ]

    async def last_id(self) -> str:
        """Read the state of the stream, in one request."""
        extent = await self._read_extent()
        return format_item_id(extent.epoch, extent.last)

    async def delete(self, owner: str, job_id: str | None = None) -> int:
        """Wait until the last states are sourced, since they would arrive after the deletion.

        Raises BrokerUnreachable.
        """
        last = await self._jetstream.get_last(STATE.name, subjects.record_subject(JobKey(owner, job_id or "*")))
        try:
            with anyio.fail_after(SOURCING_TIMEOUT_S):
                if last is not None:
                    await self._wait_until_sourced(last.seq)
        except TimeoutError as error:
            raise BrokerUnreachable(
                f"FEED has not caught up with STATE in {SOURCING_TIMEOUT_S} s: try again later"
            ) from error
        return await self._jetstream.secure_delete_subject(FEED.name, f"feed.{owner}.{job_id or '*'}.>")

    async def _sourced_revision(self) -> int:
        sources = (await self._jetstream.stream_info(FEED.name)).sources
        return max((source.seq for source in sources), default=0)


def _to_feed_item(epoch: str, read: ConsumedMessage) -> FeedItem | None:
    """Decode a message; None for a delete marker and for unreadable bytes."""
    key, name = subjects.parse_feed_key(read.subject), format_item_id(epoch, read.sequence)
    if not subjects.is_state_subject(read.subject):
        message = codec.try_decode_feed_message(read.data)
        return FeedItem(name, key, message=message) if message else None
    if not read.data:
        return None
    return FeedItem(name, key, change=RecordChange(_source_revision(read.headers), key, try_decode_record(read.data)))


def _source_revision(headers: Mapping[str, str] | None) -> int:
    """Return the revision in STATE of a sourced message, from "<stream> <sequence> <filter> …"; 0 for none."""
    source = (headers or {}).get("Nats-Stream-Source", "")
    return int(source.split(" ")[1]) if source else 0
