"""The small buckets of one type each (DESIGN 3), as data: what `Bus` offers as tables."""

from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType

from bus.interface import BrokerFull, BusError
from bus.nats import subjects
from bus.nats.errors import ConfigMismatch, JetStreamNotFound, TooFewServers
from bus.nats.jetstream import ApiResponse, JetStreamClient
from schemas.host import HEARTBEAT_TTL_S
from schemas.installation import LEASE_TTL_S
from schemas.job import RECORD_LIMIT_BYTES
from schemas.status import PRIORITIES, Priority

DELIVERY_LOG_RETENTION_DAYS = 30
OWNER_DELETION_RETENTION_DAYS = 30
AUDIT_RETENTION_DAYS = 400


class Bucket(NamedTuple):
    """A bucket and how many revisions of a key it keeps, for how many seconds (None: for ever).

    `personal`: it holds what clients say of themselves, or a secret of an earlier release, so what a row said before is
    erased when it is written anew.
    What the broker itself lets go, because `history` is full, it leaves on its disk: so such a bucket keeps a few, and
    the edge erases all but the last.
    """

    name: str
    history: int = 1
    ttl_s: float | None = None
    erases_old_values: bool = False

    @property
    def stream(self) -> str:
        """The stream that a key-value bucket is made of."""
        return f"KV_{self.name}"


_SHORT_HISTORY = 4  # more than a crash between a write and its erasing leaves

HOSTS = Bucket("HOSTS", ttl_s=HEARTBEAT_TTL_S)
OFFERS = Bucket("OFFERS")
POWER = Bucket("POWER", history=64)
KEYS = Bucket("KEYS", _SHORT_HISTORY, erases_old_values=True)
ASSETS = Bucket("ASSETS", _SHORT_HISTORY, erases_old_values=True)
TOMBSTONES = Bucket("TOMBSTONES")
AGREED = Bucket("AGREED")
HOOKS = Bucket("HOOKS", _SHORT_HISTORY, erases_old_values=True)
DELIVERED = Bucket("DELIVERED", _SHORT_HISTORY, DELIVERY_LOG_RETENTION_DAYS * 86_400, erases_old_values=True)
LEASES = Bucket("LEASES", ttl_s=LEASE_TTL_S)
JOINED = Bucket("JOINED", _SHORT_HISTORY, erases_old_values=True)
ERASURES = Bucket("ERASURES", ttl_s=OWNER_DELETION_RETENTION_DAYS * 86_400)
AUDIT = Bucket("AUDIT", ttl_s=AUDIT_RETENTION_DAYS * 86_400)

BUCKETS = (HOSTS, OFFERS, POWER, KEYS, ASSETS, TOMBSTONES, AGREED, HOOKS, DELIVERED, LEASES, JOINED, ERASURES, AUDIT)


# MERGED bus/topology.py: Everything the broker holds, as data (DESIGN 3), and `ensure`, which makes it so. Only the
# edge has the rights. / The configuration is owned here: `ensure` writes it whole and never takes it from the broker,
# where a round trip / through a client drops what the client does not know.


NS_PER_S = 10**9  # the API counts in nanoseconds
NS_PER_DAY = 86_400 * NS_PER_S
MIB = 1024**2
HEADERS_LIMIT_BYTES = 4096  # of room for headers beside a record
ACK_TIMEOUT_S = 30
NO_STORAGE_TEXT = "insufficient storage"
STREAM_UPDATE_TIMEOUT_S = 45.0  # to be kept on more servers a stream, and its consumers, first elect a leader


class StreamConfig(Struct, frozen=True, kw_only=True):
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
    duplicate_window: int = 120 * NS_PER_S
    allow_direct: bool = True
    allow_rollup_hdrs: bool = False
    sources: tuple[dict[str, Any], ...] | UnsetType = UNSET  # an empty list differs from none after a restart


