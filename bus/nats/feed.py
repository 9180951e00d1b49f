"""FEED: messages from the runners and states that the broker copies from STATE, followed, resumed, and read by others.

The first part is pure, and the fake broker uses it too: ids of items, where a follower resumes, and which items it has
already received.

The last part serves the requests of readers. A reader asks the JetStream API for consumers as usual; an edge answers
instead. A consumer delivers within the account of its stream. A reader's own push consumer could therefore deliver to
any subject of the edge's account, such as a key or an API call. So readers get pull consumers only, and may not use the
names of the edges' own consumers.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, NamedTuple

import anyio
import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from bus.interface import BrokerUnreachable, BusError, FeedItem, RecordChange
from bus.nats import wire
from bus.nats.connection import NatsConnection
from bus.nats.jetstream import (
    ConsumedMessage,
    JetStreamClient,
    ReadRequest,
    open_consumer,
    parse_time_ns,
    read_all,
    wait_until_reconnected,
)
from bus.nats.topology import EDGE, FEED, READER_API_PREFIX, STATE
from schemas.events import DECODE_ERRORS, FeedMessage, LogMessage, ProgressMessage
from schemas.job import JobKey

REMEMBERED_JOB_LIMIT = 10_000  # jobs of one follower; the one without an item for longest is forgotten first

_ITEM_ID = re.compile(r"([0-9a-z]+)-([0-9]{1,19})\Z")

log = structlog.get_logger(__name__)


class FeedExtent(NamedTuple):
    """The range of FEED: its epoch, and its first and last sequence (last = first - 1 when it is empty)."""

    epoch: str
    first: int
    last: int


def format_item_id(epoch: str, sequence: int) -> str:
    """Return the id that a client sends back to resume."""
    return f"{epoch}-{sequence}"


def resume_sequence(after: str | None, extent: FeedExtent) -> int:
    """Return the sequence after which to read; 0, the start, for None, another epoch, or an id outside of FEED.

    An id right before the first sequence still resumes without a gap.
    """
    match = _ITEM_ID.match(after or "")
    if match is None or match[1] != extent.epoch:
        return 0
    sequence = int(match[2])
    return sequence if extent.first - 1 <= sequence <= extent.last else 0


class Deduplicator:
    """Remember, for each job of one follower, the newest state and the newest position of each kind of message.

    Revisions and positions only rise, so whatever is not above the last one was received before. Repeats come from a
    read that starts again, from a state that was both read and sourced, and from a runner that repeats a message after
    the broker's deduplication window.
    """

    def __init__(self) -> None:
        self._jobs: OrderedDict[JobKey, dict[str, tuple[int, ...]]] = OrderedDict()

    def accept(self, item: FeedItem) -> bool:
        """Return whether `item` is new, and remember it."""
        seen = self._jobs.setdefault(item.key, {})
        self._jobs.move_to_end(item.key)
        if len(self._jobs) > REMEMBERED_JOB_LIMIT:
            self._jobs.popitem(last=False)
        kind, rank = _item_rank(item)
        if rank <= seen.get(kind, ()):
            return False
        seen[kind] = rank
        return True

    def last_revision(self, key: JobKey) -> int:
        """Return the newest revision of STATE received for `key`, 0 for none."""
        return self._jobs.get(key, {}).get("state", (0,))[0]


def _item_rank(item: FeedItem) -> tuple[str, tuple[int, ...]]:
    if item.change is not None:
        return "state", (item.change.revision,)
    if item.message is None:
        raise ValueError(f"{item.id} is neither a state nor a message")
    return _message_kind(item.message), (
        item.message.position.round,
        item.message.position.attempt,
        item.message.position.offset,
    )


def _message_kind(message: FeedMessage) -> str:
    """Return the kind of a message. Offsets rise within each kind, so log lines of stdout and stderr are two kinds."""
    return f"{type(message).__name__}.{message.stream}" if isinstance(message, LogMessage) else type(message).__name__


SOURCING_TIMEOUT_S = 10.0
SOURCING_LAG_TIMEOUT_S = 2.0  # sourcing lags 0.6 ms; a broker that has just started takes longer
SOURCING_CHECK_INTERVAL_S = 0.02


class NatsJobFeed:
    """FEED. The epoch of an item id is the creation time of the stream."""

    def __init__(self, jetstream: JetStreamClient) -> None:
        self._jetstream = jetstream

    async def publish(self, key: JobKey, message: FeedMessage) -> None:
        """Return after the acknowledgement, so that the runner may write the offset to its checkpoint."""
        data = wire.encode_feed_message(message)
        await self._jetstream.publish(
            wire.feed_subject(key, message), data, message_id=wire.feed_message_id(key, message)
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
        found = await self._jetstream.get_last(STATE.name, wire.record_subject(key))
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
        return FeedItem(name, key, change=RecordChange(found.seq, key, wire.try_decode_record(found.data)))

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
        message = wire.try_decode_feed_message(found.data) if found else None
        return message if isinstance(message, ProgressMessage) else None

    async def messages(self, key: JobKey) -> list[FeedMessage]:
        """Read with a consumer of its own."""
        items = await read_all(self._jetstream, ReadRequest(FEED.name, f"feed.{key.owner}.{key.id}.>"))
        return [
            message
            for item in items
            if not wire.is_state_subject(item.subject) and (message := wire.try_decode_feed_message(item.data))
        ]

    async def last_id(self) -> str:
        """Read the state of the stream, in one request."""
        extent = await self._read_extent()
        return format_item_id(extent.epoch, extent.last)

    async def delete(self, owner: str, job_id: str | None = None) -> int:
        """Wait until the last states are sourced, since they would arrive after the deletion.

        Raises BrokerUnreachable.
        """
        last = await self._jetstream.get_last(STATE.name, wire.record_subject(JobKey(owner, job_id or "*")))
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
    key, name = wire.parse_feed_key(read.subject), format_item_id(epoch, read.sequence)
    if not wire.is_state_subject(read.subject):
        message = wire.try_decode_feed_message(read.data)
        return FeedItem(name, key, message=message) if message else None
    if not read.data:
        return None
    return FeedItem(
        name, key, change=RecordChange(_source_revision(read.headers), key, wire.try_decode_record(read.data))
    )


def _source_revision(headers: Mapping[str, str] | None) -> int:
    """Return the revision in STATE of a sourced message, from "<stream> <sequence> <filter> …"; 0 for none."""
    source = (headers or {}).get("Nats-Stream-Source", "")
    return int(source.split(" ")[1]) if source else 0


EDGE_QUEUE_GROUP = "edges"  # the broker gives each request to one member
BAD_REQUEST = 10003  # err_code of the JetStream API
# The settings that a pull consumer may have. Others are left out.
ALLOWED_CONSUMER_FIELDS = frozenset(
    {
        "name",
        "durable_name",
        "description",
        "deliver_policy",
        "opt_start_seq",
        "opt_start_time",
        "ack_policy",
        "ack_wait",
        "max_deliver",
        "backoff",
        "filter_subject",
        "filter_subjects",
        "replay_policy",
        "sample_freq",
        "max_waiting",
        "max_ack_pending",
        "headers_only",
        "max_batch",
        "max_expires",
        "max_bytes",
        "inactive_threshold",
        "num_replicas",
        "mem_storage",
        "metadata",
    }
)


class _ConsumerRequest(Struct, frozen=True, omit_defaults=True):
    """The body of a CONSUMER.CREATE request."""

    stream_name: str = ""
    config: dict[str, Any] = {}
    action: str = ""


class ReaderRequestRefused(Exception):
    """A reader may not have this consumer. The message says why, and what to do."""


class ReaderConsumerProxy:
    """One edge's part: the broker gives each request to one of the edges."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection

    async def serve(self) -> None:
        """Answer the requests of readers one after the other, without end."""
        requests: asyncio.Queue[Msg | BusError] = asyncio.Queue()
        async with self._connection.subscribed(f"{READER_API_PREFIX}>", requests.put_nowait, EDGE_QUEUE_GROUP):
            while True:
                message = await requests.get()
                if isinstance(message, Msg) and message.reply:
                    await self._handle_request(message)

    async def _handle_request(self, message: Msg) -> None:
        verb = message.subject.removeprefix(READER_API_PREFIX)
        try:
            body = _checked_body(verb, message.data)
            answer = (await self._connection.request(f"$JS.API.{verb}", body)).data
        except ReaderRequestRefused as refusal:
            answer = _error_response(refusal)
        except BusError as error:
            log.warning("reader_request_failed", verb=verb, error=str(error))
            return
        try:
            await self._connection.publish(message.reply, answer)
        except BusError as error:
            log.warning("reader_request_failed", verb=verb, error=str(error))


