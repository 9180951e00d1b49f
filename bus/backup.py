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

from bus.buckets import BUCKETS, HOSTS, LEASES
from bus.errors import NoStream
from bus.jetstream import Answer, JetStream, accepted
from bus.port import BusError, Unreachable
from bus.topology import CHANGED_S, DELIVERIES, STATE, STREAMS, USAGE, judge_behind, judged
from bus.wire import status

T = TypeVar("T")
Chunks = asyncio.Queue[Msg | BusError]

CHUNK = 128 * 1024
SILENCE_S = 30.0  # the broker checks every message of a stream before the first byte of it comes
LOOK_S = 0.1
ELECTED_S = 20.0
TAKEN_IN_S = 300.0  # and writes all of them anew before it says that they are there

# In this order. The bills before the jobs: the edge writes again what they lack, never takes back what is too much.
# What records name (files, letters, keys) behind them: more than is named does no harm.
KEPT = (
    USAGE.name,
    STATE.name,
    DELIVERIES.name,
    *(bucket.stream for bucket in BUCKETS if bucket not in {HOSTS, LEASES}),
)


class Snapshot(Struct, frozen=True):
    """What the broker says of a stream beside its bytes, in the words of the JetStream API.

    `judged`, of STATE: up to which sequence the edges had judged it.
    """

    config: dict[str, Any]
    state: dict[str, Any]
    judged: int | None = None

    @property
    def name(self) -> str:
        """The stream's."""
        return str(self.config["name"])

    @property
    def messages(self) -> int:
        """How many it holds."""
        return int(self.state.get("messages", 0))

    @property
    def subjects(self) -> int:
        """How many keys a bucket holds."""
        return int(self.state.get("num_subjects", 0))


class _Begun(Answer, frozen=True):
    config: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    deliver_subject: str = ""


class _State(Struct, frozen=True):
    messages: int = 0
    consumer_count: int = 0


class _Copy(Struct, frozen=True):
    current: bool = False


class _Raft(Struct, frozen=True):
    leader: str = ""
    replicas: tuple[_Copy, ...] = ()


class _Info(Answer, frozen=True):
    state: _State = _State()
    cluster: _Raft = _Raft()


