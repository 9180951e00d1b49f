"""Everything the broker holds, as data (DESIGN 3), and `ensure`, which makes it so. Only the edge has the rights.

The configuration is owned here: `ensure` writes it whole and never takes it from the broker, where a round trip
through a client drops what the client does not know.
"""

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from bus import subjects
from bus.buckets import BUCKETS, Bucket
from bus.errors import Different, FewServers, Missing
from bus.jetstream import Answer, JetStream
from bus.port import BusError, StoreFull
from schemas.job import RECORD_BYTES
from schemas.words import PRIORITIES, Priority

SECOND = 10**9  # the API counts in nanoseconds
DAY = 86_400 * SECOND
MIB = 1024**2
HEADERS_BYTES = 4096  # of room for headers beside a record
ACK_WAIT_S = 30
NO_ROOM = "insufficient storage"
CHANGED_S = 45.0  # to be kept on more servers a stream, and its consumers, first elect a leader


class Stream(Struct, frozen=True, kw_only=True):
    """A stream in the words of the JetStream API. -1 and 0 there mean: no limit.

    `allow_rollup_hdrs` is false everywhere: one such header on one key removed every record of the bucket.
    """

    name: str
    subjects: tuple[str, ...]
    retention: str = "limits"
    discard: str = "old"
    storage: str = "file"
    max_bytes: int = -1
    max_age: int = 0
    max_msgs_per_subject: int = -1
    max_msg_size: int = -1
    duplicate_window: int = 120 * SECOND
    allow_direct: bool = True
    allow_rollup_hdrs: bool = False
    sources: tuple[dict[str, Any], ...] | UnsetType = UNSET  # an empty list differs from none after a restart


def _bucket(bucket: Bucket) -> Stream:
    age = int(bucket.ttl_s * SECOND) if bucket.ttl_s else 0
    return Stream(
        name=bucket.stream,
        subjects=(f"$KV.{bucket.name}.>",),
        discard="new",
        max_msgs_per_subject=bucket.history,
        max_age=age,
        duplicate_window=min(120 * SECOND, age or DAY),  # the broker refuses a window beyond the age
    )


STATE = Stream(
    name="KV_STATE",
    subjects=("$KV.STATE.*.*",),
    discard="new",
    max_msgs_per_subject=128,  # 64 are told; the edge erases those before, see `StateRecords.trim`
    max_msg_size=RECORD_BYTES + HEADERS_BYTES,
)
JOBS = Stream(
    name="JOBS",
    subjects=("job.*.*.*.*.*",),
    retention="workqueue",
    discard="new",
    max_bytes=256 * MIB,
    duplicate_window=600 * SECOND,
)
FEED = Stream(
    name="FEED",
    subjects=("feed.*.*.progress", "feed.*.*.log"),
    max_bytes=1024 * MIB,
    max_age=7 * DAY,
    max_msgs_per_subject=2000,
    sources=(
        {
            "name": STATE.name,
            "subject_transforms": [{"src": "$KV.STATE.*.*", "dest": "feed.{{wildcard(1)}}.{{wildcard(2)}}.state"}],
        },
    ),
)
DELIVERIES = Stream(
    name="DELIVERIES", subjects=("delivery.>",), retention="workqueue", discard="new", max_bytes=128 * MIB
)
USAGE = Stream(name="USAGE", subjects=("usage.>",), max_age=400 * DAY)

# STATE before FEED, which sources it.
STREAMS = (STATE, JOBS, FEED, DELIVERIES, USAGE, *(_bucket(bucket) for bucket in BUCKETS))


class Shared(Struct, frozen=True, kw_only=True):
    """A durable consumer that all edges fetch from, so that each message is for one of them."""

    durable_name: str
    filter_subject: str
    deliver_policy: str = "all"
    opt_start_seq: int | UnsetType = UNSET
    ack_policy: str = "explicit"
    ack_wait: int = 60 * SECOND
    max_deliver: int = -1
    max_ack_pending: int = -1


class _Start(Struct, frozen=True):
    """Where a consumer began, which no update can change."""

    deliver_policy: str = "all"
    opt_start_seq: int | UnsetType = UNSET


class _Floor(Struct, frozen=True):
    stream_seq: int = 0


class _Consumer(Answer, frozen=True):
    config: _Start = _Start()
    ack_floor: _Floor = _Floor()


