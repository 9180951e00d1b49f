"""Streams as one piece of bytes each and back, by the broker's own snapshots: sequences, times, headers as they were.

What is kept is what nothing else could give back. FEED comes again from STATE, under another epoch, so that whoever
follows reads from its start; JOBS comes again from the records, by the reconciler; presence and leases are of now.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, TypeVar

from msgspec import Struct, field
from nats.aio.msg import Msg

from bus.interface import BrokerUnreachable, BusError
from bus.nats.connection import reply_status
from bus.nats.errors import StreamNotFound
from bus.nats.jetstream import ApiResponse, JetStreamClient, parse_response
from bus.nats.topology import (
    BUCKETS,
    DELIVERIES,
    HOSTS,
    LEASES,
    STATE,
    STREAM_UPDATE_TIMEOUT_S,
    STREAMS,
    USAGE,
    read_webhook_cursor,
    set_webhook_cursor,
)

T = TypeVar("T")
ChunkQueue = asyncio.Queue[Msg | BusError]

CHUNK_BYTES = 128 * 1024
SNAPSHOT_SILENCE_TIMEOUT_S = 30.0  # the broker checks every message of a stream before the first byte of it comes
CHECK_INTERVAL_S = 0.1
LEADER_ELECTION_TIMEOUT_S = 20.0
RESTORE_TIMEOUT_S = 300.0  # and writes all of them anew before it says that they are there

# In this order. The bills before the jobs: the edge writes again what they lack, never takes back what is too much.
# What records name (files, letters, keys) behind them: more than is named does no harm.
BACKUP_STREAMS = (
    USAGE.name,
    STATE.name,
    DELIVERIES.name,
    *(bucket.stream for bucket in BUCKETS if bucket not in {HOSTS, LEASES}),
)


class StreamSnapshot(Struct, frozen=True):
    """What the broker says of a stream beside its bytes, in the words of the JetStream API.

    `judged`, of STATE: up to which sequence the edges had judged it.
    """

    config: dict[str, Any]
    state: dict[str, Any]
    webhook_cursor: int | None = None

    @property
    def name(self) -> str:
        """The stream's."""
        return str(self.config["name"])

    @property
    def message_count(self) -> int:
        """How many it holds."""
        return int(self.state.get("messages", 0))

    @property
    def subject_count(self) -> int:
        """How many keys a bucket holds."""
        return int(self.state.get("num_subjects", 0))


class _TransferStarted(ApiResponse, frozen=True):
    config: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    deliver_subject: str = ""


class _StreamCounts(Struct, frozen=True):
    messages: int = 0
    consumer_count: int = 0


class _Replica(Struct, frozen=True):
    current: bool = False


class _ClusterInfo(Struct, frozen=True):
    leader: str = ""
    replicas: tuple[_Replica, ...] = ()


class _StreamStatus(ApiResponse, frozen=True):
    state: _StreamCounts = _StreamCounts()
    cluster: _ClusterInfo = _ClusterInfo()


