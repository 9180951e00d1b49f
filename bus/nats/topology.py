"""Everything that the broker holds, as data: streams, buckets, consumers; its users and their rights.

The configuration is owned here. `ensure_streams` writes it whole and never reads it back, because a round trip through
a client drops the settings that the client does not know. Only the edge has the rights.

A runner uses streams and consumers, it never creates any. Each user but the edge's has its own account
(`bus.server.config`), so that the reply to a call cannot be used to write. Beside running jobs, the password of a
runner still allows:

- to read and write the record of any job: to end a job, or to give it a result (the claim in the record is a fence
  against accidents, not against a hostile runner)
- to ack or nak any message of JOBS, so that its job waits until the edge publishes it again
- to publish progress and log output of any job

It cannot read or write a key, a webhook's secret, a stream, or another host's heartbeat, capabilities, power record or
nudges. The reader's password allows to read the feed of all jobs, and to create and delete consumers of readers.
"""

from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType

from bus.interface import BrokerFull, BusError
from bus.nats import wire
from bus.nats.jetstream import NS_PER_S, ApiResponse, JetStreamClient
from bus.nats.replies import ConfigMismatch, JetStreamNotFound, TooFewServers
from schemas.host import HEARTBEAT_TTL_S
from schemas.installation import LEASE_TTL_S
from schemas.job import PRIORITIES, RECORD_LIMIT_BYTES, Priority

DELIVERY_LOG_RETENTION_DAYS = 30
OWNER_DELETION_RETENTION_DAYS = 30
JOB_ACTION_RETENTION_DAYS = 30
AUDIT_RETENTION_DAYS = 400
NOTICE_RETENTION_DAYS = 30  # after this time a condition that still holds is sent again


class Bucket(NamedTuple):
    """A bucket: how many revisions of a key it keeps, and for how many seconds (None: forever).

    `erases_old_values`: it holds data of clients, or secrets, so the edge overwrites the earlier value of a row after
    each write. A revision that the broker itself drops, because `history` is full, stays on its disk; so such a bucket
    keeps a few revisions, and the edge erases all but the last. `guest_of`: the bucket in whose stream the rows are.
    `is_polled`: edges read all rows many times a second, so each keeps them and reads only those that changed.
    """

    name: str
    history: int = 1
    ttl_s: float | None = None
    erases_old_values: bool = False
    guest_of: str = ""
    is_polled: bool = False

    @property
    def stream(self) -> str:
        """The stream behind the key-value bucket."""
        return f"KV_{self.guest_of or self.name}"


_SHORT_HISTORY = 4  # more than a crash between a write and its erasure leaves

HOSTS = Bucket("HOSTS", ttl_s=HEARTBEAT_TTL_S, is_polled=True)
OFFERS = Bucket("OFFERS", is_polled=True)
POWER = Bucket("POWER", history=64, is_polled=True)
KEYS = Bucket("KEYS", _SHORT_HISTORY, erases_old_values=True)
ASSETS = Bucket("ASSETS", _SHORT_HISTORY, erases_old_values=True)
TOMBSTONES = Bucket("TOMBSTONES")
AGREED = Bucket("AGREED")
HOOKS = Bucket("HOOKS", _SHORT_HISTORY, erases_old_values=True)
OWNER_HOOKS = Bucket("OWNER_HOOKS", _SHORT_HISTORY, erases_old_values=True)
DELIVERED = Bucket("DELIVERED", _SHORT_HISTORY, DELIVERY_LOG_RETENTION_DAYS * 86_400, erases_old_values=True)
LEASES = Bucket("LEASES", ttl_s=LEASE_TTL_S)
JOINED = Bucket("JOINED", _SHORT_HISTORY, erases_old_values=True)
HOST_TOKENS = Bucket("HOST_TOKENS", _SHORT_HISTORY, erases_old_values=True)
ERASURES = Bucket("ERASURES", ttl_s=OWNER_DELETION_RETENTION_DAYS * 86_400)
AUDIT = Bucket("AUDIT", ttl_s=AUDIT_RETENTION_DAYS * 86_400)
NOTICES = Bucket("NOTICES", _SHORT_HISTORY, NOTICE_RETENTION_DAYS * 86_400, erases_old_values=True)
# Their rows are in a stream that runners may read already. With a stream of their own, the runner's account would
# import a new right. On a broker that is configured by hand, the edge's account does not export it yet, and then
# nats-server refuses the configuration (docs/decisions/098-pauses-share-a-stream.md).
PAUSES = Bucket("PAUSES", guest_of=TOMBSTONES.name)
DELETED_OWNERS = Bucket("DELETED_OWNERS", guest_of=TOMBSTONES.name)
SECRETS = Bucket("SECRETS", _SHORT_HISTORY, erases_old_values=True)
ACTIONS = Bucket("ACTIONS", _SHORT_HISTORY, JOB_ACTION_RETENTION_DAYS * 86_400, erases_old_values=True)