JUDGING, DELIVERING = "judging", "delivering"
# From where the first edge began: made anew it must not send what was sent years ago.
_JUDGING = Shared(durable_name=JUDGING, filter_subject="$KV.STATE.*.*", deliver_policy="new")
SHARED = (
    (STATE, _JUDGING),
    (DELIVERIES, Shared(durable_name=DELIVERING, filter_subject="delivery.>")),
)


class Lane(Struct, frozen=True, kw_only=True):
    """The durable consumer of one pool and priority.

    Any limit on deliveries or on what is unacknowledged wedges a lane whose jobs are in back-off, and a back-off list
    would replace the ack_wait; the job's own count of attempts is the guard against poison.
    """

    durable_name: str
    filter_subject: str
    ack_policy: str = "explicit"
    ack_wait: int = ACK_WAIT_S * SECOND
    max_deliver: int = -1
    max_ack_pending: int = -1


def lane(pool: str, priority: Priority) -> Lane:
    """The consumer that the runner fetches from."""
    return Lane(durable_name=subjects.lane(pool, priority), filter_subject=f"job.{pool}.{priority}.>")


async def ensure(js: JetStream, replicas: int | None = None) -> None:
    """Make every stream as it is written here, kept on `replicas` servers (None: on as many as it is).

    Raises Denied for a user other than the edge, BusError where the cluster has fewer servers or the store no room.
    """
    for stream in STREAMS:
        try:
            await _ensure_stream(js, stream, replicas)
        except (FewServers, StoreFull) as error:
            raise _cannot(stream, replicas, error) from error


def _cannot(stream: Stream, replicas: int | None, error: BusError) -> BusError:
    """What is wrong with the broker for `stream`, and what to do. A cluster calls both reasons a lack of peers."""
    if isinstance(error, FewServers) and NO_ROOM not in str(error):
        return BusError(
            f"{stream.name} cannot be kept on {replicas} servers ({error}): lower [broker] replicas, or bring up "
            "more servers of the cluster"
        )
    reserved = sum(max(one.max_bytes, 0) for one in STREAMS) // MIB
    return BusError(
        f"the broker's store is too small, the streams reserve {reserved} MB of it and {stream.name} found no room "
        f"({error}): set max_file_store in nats.conf to 2GB or more (20GB is usual) and restart nats-server"
    )


async def _ensure_stream(js: JetStream, stream: Stream, replicas: int | None) -> None:
    config = msgspec.to_builtins(stream) | {"num_replicas": replicas or 1}
    try:
        await js.api(f"STREAM.CREATE.{stream.name}", config, Answer)
    except Different:
        if replicas is None:
            config["num_replicas"] = (await js.info(stream.name)).config.num_replicas
        await js.api(f"STREAM.UPDATE.{stream.name}", config, Answer, CHANGED_S)


async def ensure_shared(js: JetStream) -> None:
    """Make the consumers that edges share, or leave them as they are."""
    for stream, made in SHARED:
        try:
            await _ensure_consumer(js, stream.name, made)
        except Different:
            there = await _consumer(js, stream.name, made.durable_name)
            if there is None:
                raise
            began = msgspec.structs.asdict(there.config)
            await _ensure_consumer(js, stream.name, msgspec.structs.replace(made, **began))


async def judged(js: JetStream) -> int | None:
    """Up to which sequence of STATE the edges have judged all; None while no edge has been there."""
    there = await _consumer(js, STATE.name, JUDGING)
    return there.ack_floor.stream_seq if there else None


async def judge_behind(js: JetStream, sequence: int) -> None:
    """Make the consumer by which edges judge STATE, from behind `sequence` on."""
    made = msgspec.structs.replace(_JUDGING, deliver_policy="by_start_sequence", opt_start_seq=sequence + 1)
    await _ensure_consumer(js, STATE.name, made)


async def _consumer(js: JetStream, stream: str, name: str) -> _Consumer | None:
    try:
        return await js.api(f"CONSUMER.INFO.{stream}.{name}", {}, _Consumer)
    except Missing:
        return None


async def ensure_lanes(js: JetStream, pool: str) -> None:
    """Make the consumers of a pool, or leave them as they are."""
    for priority in PRIORITIES:
        await _ensure_consumer(js, JOBS.name, lane(pool, priority))


async def _ensure_consumer(js: JetStream, stream: str, made: Lane | Shared) -> None:
    verb = f"CONSUMER.CREATE.{stream}.{made.durable_name}.{made.filter_subject}"
    await js.api(verb, {"stream_name": stream, "config": msgspec.to_builtins(made)}, Answer)
