"""FEED: notes from the runners, and states that the broker sources from STATE."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping

import anyio

from bus import notes, subjects
from bus.following import Given, Held, item_id, resume_at
from bus.jetstream import JetStream, moment_ns
from bus.ordered import Item, Reading, held, opened, until_back
from bus.port import Change, FeedItem, Unreachable
from bus.records import readable
from bus.topology import FEED, STATE
from schemas.feed import Note, ProgressNote
from schemas.job import JobKey

SOURCED_S = 10.0
LAG_S = 2.0  # sourcing is 0.6 ms behind; a broker that has just started takes longer
LOOK_S = 0.02


class StreamFeed:
    """An id is the life of the stream (when it was made) and the sequence in it."""

    def __init__(self, js: JetStream) -> None:
        self._js = js

    async def publish(self, key: JobKey, note: Note) -> None:
        """Acknowledged, so that the runner may journal the offset as said."""
        data = notes.encode(note)
        await self._js.write(subjects.note(key, note), data, message_id=subjects.note_id(key, note))

    async def follow(self, owner: str, job_id: str | None = None, after: str | None = None) -> AsyncIterator[FeedItem]:
        """Opens anew after every break; `Given` keeps what is read twice then from being given twice."""
        given = Given()
        while True:
            try:
                async for item in self._read(owner, job_id, after, given):
                    after = item.id
                    if given.take(item):
                        yield item
            except Unreachable:
                await until_back(self._js)

    async def _read(self, owner: str, job_id: str | None, after: str | None, given: Given) -> AsyncIterator[FeedItem]:
        """One consumer's life; once it has caught up, a state of STATE that FEED did not give."""
        now = await self._held()
        behind = resume_at(after, now)
        reading = Reading(FEED.name, f"feed.{owner}.{job_id or '*'}.>", behind=behind)
        async with opened(self._js, reading) as consumer:
            at, pending, looked = max(behind, now.last), consumer.pending, job_id is None
            while True:
                if not pending and not looked and job_id:
                    looked = True
                    unsaid = await self._unsaid(JobKey(owner, job_id), item_id(now.epoch, at), behind, given)
                    if unsaid is not None:
                        yield unsaid
                read = await consumer.next()
                at, pending = max(at, read.sequence), read.pending
                item = _item(now.epoch, read)
                if item is not None:
                    yield item

    async def held(self, owner: str, after: str | None = None) -> AsyncGenerator[FeedItem, None]:
        """Through a consumer of its own that ends once it has caught up."""
        given, now = Given(), await self._held()
        reading = Reading(FEED.name, f"feed.{owner}.*.>", behind=resume_at(after, now))
        async with opened(self._js, reading) as consumer:
            pending = consumer.pending
            while pending:
                read = await consumer.next()
                pending = read.pending
                item = _item(now.epoch, read)
                if item is not None and given.take(item):
                    yield item

    async def _unsaid(self, key: JobKey, name: str, behind: int, given: Given) -> FeedItem | None:
        """The last state of STATE, unless this consumer gave it or is about to.

        Sourcing lags behind STATE. A state given from there too early would make those before it, which are still on
        their way, look old; so FEED is asked only once it has caught up.
        """
        found = await self._js.last(STATE.name, subjects.record(key))
        if found is None or found.seq <= given.revision(key):
            return None
        with anyio.move_on_after(LAG_S):
            await self._caught_up(found.seq)
        held_state = await self._js.last(FEED.name, f"feed.{key.owner}.{key.id}.state")
        if held_state is not None and held_state.seq > behind and _revision(held_state.headers) >= found.seq:
            return None
        return FeedItem(name, key, change=Change(found.seq, key, readable(found.data)))

    async def _caught_up(self, revision: int) -> None:
        """Wait until FEED has what STATE held at `revision`."""
        while await self._sourced() < revision:  # noqa: ASYNC110 - another server's work
            await anyio.sleep(LOOK_S)

    async def _held(self) -> Held:
        info = await self._js.info(FEED.name)
        return Held(f"{moment_ns(info.created):x}", info.state.first_seq, info.state.last_seq)

    async def last_progress(self, key: JobKey) -> ProgressNote | None:
        """One request."""
        found = await self._js.last(FEED.name, f"feed.{key.owner}.{key.id}.progress")
        note = notes.readable(found.data) if found else None
        return note if isinstance(note, ProgressNote) else None

    async def notes(self, key: JobKey) -> list[Note]:
        """Read through a consumer of its own."""
        items = await held(self._js, Reading(FEED.name, f"feed.{key.owner}.{key.id}.>"))
        return [note for item in items if not subjects.is_state(item.subject) and (note := notes.readable(item.data))]

    async def position(self) -> str:
        """One request."""
        now = await self._held()
        return item_id(now.epoch, now.last)

    async def erase(self, owner: str, job_id: str | None = None) -> int:
        """Waits for what STATE said last to be sourced: it would come after us otherwise. Raises Unreachable."""
        last = await self._js.last(STATE.name, subjects.record(JobKey(owner, job_id or "*")))
        try:
            with anyio.fail_after(SOURCED_S):
                if last is not None:
                    await self._caught_up(last.seq)
        except TimeoutError as error:
            raise Unreachable(f"FEED has not caught up with STATE in {SOURCED_S} s: try again later") from error
        return await self._js.erase(FEED.name, f"feed.{owner}.{job_id or '*'}.>")

    async def _sourced(self) -> int:
        sources = (await self._js.info(FEED.name)).sources
        return max((source.seq for source in sources), default=0)


def _item(epoch: str, read: Item) -> FeedItem | None:
    """What a message says; None for a delete marker and for rubbish."""
    key, name = subjects.feed_key(read.subject), item_id(epoch, read.sequence)
    if not subjects.is_state(read.subject):
        note = notes.readable(read.data)
        return FeedItem(name, key, note=note) if note else None
    if not read.data:
        return None
    return FeedItem(name, key, change=Change(_revision(read.headers), key, readable(read.data)))


def _revision(headers: Mapping[str, str] | None) -> int:
    """The revision of STATE that a sourced message was, from "<stream> <sequence> <filter> …"; 0 for none."""
    source = (headers or {}).get("Nats-Stream-Source", "")
    return int(source.split(" ")[1]) if source else 0
