"""Save and restore streams with the broker's own snapshots, which keep sequences, times and headers.

A backup holds what nothing else can give back. FEED is sourced again from STATE, under another epoch, so that followers
read it from the start. JOBS is rebuilt from the records by the reconciler. Heartbeats and leases are of the moment.
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
from bus.nats.jetstream import ApiResponse, JetStreamClient, parse_response
from bus.nats.replies import StreamNotFound
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
SNAPSHOT_SILENCE_TIMEOUT_S = 30.0  # the broker checks every message before it sends the first byte
CHECK_INTERVAL_S = 0.1
LEADER_ELECTION_TIMEOUT_S = 20.0
RESTORE_TIMEOUT_S = 300.0  # the broker writes every message again before it answers

# The order matters. USAGE comes before STATE: the edge adds missing rows later, but never removes surplus ones. What
# records refer to (files, deliveries, keys) comes after them: surplus there does no harm.
BACKUP_STREAMS = (
    USAGE.name,
    STATE.name,
    DELIVERIES.name,
    *(bucket.stream for bucket in BUCKETS if bucket not in {HOSTS, LEASES}),
)


class StreamSnapshot(Struct, frozen=True):
    """The description of a saved stream, in the words of the JetStream API.

    `webhook_cursor`, of STATE: the sequence up to which the edges had checked it for webhooks.
    """

    config: dict[str, Any]
    state: dict[str, Any]
    webhook_cursor: int | None = None

    @property
    def name(self) -> str:
        """The name of the stream; that of a bucket begins with `KV_`."""
        return str(self.config["name"])

    @property
    def message_count(self) -> int:
        """The number of messages that the snapshot holds."""
        return int(self.state.get("messages", 0))

    @property
    def subject_count(self) -> int:
        """The number of subjects, which is the number of keys of a bucket."""
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
    """Save and restore the streams of one installation, with the rights of the edge.

    `replication_timeout_s`: how long the other servers of a cluster may take to copy a restored stream.
    """

    def __init__(self, jetstream: JetStreamClient, replication_timeout_s: float = RESTORE_TIMEOUT_S) -> None:
        self._jetstream = jetstream
        self._replication_timeout_s = replication_timeout_s

    async def save(self, stream: str, write: Callable[[bytes], Awaitable[None]]) -> StreamSnapshot:
        """Pass all of the stream to `write`, as it is now, while others continue to write to it. Raises BusError.

        Without its consumers: of a cluster the broker asks the leader of each of them, and ends the snapshot when an
        edge's consumer was on a server that is away.
        """
        cursor = (
            await _retry_until_leader(partial(read_webhook_cursor, self._jetstream)) if stream == STATE.name else None
        )
        async with AsyncExitStack() as subscriptions:
            started, chunks = await _retry_until_leader(partial(self._start_snapshot, stream, subscriptions))
            while chunk := await _next_chunk(stream, chunks):
                await write(chunk.data)
                if chunk.reply:
                    await self._jetstream.connection.publish(chunk.reply)
        return StreamSnapshot(started.config, started.state, cursor)

    async def _start_snapshot(self, stream: str, subscriptions: AsyncExitStack) -> tuple[_TransferStarted, ChunkQueue]:
        """Use a new subject for each try: a late answer to the one before must not mix with it."""
        chunks = ChunkQueue()
        inbox = self._jetstream.connection.new_inbox_subject()
        options = {"deliver_subject": inbox, "no_consumers": True, "jsck": True, "chunk_size": CHUNK_BYTES}
        await subscriptions.enter_async_context(self._jetstream.connection.subscribed(inbox, chunks.put_nowait))
        return await self._jetstream.call(f"STREAM.SNAPSHOT.{stream}", options, _TransferStarted), chunks

    async def restore(self, snapshot: StreamSnapshot, chunks: AsyncIterator[bytes], replicas: int | None) -> None:
        """Create the stream from a snapshot, on `replicas` servers (None: one). It must not exist. Raises BusError.

        Restore it on one server and let the others copy it, which they have done when this returns. A stream that was
        restored on three servers at once was empty to its readers for up to 4 s after the broker had reported it as
        ready.
        """
        config = snapshot.config | {"num_replicas": 1}
        verb = f"STREAM.RESTORE.{snapshot.name}"
        started = await self._jetstream.call(
            verb, {"config": config, "state": snapshot.state}, _TransferStarted, STREAM_UPDATE_TIMEOUT_S
        )
        async for chunk in chunks:
            await self._send_chunk(started.deliver_subject, chunk)
        await self._jetstream.finish_restore(verb, started.deliver_subject, RESTORE_TIMEOUT_S)
        if replicas is not None and replicas > 1:
            replicated = config | {"num_replicas": replicas}
            await self._jetstream.call(
                f"STREAM.UPDATE.{snapshot.name}", replicated, ApiResponse, STREAM_UPDATE_TIMEOUT_S
            )
            await self._wait_until_replicated(snapshot.name, replicas - 1)
        if snapshot.webhook_cursor is not None:
            await set_webhook_cursor(self._jetstream, snapshot.webhook_cursor)

    async def _send_chunk(self, subject: str, chunk: bytes) -> None:
        """Send one chunk.

        A server of a cluster may answer that there is no receiver until it has learned of it, so try again.
        """
        deadline = asyncio.get_running_loop().time() + LEADER_ELECTION_TIMEOUT_S
        while reply_status(reply := await self._jetstream.connection.request(subject, chunk)):
            if asyncio.get_running_loop().time() > deadline:
                raise BrokerUnreachable(
                    "the broker does not accept more of the backup: restore it again with --replace"
                )
            await asyncio.sleep(CHECK_INTERVAL_S)
        if reply.data:  # a reply has data only when it is an error
            parse_response(subject, reply, ApiResponse)

    async def _wait_until_replicated(self, name: str, others: int) -> None:
        """Return when this many other servers have all that the leader has."""
        deadline = asyncio.get_running_loop().time() + self._replication_timeout_s
        while asyncio.get_running_loop().time() < deadline:
            with suppress(BrokerUnreachable):  # the cluster elects a leader
                raft = (await self._jetstream.call(f"STREAM.INFO.{name}", {}, _StreamStatus)).cluster
                if raft.leader and sum(one.current for one in raft.replicas) >= others:
                    return
            await asyncio.sleep(CHECK_INTERVAL_S)
        raise BrokerUnreachable(
            f"the other servers do not catch up with {name}: bring them up, then restore with --replace"
        )

    async def message_counts(self) -> dict[str, int]:
        """Return the number of messages of each of our streams that exists."""
        found = {stream.name: await self._stream_status(stream.name) for stream in STREAMS}
        return {name: info.state.messages for name, info in found.items() if info is not None}

    async def is_edge_running(self) -> bool:
        """Return whether an edge is running: it reads STATE through its own consumer, beside the shared one."""
        info = await self._stream_status(STATE.name)
        return info is not None and info.state.consumer_count > 1

    async def delete_all_streams(self) -> None:
        """Delete all our streams with their messages."""
        for name in await self.message_counts():
            await self._jetstream.call(f"STREAM.DELETE.{name}", {}, ApiResponse, STREAM_UPDATE_TIMEOUT_S)

    async def _stream_status(self, name: str) -> _StreamStatus | None:
        async def ask() -> _StreamStatus:
            return await self._jetstream.call(f"STREAM.INFO.{name}", {}, _StreamStatus)

        try:
            return await _retry_until_leader(ask)
        except StreamNotFound:
            return None


async def _retry_until_leader(ask: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `ask`; try again while a cluster has no leader to answer. Raises BusError."""
    deadline = asyncio.get_running_loop().time() + LEADER_ELECTION_TIMEOUT_S
    while True:
        try:
            return await ask()
        except StreamNotFound:
            raise
        except BrokerUnreachable:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(CHECK_INTERVAL_S)


async def _next_chunk(stream: str, chunks: ChunkQueue) -> Msg | None:
    """Return the next chunk, None at the end of the stream."""
    try:
        async with asyncio.timeout(SNAPSHOT_SILENCE_TIMEOUT_S):
            chunk = await chunks.get()
    except TimeoutError as error:
        raise BrokerUnreachable(f"the broker stopped sending {stream}: try again") from error
    if isinstance(chunk, BusError):
        raise chunk
    if reply_status(chunk) not in {None, "204"}:
        why = (chunk.headers or {}).get("Description", "it does not say why")
        raise BrokerUnreachable(
            f"the broker ends the snapshot of {stream} ({why}): bring up all its servers, then try again"
        )
    return chunk if chunk.data else None