BUCKETS = (
    *(HOSTS, OFFERS, POWER, KEYS, ASSETS, TOMBSTONES, AGREED, HOOKS, DELIVERED, LEASES, JOINED, ERASURES, AUDIT),
    *(ACTIONS, NOTICES, OWNER_HOOKS, SECRETS, HOST_TOKENS),
)
GUEST_BUCKETS = (PAUSES, DELETED_OWNERS)


NS_PER_DAY = 86_400 * NS_PER_S
MIB = 1024**2
HEADERS_LIMIT_BYTES = 4096  # room for headers beside a record
ACK_WAIT_S = 30
NO_STORAGE_TEXT = "insufficient storage"
STREAM_UPDATE_TIMEOUT_S = 45.0  # a stream with more replicas, and its consumers, first elect a leader


class StreamConfig(Struct, frozen=True, kw_only=True):
    """A stream in the words of the JetStream API, where -1 and 0 mean: no limit.

    `allow_rollup_hdrs` is false everywhere: a single message with such a header on one key would remove every record.
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
    sources: tuple[dict[str, Any], ...] | UnsetType = (
        UNSET  # the broker treats an empty list as a change after a restart
    )


def _bucket_stream(bucket: Bucket) -> StreamConfig:
    age = int(bucket.ttl_s * NS_PER_S) if bucket.ttl_s else 0
    guests = (guest for guest in GUEST_BUCKETS if guest.stream == bucket.stream)
    return StreamConfig(
        name=bucket.stream,
        subjects=tuple(f"$KV.{one.name}.>" for one in (bucket, *guests)),
        discard="new",
        max_msgs_per_subject=bucket.history,
        max_age=age,
        duplicate_window=min(120 * NS_PER_S, age or NS_PER_DAY),  # the broker refuses a window longer than the age
    )


STATE = StreamConfig(
    name="KV_STATE",
    subjects=("$KV.STATE.*.*",),
    discard="new",
    max_msgs_per_subject=128,  # readers get 64; the edge erases older ones, see `NatsJobStore.trim_history`
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

# STATE comes before FEED, which sources it.
STREAMS = (STATE, JOBS, FEED, DELIVERIES, USAGE, *(_bucket_stream(bucket) for bucket in BUCKETS))


class SharedConsumer(Struct, frozen=True, kw_only=True):
    """A durable consumer from which all edges fetch, so that one edge gets each message."""

    durable_name: str
    filter_subject: str
    deliver_policy: str = "all"
    opt_start_seq: int | UnsetType = UNSET
    ack_policy: str = "explicit"
    ack_wait: int = 60 * NS_PER_S
    max_deliver: int = -1
    max_ack_pending: int = -1


class _ConsumerStart(Struct, frozen=True):
    """The start of a consumer, which no update can change."""

    deliver_policy: str = "all"
    opt_start_seq: int | UnsetType = UNSET


class _AckFloor(Struct, frozen=True):
    stream_seq: int = 0


class _ConsumerState(ApiResponse, frozen=True):
    config: _ConsumerStart = _ConsumerStart()
    ack_floor: _AckFloor = _AckFloor()
    num_pending: int = 0
    num_ack_pending: int = 0


WEBHOOK_CURSOR_CONSUMER, WEBHOOK_DELIVERY_CONSUMER = "judging", "delivering"
# It starts at the time of its creation: an installation that loses it must not send webhooks of old states again.
_WEBHOOK_CURSOR = SharedConsumer(
    durable_name=WEBHOOK_CURSOR_CONSUMER, filter_subject="$KV.STATE.*.*", deliver_policy="new"
)
SHARED_CONSUMERS = (
    (STATE, _WEBHOOK_CURSOR),
    (DELIVERIES, SharedConsumer(durable_name=WEBHOOK_DELIVERY_CONSUMER, filter_subject="delivery.>")),
)


class PullConsumer(Struct, frozen=True, kw_only=True):
    """The durable consumer of one pool and priority.

    A limit on deliveries or on unacknowledged messages would block a lane whose jobs are all in backoff, and a backoff
    list would replace the ack_wait. The job's own count of attempts limits its retries.
    """

    durable_name: str
    filter_subject: str
    ack_policy: str = "explicit"
    ack_wait: int = ACK_WAIT_S * NS_PER_S
    max_deliver: int = -1
    max_ack_pending: int = -1


def pull_consumer(pool: str, priority: Priority) -> PullConsumer:
    """Return the consumer from which runners fetch a lane."""
    return PullConsumer(durable_name=wire.lane_consumer(pool, priority), filter_subject=f"job.{pool}.{priority}.>")


async def ensure_streams(jetstream: JetStreamClient, replicas: int | None = None) -> None:
    """Create or update every stream, with `replicas` copies (None: as many as it has).

    Raises BrokerDenied for another user than the edge, and BusError when the cluster has too few servers or no room.
    """
    for stream in STREAMS:
        try:
            await _ensure_stream(jetstream, stream, replicas)
        except (TooFewServers, BrokerFull) as error:
            raise _explain_no_room(stream, replicas, error) from error


def _explain_no_room(stream: StreamConfig, replicas: int | None, error: BusError) -> BusError:
    """Return an error that says what to do. A cluster reports both reasons as a lack of peers."""
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


async def _ensure_stream(jetstream: JetStreamClient, stream: StreamConfig, replicas: int | None) -> None:
    config = msgspec.to_builtins(stream) | {"num_replicas": replicas or 1}
    try:
        await jetstream.call(f"STREAM.CREATE.{stream.name}", config, ApiResponse)
    except ConfigMismatch:
        if replicas is None:
            config["num_replicas"] = (await jetstream.stream_info(stream.name)).config.num_replicas
        await jetstream.call(f"STREAM.UPDATE.{stream.name}", config, ApiResponse, STREAM_UPDATE_TIMEOUT_S)


async def ensure_shared_consumers(jetstream: JetStreamClient) -> None:
    """Create the consumers that edges share, or leave them as they are."""
    for stream, consumer in SHARED_CONSUMERS:
        try:
            await _ensure_consumer(jetstream, stream.name, consumer)
        except ConfigMismatch:
            existing = await _read_consumer(jetstream, stream.name, consumer.durable_name)
            if existing is None:
                raise
            start = msgspec.structs.asdict(existing.config)
            await _ensure_consumer(jetstream, stream.name, msgspec.structs.replace(consumer, **start))


async def read_webhook_cursor(jetstream: JetStreamClient) -> int | None:
    """Return the sequence of STATE up to which the edges have checked for webhooks; None before the first edge."""
    consumer = await _read_consumer(jetstream, STATE.name, WEBHOOK_CURSOR_CONSUMER)
    return consumer.ack_floor.stream_seq if consumer else None


async def count_unchecked_states(jetstream: JetStreamClient) -> int:
    """Return the number of changes of STATE that no edge has checked for a webhook; 0 before the first edge."""
    consumer = await _read_consumer(jetstream, STATE.name, WEBHOOK_CURSOR_CONSUMER)
    return consumer.num_pending + consumer.num_ack_pending if consumer else 0


async def set_webhook_cursor(jetstream: JetStreamClient, sequence: int) -> None:
    """Create the consumer by which edges check STATE for webhooks, starting after `sequence`."""
    consumer = msgspec.structs.replace(_WEBHOOK_CURSOR, deliver_policy="by_start_sequence", opt_start_seq=sequence + 1)
    await _ensure_consumer(jetstream, STATE.name, consumer)


async def _read_consumer(jetstream: JetStreamClient, stream: str, name: str) -> _ConsumerState | None:
    try:
        return await jetstream.call(f"CONSUMER.INFO.{stream}.{name}", {}, _ConsumerState)
    except JetStreamNotFound:
        return None


async def ensure_pull_consumers(jetstream: JetStreamClient, pool: str) -> None:
    """Create the consumers of a pool, or leave them as they are."""
    for priority in PRIORITIES:
        await _ensure_consumer(jetstream, JOBS.name, pull_consumer(pool, priority))


async def _ensure_consumer(jetstream: JetStreamClient, stream: str, consumer: PullConsumer | SharedConsumer) -> None:
    verb = f"CONSUMER.CREATE.{stream}.{consumer.durable_name}.{consumer.filter_subject}"
    await jetstream.call(verb, {"stream_name": stream, "config": msgspec.to_builtins(consumer)}, ApiResponse)


ANY_HOST = "*"
EDGE_ACCOUNT = "LAMPLIGHTER"  # the account of the edge, which holds the streams


class BrokerUser(NamedTuple):
    """A user of the broker, the only one in its account. All inboxes of its connection start with `inbox`."""

    name: str
    account: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    inbox: str


def inbox_prefix(name: str) -> str:
    """Return the inbox prefix of a user."""
    return f"_INBOX_{name}"


def _user(name: str, account: str, publish: tuple[str, ...], subscribe: tuple[str, ...]) -> BrokerUser:
    return BrokerUser(name, account, publish, (f"{inbox_prefix(name)}.>", *subscribe), inbox_prefix(name))


EDGE = BrokerUser("edge", EDGE_ACCOUNT, (">",), (">",), inbox_prefix("edge"))

# Under this prefix an edge creates and deletes consumers for readers (`bus.nats.feed`). A consumer created by a
# reader could deliver to any subject of the edge's account.
READER_API_PREFIX = "readers."

# These rights cover what client libraries do on their own, such as unnamed consumers and CONSUMER.INFO.
READER = _user(
    "reader",
    "READERS",
    (
        "$JS.API.STREAM.INFO.FEED",
        "$JS.API.CONSUMER.CREATE.FEED",
        "$JS.API.CONSUMER.CREATE.FEED.>",
        "$JS.API.CONSUMER.INFO.FEED.>",
        "$JS.API.CONSUMER.MSG.NEXT.FEED.>",
        "$JS.API.CONSUMER.DELETE.FEED.>",
        "$JS.ACK.FEED.>",
    ),
    (),
)


def runner_user_name(host: str) -> str:
    """Return the user name of a host's runner; for `*`, that of the runner of any host."""
    return "runner" if host == ANY_HOST else f"runner-{host}"