class SnapshotClient:
    """The streams of one installation, with the edge's rights. `copied_in_s`: how long a cluster's other servers may
    take to have a stream that was restored."""

    def __init__(self, js: JetStreamClient, copied_in_s: float = RESTORE_TIMEOUT_S) -> None:
        self._js = js
        self._copied_in_s = copied_in_s

    async def save(self, stream: str, write: Callable[[bytes], Awaitable[None]]) -> StreamSnapshot:
        """Give all of it to `write`, as it is at this moment, while others go on writing to it. Raises BusError.

        Without its consumers: of a cluster the broker asks whoever leads each of them, and ends the snapshot when an
        edge's reader was on a server that is away.
        """
        until = await _retry_until_leader(partial(read_webhook_cursor, self._js)) if stream == STATE.name else None
        async with AsyncExitStack() as listening:
            begun, chunks = await _retry_until_leader(partial(self._start_snapshot, stream, listening))
            while chunk := await _next_chunk(stream, chunks):
                await write(chunk.data)
                if chunk.reply:
                    await self._js.connection.publish(chunk.reply)
        return StreamSnapshot(begun.config, begun.state, until)

    async def _start_snapshot(self, stream: str, listening: AsyncExitStack) -> tuple[_TransferStarted, ChunkQueue]:
        """Each try has a subject of its own: what a late answer to the one before sends must not mix with it."""
        chunks = ChunkQueue()
        inbox = self._js.connection.new_inbox_subject()
        asked = {"deliver_subject": inbox, "no_consumers": True, "jsck": True, "chunk_size": CHUNK_BYTES}
        await listening.enter_async_context(self._js.connection.subscribed(inbox, chunks.put_nowait))
        return await self._js.call(f"STREAM.SNAPSHOT.{stream}", asked, _TransferStarted), chunks

    async def restore(self, kept: StreamSnapshot, chunks: AsyncIterator[bytes], replicas: int | None) -> None:
        """Make the stream of what was taken, on `replicas` servers (None: one). There must be none. Raises BusError.

        On one server first, and from there on the others, which have all of it when this returns: restored on three at
        once, a stream was empty to its readers for up to 4 s after the broker had said that it was there.
        """
        config = kept.config | {"num_replicas": 1}
        verb = f"STREAM.RESTORE.{kept.name}"
        begun = await self._js.call(
            verb, {"config": config, "state": kept.state}, _TransferStarted, STREAM_UPDATE_TIMEOUT_S
        )
        async for chunk in chunks:
            await self._send_chunk(begun.deliver_subject, chunk)
        await self._js.finish_restore(verb, begun.deliver_subject, RESTORE_TIMEOUT_S)
        if replicas is not None and replicas > 1:
            more = config | {"num_replicas": replicas}
            await self._js.call(f"STREAM.UPDATE.{kept.name}", more, ApiResponse, STREAM_UPDATE_TIMEOUT_S)
            await self._wait_until_replicated(kept.name, replicas - 1)
        if kept.webhook_cursor is not None:
            await set_webhook_cursor(self._js, kept.webhook_cursor)

    async def _send_chunk(self, subject: str, chunk: bytes) -> None:
        """Of a cluster a server may answer that nobody listens: it has not heard yet of the one that does."""
        ends = asyncio.get_running_loop().time() + LEADER_ELECTION_TIMEOUT_S
        while reply_status(taken := await self._js.connection.request(subject, chunk)):
            if asyncio.get_running_loop().time() > ends:
                raise BrokerUnreachable("the broker takes in no more of the backup: restore it again with --replace")
            await asyncio.sleep(CHECK_INTERVAL_S)
        if taken.data:  # it says something only of what went wrong
            parse_response(subject, taken, ApiResponse)

    async def _wait_until_replicated(self, name: str, others: int) -> None:
        """Return when so many other servers have all that the leader has."""
        ends = asyncio.get_running_loop().time() + self._copied_in_s
        while asyncio.get_running_loop().time() < ends:
            with suppress(BrokerUnreachable):  # it elects a leader
                raft = (await self._js.call(f"STREAM.INFO.{name}", {}, _StreamStatus)).cluster
                if raft.leader and sum(one.current for one in raft.replicas) >= others:
                    return
            await asyncio.sleep(CHECK_INTERVAL_S)
        raise BrokerUnreachable(
            f"the other servers do not catch up with {name}: bring them up, then restore with --replace"
        )

    async def message_counts(self) -> dict[str, int]:
        """How many messages each stream of ours holds; those that are not there are left out."""
        found = {stream.name: await self._stream_status(stream.name) for stream in STREAMS}
        return {name: info.state.messages for name, info in found.items() if info is not None}

    async def is_edge_running(self) -> bool:
        """Whether an edge is there: it reads STATE through a consumer of its own, beside the one that all share."""
        info = await self._stream_status(STATE.name)
        return info is not None and info.state.consumer_count > 1

    async def delete_all_streams(self) -> None:
        """Remove every stream of ours, with all that is in it."""
        for name in await self.message_counts():
            await self._js.call(f"STREAM.DELETE.{name}", {}, ApiResponse, STREAM_UPDATE_TIMEOUT_S)

    async def _stream_status(self, name: str) -> _StreamStatus | None:
        async def ask() -> _StreamStatus:
            return await self._js.call(f"STREAM.INFO.{name}", {}, _StreamStatus)

        try:
            return await _retry_until_leader(ask)
        except StreamNotFound:
            return None


async def _retry_until_leader(ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` gives, asked again while a cluster has no leader to answer. Raises BusError."""
    ends = asyncio.get_running_loop().time() + LEADER_ELECTION_TIMEOUT_S
    while True:
        try:
            return await ask()
        except StreamNotFound:
            raise
        except BrokerUnreachable:
            if asyncio.get_running_loop().time() > ends:
                raise
            await asyncio.sleep(CHECK_INTERVAL_S)


async def _next_chunk(stream: str, chunks: ChunkQueue) -> Msg | None:
    """The next piece, None at the end of the stream."""
    try:
        async with asyncio.timeout(SNAPSHOT_SILENCE_TIMEOUT_S):
            chunk = await chunks.get()
    except TimeoutError as error:
        raise BrokerUnreachable(f"the broker sends no more of {stream}: try again") from error
    if isinstance(chunk, BusError):
        raise chunk
    if reply_status(chunk) not in {None, "204"}:
        why = (chunk.headers or {}).get("Description", "it does not say why")
        raise BrokerUnreachable(
            f"the broker ends the snapshot of {stream} ({why}): bring up all its servers, then try again"
        )
    return chunk if chunk.data else None