def _bucket_stream(bucket: Bucket) -> StreamConfig:
    age = int(bucket.ttl_s * NS_PER_S) if bucket.ttl_s else 0
    return StreamConfig(
        name=bucket.stream,
        subjects=(f"$KV.{bucket.name}.>",),
        discard="new",
        max_msgs_per_subject=bucket.history,
        max_age=age,
        duplicate_window=min(120 * NS_PER_S, age or NS_PER_DAY),  # the broker refuses a window beyond the age
    )


STATE = StreamConfig(
    name="KV_STATE",
    subjects=("$KV.STATE.*.*",),
    discard="new",
    max_msgs_per_subject=128,  # 64 are told; the edge erases those before, see `NatsJobStore.trim`
    max_msg_size=RECORD_LIMIT_BYTES + HEADERS_LIMIT_BYTES,
)
JOBS = StreamConfig(
    name="JOBS",
    subjects=("job.*.*.*.*.*",),
    retention="workqueue",
    discard="new",
    max_bytes=256 * MIB,
    duplicate_window=600 * NS_PER_S,
)
FEED = StreamConfig(
    name="FEED",
    subjects=("feed.*.*.progress", "feed.*.*.log"),
    max_bytes=1024 * MIB,
    max_age=7 * NS_PER_DAY,
    max_msgs_per_subject=2000,
    sources=(
        {
            "name": STATE.name,
            "subject_transforms": [{"src": "$KV.STATE.*.*", "dest": "feed.{{wildcard(1)}}.{{wildcard(2)}}.state"}],
        },
    ),
)
DELIVERIES = StreamConfig(
    name="DELIVERIES", subjects=("delivery.>",), retention="workqueue", discard="new", max_bytes=128 * MIB
)
USAGE = StreamConfig(name="USAGE", subjects=("usage.>",), max_age=400 * NS_PER_DAY)

# STATE before FEED, which sources it.
STREAMS = (STATE, JOBS, FEED, DELIVERIES, USAGE, *(_bucket_stream(bucket) for bucket in BUCKETS))


class SharedConsumer(Struct, frozen=True, kw_only=True):
    """A durable consumer that all edges fetch from, so that each message is for one of them."""

    durable_name: str
    filter_subject: str
    deliver_policy: str = "all"
    opt_start_seq: int | UnsetType = UNSET
    ack_policy: str = "explicit"
    ack_wait: int = 60 * NS_PER_S
    max_deliver: int = -1
    max_ack_pending: int = -1


class _ConsumerStart(Struct, frozen=True):
    """Where a consumer began, which no update can change."""

    deliver_policy: str = "all"
    opt_start_seq: int | UnsetType = UNSET


class _AckFloor(Struct, frozen=True):
    stream_seq: int = 0


class _ConsumerState(ApiResponse, frozen=True):
    config: _ConsumerStart = _ConsumerStart()
    ack_floor: _AckFloor = _AckFloor()


WEBHOOK_CURSOR_CONSUMER, WEBHOOK_DELIVERY_CONSUMER = "judging", "delivering"
# From where the first edge began: made anew it must not send what was sent years ago.
_WEBHOOK_CURSOR = SharedConsumer(
    durable_name=WEBHOOK_CURSOR_CONSUMER, filter_subject="$KV.STATE.*.*", deliver_policy="new"
)
SHARED_CONSUMERS = (
    (STATE, _WEBHOOK_CURSOR),
    (DELIVERIES, SharedConsumer(durable_name=WEBHOOK_DELIVERY_CONSUMER, filter_subject="delivery.>")),
)


class PullConsumer(Struct, frozen=True, kw_only=True):
    """The durable consumer of one pool and priority.

    Any limit on deliveries or on what is unacknowledged wedges a lane whose jobs are in back-off, and a back-off list
    would replace the ack_wait; the job's own count of attempts is the guard against poison.
    """

    durable_name: str
    filter_subject: str
    ack_policy: str = "explicit"
    ack_wait: int = ACK_TIMEOUT_S * NS_PER_S
    max_deliver: int = -1
    max_ack_pending: int = -1