def _checked_body(verb: str, data: bytes) -> bytes:
    """Return the body to send to the JetStream API. Raises ReaderRequestRefused."""
    action, _, name = verb.removeprefix("CONSUMER.").partition(f".{FEED.name}")
    name = name.removeprefix(".").partition(".")[0]
    if action == "DELETE":
        _check_consumer_name(name)
        return b""
    try:
        request = msgspec.json.decode(data, type=_ConsumerRequest)
    except DECODE_ERRORS as error:
        raise ReaderRequestRefused(
            f"the body is not a consumer's configuration ({error}): see CONSUMER.CREATE of JetStream"
        ) from error
    for one in (name, request.config.get("name"), request.config.get("durable_name")):
        _check_consumer_name(one)
    if request.config.get("deliver_subject"):
        raise ReaderRequestRefused(
            "a reader's consumer must be a pull consumer: leave deliver_subject out (docs/following.md)"
        )
    return msgspec.json.encode(msgspec.structs.replace(request, config=_allowed_config(request.config)))


def _check_consumer_name(name: object) -> None:
    if isinstance(name, str) and name.startswith(EDGE.inbox):
        raise ReaderRequestRefused(f"consumers whose name begins with {EDGE.inbox} are the edges': choose another name")


def _allowed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name in ALLOWED_CONSUMER_FIELDS}


def _error_response(refusal: ReaderRequestRefused) -> bytes:
    """Return the refusal in the form of a JetStream API error."""
    return msgspec.json.encode({"error": {"code": 400, "err_code": BAD_REQUEST, "description": str(refusal)}})