def runner_user(host: str = ANY_HOST) -> BrokerUser:
    """Return the user of the runner of `host`. It writes that host's heartbeat and capabilities, and no other's."""
    publish = (
        "$JS.API.STREAM.INFO.KV_STATE",
        "$JS.API.STREAM.MSG.GET.KV_STATE",
        "$JS.API.CONSUMER.MSG.NEXT.JOBS.*",
        "$JS.ACK.JOBS.>",
        "$KV.STATE.>",
        *(f"$JS.API.DIRECT.GET.{bucket.stream}.>" for bucket in (HOSTS, TOMBSTONES)),
        f"$JS.API.DIRECT.GET.{POWER.stream}.$KV.{POWER.name}.{host}",  # its own power record, no other host's
        *(f"$JS.API.STREAM.INFO.{bucket.stream}" for bucket in (HOSTS, POWER, TOMBSTONES)),
        "feed.*.*.progress",
        "feed.*.*.log",
        f"$KV.HOSTS.{host}",
        f"$KV.OFFERS.{host}",
    )
    account = "RUNNERS" if host == ANY_HOST else f"HOST_{host}"
    return _user(runner_user_name(host), account, publish, (f"ctl.{host}", "wake.*"))


def account_list_marker(name: str) -> BrokerUser:
    """Return a user without a job: a login as this user proves which list of hosts the broker has read.

    `bus.server.process` uses it.
    """
    return _user(f"roster-{name}", f"ROSTER_{name}", (f"$JS.API.DIRECT.GET.{TOMBSTONES.stream}.roster",), ())


def broker_users(hosts: tuple[str, ...] = ()) -> tuple[BrokerUser, ...]:
    """Return all users: the edge, the runner of any host, one runner for each of `hosts`, the reader."""
    return (EDGE, runner_user(), *(runner_user(host) for host in hosts), READER)


GLOBAL_ACCOUNT = "$G"  # the account of all users at a broker without accounts