def pull_consumer(pool: str, priority: Priority) -> PullConsumer:
    """The consumer that the runner fetches from."""
    return PullConsumer(durable_name=subjects.lane_consumer(pool, priority), filter_subject=f"job.{pool}.{priority}.>")


async def ensure_streams(js: JetStreamClient, replicas: int | None = None) -> None:
    """Make every stream as it is written here, kept on `replicas` servers (None: on as many as it is).

    Raises Denied for a user other than the edge, BusError where the cluster has fewer servers or the store no room.
    """
    for stream in STREAMS:
        try:
            await _ensure_stream(js, stream, replicas)
        except (TooFewServers, BrokerFull) as error:
            raise _explain_no_room(stream, replicas, error) from error


def _explain_no_room(stream: StreamConfig, replicas: int | None, error: BusError) -> BusError:
    """What is wrong with the broker for `stream`, and what to do. A cluster calls both reasons a lack of peers."""
    if isinstance(error, TooFewServers) and NO_STORAGE_TEXT not in str(error):
        return BusError(
            f"{stream.name} cannot be kept on {replicas} servers ({error}): lower [broker] replicas, or bring up "
            "more servers of the cluster"
        )
    reserved = sum(max(one.max_bytes, 0) for one in STREAMS) // MIB
    return BusError(
        f"the broker's store is too small, the streams reserve {reserved} MB of it and {stream.name} found no room "
        f"({error}): set max_file_store in nats.conf to 2GB or more (20GB is usual) and restart nats-server"
    )


async def _ensure_stream(js: JetStreamClient, stream: StreamConfig, replicas: int | None) -> None:
    config = msgspec.to_builtins(stream) | {"num_replicas": replicas or 1}
    try:
        await js.call(f"STREAM.CREATE.{stream.name}", config, ApiResponse)
    except ConfigMismatch:
        if replicas is None:
            config["num_replicas"] = (await js.stream_info(stream.name)).config.num_replicas
        await js.call(f"STREAM.UPDATE.{stream.name}", config, ApiResponse, STREAM_UPDATE_TIMEOUT_S)


async def ensure_shared_consumers(js: JetStreamClient) -> None:
    """Make the consumers that edges share, or leave them as they are."""
    for stream, made in SHARED_CONSUMERS:
        try:
            await _ensure_consumer(js, stream.name, made)
        except ConfigMismatch:
            there = await _read_consumer(js, stream.name, made.durable_name)
            if there is None:
                raise
            began = msgspec.structs.asdict(there.config)
            await _ensure_consumer(js, stream.name, msgspec.structs.replace(made, **began))


async def read_webhook_cursor(js: JetStreamClient) -> int | None:
    """Up to which sequence of STATE the edges have judged all; None while no edge has been there."""
    there = await _read_consumer(js, STATE.name, WEBHOOK_CURSOR_CONSUMER)
    return there.ack_floor.stream_seq if there else None


async def set_webhook_cursor(js: JetStreamClient, sequence: int) -> None:
    """Make the consumer by which edges judge STATE, from behind `sequence` on."""
    made = msgspec.structs.replace(_WEBHOOK_CURSOR, deliver_policy="by_start_sequence", opt_start_seq=sequence + 1)
    await _ensure_consumer(js, STATE.name, made)


async def _read_consumer(js: JetStreamClient, stream: str, name: str) -> _ConsumerState | None:
    try:
        return await js.call(f"CONSUMER.INFO.{stream}.{name}", {}, _ConsumerState)
    except JetStreamNotFound:
        return None


async def ensure_pull_consumers(js: JetStreamClient, pool: str) -> None:
    """Make the consumers of a pool, or leave them as they are."""
    for priority in PRIORITIES:
        await _ensure_consumer(js, JOBS.name, pull_consumer(pool, priority))


async def _ensure_consumer(js: JetStreamClient, stream: str, made: PullConsumer | SharedConsumer) -> None:
    verb = f"CONSUMER.CREATE.{stream}.{made.durable_name}.{made.filter_subject}"
    await js.call(verb, {"stream_name": stream, "config": msgspec.to_builtins(made)}, ApiResponse)