class Snapshots:
    """The streams of one installation, with the edge's rights. `copied_in_s`: how long a cluster's other servers may
    take to have a stream that was restored."""

    def __init__(self, js: JetStream, copied_in_s: float = TAKEN_IN_S) -> None:
        self._js = js
        self._copied_in_s = copied_in_s

    async def take(self, stream: str, write: Callable[[bytes], Awaitable[None]]) -> Snapshot:
        """Give all of it to `write`, as it is at this moment, while others go on writing to it. Raises BusError.

        Without its consumers: of a cluster the broker asks whoever leads each of them, and ends the snapshot when an
        edge's reader was on a server that is away.
        """
        until = await _patiently(partial(judged, self._js)) if stream == STATE.name else None
        async with AsyncExitStack() as listening:
            begun, chunks = await _patiently(partial(self._begin, stream, listening))
            while chunk := await _next(stream, chunks):
                await write(chunk.data)
                if chunk.reply:
                    await self._js.wire.say(chunk.reply)
        return Snapshot(begun.config, begun.state, until)

    async def _begin(self, stream: str, listening: AsyncExitStack) -> tuple[_Begun, Chunks]:
        """Each try has a subject of its own: what a late answer to the one before sends must not mix with it."""
        chunks = Chunks()
        inbox = self._js.wire.private_subject()
        asked = {"deliver_subject": inbox, "no_consumers": True, "jsck": True, "chunk_size": CHUNK}
        await listening.enter_async_context(self._js.wire.listening(inbox, chunks.put_nowait))
        return await self._js.api(f"STREAM.SNAPSHOT.{stream}", asked, _Begun), chunks

    async def put(self, kept: Snapshot, chunks: AsyncIterator[bytes], replicas: int | None) -> None:
        """Make the stream of what was taken, on `replicas` servers (None: one). There must be none. Raises BusError.

        On one server first, and from there on the others, which have all of it when this returns: restored on three at
        once, a stream was empty to its readers for up to 4 s after the broker had said that it was there.
        """
        config = kept.config | {"num_replicas": 1}
        verb = f"STREAM.RESTORE.{kept.name}"
        begun = await self._js.api(verb, {"config": config, "state": kept.state}, _Begun, CHANGED_S)
        async for chunk in chunks:
            await self._give(begun.deliver_subject, chunk)
        await self._js.finish(verb, begun.deliver_subject, TAKEN_IN_S)
        if replicas is not None and replicas > 1:
            more = config | {"num_replicas": replicas}
            await self._js.api(f"STREAM.UPDATE.{kept.name}", more, Answer, CHANGED_S)
            await self._copied(kept.name, replicas - 1)
        if kept.judged is not None:
            await judge_behind(self._js, kept.judged)

    async def _give(self, subject: str, chunk: bytes) -> None:
        """Of a cluster a server may answer that nobody listens: it has not heard yet of the one that does."""
        ends = asyncio.get_running_loop().time() + ELECTED_S
        while status(taken := await self._js.wire.request(subject, chunk)):
            if asyncio.get_running_loop().time() > ends:
                raise Unreachable("the broker takes in no more of the backup: restore it again with --replace")
            await asyncio.sleep(LOOK_S)
        if taken.data:  # it says something only of what went wrong
            accepted(subject, taken, Answer)

    async def _copied(self, name: str, others: int) -> None:
        """Return when so many other servers have all that the leader has."""
        ends = asyncio.get_running_loop().time() + self._copied_in_s
        while asyncio.get_running_loop().time() < ends:
            with suppress(Unreachable):  # it elects a leader
                raft = (await self._js.api(f"STREAM.INFO.{name}", {}, _Info)).cluster
                if raft.leader and sum(one.current for one in raft.replicas) >= others:
                    return
            await asyncio.sleep(LOOK_S)
        raise Unreachable(f"the other servers do not catch up with {name}: bring them up, then restore with --replace")

    async def held(self) -> dict[str, int]:
        """How many messages each stream of ours holds; those that are not there are left out."""
        found = {stream.name: await self._info(stream.name) for stream in STREAMS}
        return {name: info.state.messages for name, info in found.items() if info is not None}

    async def at_work(self) -> bool:
        """Whether an edge is there: it reads STATE through a consumer of its own, beside the one that all share."""
        info = await self._info(STATE.name)
        return info is not None and info.state.consumer_count > 1

    async def clear(self) -> None:
        """Remove every stream of ours, with all that is in it."""
        for name in await self.held():
            await self._js.api(f"STREAM.DELETE.{name}", {}, Answer, CHANGED_S)

    async def _info(self, name: str) -> _Info | None:
        async def ask() -> _Info:
            return await self._js.api(f"STREAM.INFO.{name}", {}, _Info)

        try:
            return await _patiently(ask)
        except NoStream:
            return None


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` gives, asked again while a cluster has no leader to answer. Raises BusError."""
    ends = asyncio.get_running_loop().time() + ELECTED_S
    while True:
        try:
            return await ask()
        except NoStream:
            raise
        except Unreachable:
            if asyncio.get_running_loop().time() > ends:
                raise
            await asyncio.sleep(LOOK_S)


async def _next(stream: str, chunks: Chunks) -> Msg | None:
    """The next piece, None at the end of the stream."""
    try:
        async with asyncio.timeout(SILENCE_S):
            chunk = await chunks.get()
    except TimeoutError as error:
        raise Unreachable(f"the broker sends no more of {stream}: try again") from error
    if isinstance(chunk, BusError):
        raise chunk
    if status(chunk) not in {None, "204"}:
        why = (chunk.headers or {}).get("Description", "it does not say why")
        raise Unreachable(f"the broker ends the snapshot of {stream} ({why}): bring up all its servers, then try again")
    return chunk if chunk.data else None
