"""What the broker can answer instead of doing as told, in our words. `bus.nats.errors` maps everybody else's to these.

BusError
  Conflict      the record moved on: re-read
  TooLarge      never recordable
  StoreFull     refuse new work
  Denied        the broker user lacks a right: a mistake of set-up, loud
  Unreachable   the broker is away: try again
  Unreadable    a stored row is not one: set it aside
"""

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from datetime import datetime
from typing import Generic, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from schemas.asset import AssetReference
from schemas.auth import ApiKey
from schemas.enrollment import EnrolledHost
from schemas.events import JobRecord
from schemas.feed import FeedMessage, ProgressMessage
from schemas.host import AssetTombstone, HostCapabilities, HostHeartbeat
from schemas.ids import JobKey
from schemas.installation import AuditEvent, InstallationConstant, Lease
from schemas.job import Pointer
from schemas.owner_deletion import OwnerDeletion
from schemas.power import PowerRecord
from schemas.status import Priority
from schemas.usage import JobUsage, PowerUsage, UsageRow
from schemas.webhook import DeliveryLogRow, WebhookConfig


class BusError(Exception):
    """Root of what the broker can answer instead of doing as told."""


class RevisionConflict(BusError):
    """The compare-and-set failed: somebody wrote first. Re-read and decide again."""


class MessageTooLarge(BusError):
    """The message is larger than the broker takes, now and for ever."""


class BrokerFull(BusError):
    """The stream or the store has no room. What was asked did not happen."""


class BrokerDenied(BusError):
    """The broker user has no right to this subject: a mistake of set-up, never of a job."""


class BrokerUnreachable(BusError):
    """The broker does not answer. Whether the last write happened is unknown: read before writing again."""


class RowUnreadable(BusError):
    """The bytes stored under this key are not a row of the table. Everything else in the table can be used."""


# MERGED bus/recorded.py: The port of STATE. `bus.nats.job_store` makes it true, `tests.support.fake_bus.stores` too.


class VersionedRecord(Struct, frozen=True):
    """A record and the revision of STATE it was read at."""

    revision: int
    record: JobRecord


class RecordChange(Struct, frozen=True):
    """One step of STATE's own stream; `recorded` None: the record was deleted, or its bytes are unreadable."""

    revision: int
    key: JobKey
    record: JobRecord | None


class CaughtUp(Struct, frozen=True):
    """Everything that was there when the stream was opened has been given."""


class JobStore(Protocol):
    """STATE: what happened, and each job as it became. The last revision of a key is the truth."""

    async def read(self, key: JobKey) -> VersionedRecord | None:
        """The last record, from the leader; None when there is none or it was deleted. RecordUnreadable on rubbish."""
        ...

    async def create(self, key: JobKey, recorded: JobRecord) -> int:
        """Write the first record, return its revision; Conflict when there is one."""
        ...

    async def update(self, key: JobKey, recorded: JobRecord, revision: int) -> int:
        """Write behind `revision`, return the new one; Conflict when the record is past it."""
        ...

    async def history(self, key: JobKey) -> list[VersionedRecord]:
        """The revisions that are kept (the last 64), oldest first. Empty when there is no job."""
        ...

    async def delete(self, key: JobKey, revision: int | None) -> None:
        """Leave a delete marker behind `revision` (Conflict when past it) and erase every revision before it.

        None: whatever it is at, an unreadable one too.

        The marker goes by itself an hour later.
        """
        ...

    def changes(self, after: int = 0) -> AsyncIterator[RecordChange | CaughtUp]:
        """Every change behind revision `after`, without end; from 0: the last of every key, CaughtUp, then live.

        Re-opens by itself behind the last change given when the broker comes back.
        """
        ...

    async def keys(self) -> set[JobKey]:
        """Every key with a living record; deleted ones left out."""
        ...


# MERGED bus/waiting.py: The port of JOBS. `bus.nats.job_queue` makes it true, `tests.support.fake_bus.queues` too.


class Lane(NamedTuple):
    """What one consumer hands out: the pointers of a pool that have one priority."""

    pool: str
    priority: Priority


class QueueMessage(Protocol):
    """One pointer handed out. It comes again after 30 s unless it is extended, postponed or done.

    After a crash of the broker it may come again whatever was said of it: who takes it goes by the record.
    """

    pointer: Pointer
    sequence: int

    async def in_progress(self) -> None:
        """Still at it: 30 s from now."""
        ...

    async def ack(self) -> None:
        """Gone for good, acknowledged by the broker unless it forgot the delivery. Never before the record says so."""
        ...

    async def nak(self, delay_s: float) -> None:
        """Hand it out again in `delay_s`, over a restart of the broker too (a crash right after: within 30 s)."""
        ...


WAKE_GRACE_S = 0.05  # a wake is said before what it tells of is stored; a store that takes longer is told of again


class JobQueue(Protocol):
    """JOBS: the pointers that wait, one consumer a pool and priority."""

    async def ensure_consumers(self, pools: Collection[str]) -> None:
        """Make the consumers of `pools` (the edge's right; the runner only binds)."""
        ...

    async def publish(self, pointer: Pointer, *, repair: bool = False) -> None:
        """Wake its lane and let it wait: whoever is woken takes it within WOKEN_S.

        Twice is once (Msg-Id = subject), but `repair` publishes anew.
        """
        ...

    async def fetch(self, pool: str, priority: Priority, wait_s: float = 0.0) -> QueueMessage | None:
        """The next one, at once, or one that comes within `wait_s`; None also when the consumer is not there yet."""
        ...

    async def remove(self, pointer: Pointer) -> None:
        """Remove that round's message, whoever holds it. Nothing happens when it is gone."""
        ...

    async def list_pending(self, owner: str | None = None) -> set[Pointer]:
        """Every pointer in JOBS, those handed out included."""
        ...

    async def wait_for_messages(self, pools: Collection[str], timeout_s: float) -> frozenset[Lane]:
        """Wait until one of `pools` is published to, at most `timeout_s`; its lanes that were, since the last call."""
        ...


# MERGED bus/outgoing.py: The outbox of webhooks as a port: every state once past some edge, every letter kept until
# it is done with.


T_co = TypeVar("T_co", covariant=True)


class WebhookDelivery(Struct, frozen=True):
    """One state of a job on its way to its webhook. `replay`: how many times it was sent anew on request."""

    revision: int
    record: JobRecord
    replay: int = 0


class LeasedItem(Protocol[T_co]):
    """Something handed out to one edge. It comes again after a minute unless it is done or put off."""

    @property
    def value(self) -> T_co:
        """What it is."""
        ...

    async def ack(self) -> None:
        """Gone for good."""
        ...

    async def nak(self, delay_s: float) -> None:
        """Hand it out again in `delay_s`, over a restart of the broker too."""
        ...


class WebhookOutbox(Protocol):
    """DELIVERIES, and the one place from which all edges together read STATE for it."""

    async def next_state_change(self) -> LeasedItem[WebhookDelivery | None] | None:
        """The next state that no edge has judged, None when there is none now; None in it: a deletion, or rubbish.

        It reads on from where the first edge of the installation began, each state handed to one edge.
        """
        ...

    async def enqueue(self, letter: WebhookDelivery) -> None:
        """Keep it until it is done. Twice is once, within minutes. Raises StoreFull."""
        ...

    async def fetch(self) -> LeasedItem[WebhookDelivery] | None:
        """The next letter that is due, at once or None."""
        ...

    async def remove(self, owner: str, job_id: str | None = None) -> int:
        """Erase every letter of the job, or of all the owner's, whoever holds it; how many there were."""
        ...


# MERGED bus/ledger.py: The port of USAGE: what was used, kept for bills and reports. `bus.nats.usage_log` makes it
# true, `tests.support.fake_bus.stores` too.


class UsageLog(Protocol):
    """One row for each round of a job that has ended, and for each span with power of a host. Kept for 400 days."""

    async def add(self, row: UsageRow) -> bool:
        """Write the row; False when it is there already: one row is written once, whoever and however many write it."""
        ...

    async def job_rows(self, since: datetime) -> list[JobUsage]:
        """The rows of jobs that were written at `since` or later; older ones may be among them."""
        ...

    async def power_rows(self, since: datetime) -> list[PowerUsage]:
        """The rows of hosts, likewise."""
        ...

    async def last_job_row(self) -> JobUsage | None:
        """The row of a job that was written last; None when there is none."""
        ...

    async def delete_owner(self, owner: str) -> int:
        """Erase every row of the owner's jobs, so that no byte stays; how many there were."""
        ...


# MERGED bus/port.py: What the edge and the runner may ask of the broker, in our words. `bus.open` makes it true,
# `tests.support.fake_bus` too. / The ports with ideas of their own stand beside it, and are named here for those who
# use them: errors (`bus.interface`), / STATE (`bus.interface`), JOBS (`bus.interface`), DELIVERIES (`bus.interface`),
# USAGE (`bus.interface`).


__all__ = [
    "WAKE_GRACE_S",
    "BrokerDenied",
    "BrokerFull",
    "BrokerHealth",
    "BrokerStatus",
    "BrokerUnreachable",
    "Bus",
    "BusError",
    "CaughtUp",
    "FeedItem",
    "HostNudges",
    "JobFeed",
    "JobQueue",
    "JobStore",
    "Lane",
    "MessageTooLarge",
    "QueueMessage",
    "RecordChange",
    "RevisionConflict",
    "RowUnreadable",
    "Table",
    "TableRow",
    "VersionedRecord",
]

T = TypeVar("T")


class FeedItem(Struct, frozen=True):
    """One thing a follower sees. `id` is `<epoch>-<sequence>`; exactly one of the two is set.

    `change`: a state, sourced from STATE by the broker. `note`: progress or log, from the runner.
    """

    id: str
    key: JobKey
    change: RecordChange | None = None
    message: FeedMessage | None = None


class JobFeed(Protocol):
    """FEED: what clients follow."""

    async def publish(self, key: JobKey, note: FeedMessage) -> None:
        """Say it; the same place and kind twice is once."""
        ...

    def follow(self, owner: str, job_id: str | None = None, after: str | None = None) -> AsyncIterator[FeedItem]:
        """The owner's items (of one job, if named) behind id `after`, without end; from the start for None, an id of
        another epoch, or one outside what is held. Re-opens by itself when the broker comes back; what was given is not
        given again. Of one job, once all that is held was given, a state of STATE that was not among it is given too
        (the last one after a resume at the end), so that a follower always learns of the end."""
        ...

    def replay(self, owner: str, after: str | None = None) -> AsyncGenerator[FeedItem, None]:
        """The owner's items behind `after` as in `follow`, up to what is there at the opening; then it ends.

        Raises Unreachable when the broker goes away meanwhile.
        """
        ...

    async def last_progress(self, key: JobKey) -> ProgressMessage | None:
        """The latest progress that was said."""
        ...

    async def messages(self, key: JobKey) -> list[FeedMessage]:
        """All notes held of the job, oldest first."""
        ...

    async def last_id(self) -> str:
        """The id behind which nothing is yet."""
        ...

    async def delete(self, owner: str, job_id: str | None = None) -> int:
        """Erase every message of the job, or of all the owner's, the sourced states too, so that no byte stays; how
        many there were."""
        ...


class TableRow(Struct, Generic[T], frozen=True):
    """A value and the revision it was read at."""

    revision: int
    value: T


class Table(Protocol[T]):
    """A small bucket of one type: HOSTS, OFFERS, KEYS, ASSETS, TOMBSTONES, POWER, AGREED, JOINED, HOOKS…"""

    async def get(self, key: str) -> TableRow[T] | None:
        """The row, or None when there is none (or its time ran out). Raises Unreadable."""
        ...

    async def put(self, key: str, value: T) -> int:
        """Write whatever was there; the new revision."""
        ...

    async def create(self, key: str, value: T) -> int:
        """Write the first; Conflict when there is one."""
        ...

    async def update(self, key: str, value: T, revision: int) -> int:
        """Write behind `revision`; Conflict when the row is past it."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the row, if there."""
        ...

    async def rows(self, prefix: str = "") -> dict[str, TableRow[T]]:
        """Every row whose key starts with `prefix` (whole tokens: `owner.`). Leaves out, and logs, unreadable rows."""
        ...

    async def keys(self, pattern: str = ">") -> set[str]:
        """The keys that match, in one request: `*` is any one token, a last `>` all that follow.

        One that a runner deleted may still be among them, and so are unreadable rows.
        """
        ...


class HostNudges(Protocol):
    """Core subjects `ctl.<host>`: a nudge that may be lost, because the runner re-reads STATE anyway."""

    async def nudge(self, host: str, key: JobKey) -> None:
        """Tell `host` to look at the job's record now."""
        ...

    def subscribe(self, host: str) -> AsyncIterator[JobKey]:
        """What `host` is told to look at, without end."""
        ...


class BrokerStatus(NamedTuple):
    """The broker as the edge sees it. `used` is the share of the store in use, 0 to 1; `synced` None: unknown.

    `halted`: its disk did not take a write, and it stores nothing until it is started anew. `ailing`: what befell some
    servers of a cluster while the others do the work, and what to do, a line each.
    """

    used_share: float
    is_durable: bool | None
    version: str
    write_failed: bool = False
    degraded: tuple[str, ...] = ()


class BrokerHealth(Protocol):
    """The connection itself."""

    async def status(self) -> BrokerStatus:
        """Ask the broker; raises Unreachable."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands now."""
        ...

    @property
    def fault(self) -> str:
        """What keeps a broker that is there from being used, and what to do; empty where it is well, or just away."""
        ...

    def uptime_s(self) -> float:
        """Seconds since the connection came up, without a break, a suspend or a clock jump: the gone rule's clock."""
        ...

    def reconnects(self) -> AsyncIterator[None]:
        """One item each time the broker has come back (topology is ensured again before it)."""
        ...


class Bus(Struct, frozen=True, kw_only=True):
    """All of it, over one connection."""

    health: BrokerHealth
    job_store: JobStore
    job_queue: JobQueue
    feed: JobFeed
    host_nudges: HostNudges
    heartbeats: Table[HostHeartbeat]
    capabilities: Table[HostCapabilities]
    api_keys: Table[ApiKey]
    asset_references: Table[AssetReference]
    tombstones: Table[AssetTombstone]
    power_records: Table[PowerRecord]
    installation_constants: Table[InstallationConstant]
    webhook_configs: Table[WebhookConfig]
    delivery_log: Table[DeliveryLogRow]
    leases: Table[Lease]
    webhook_outbox: WebhookOutbox
    enrolled_hosts: Table[EnrolledHost]
    owner_deletions: Table[OwnerDeletion]
    audit_log: Table[AuditEvent]
    usage_log: UsageLog


async def forget_deliveries(bus: Bus, key: JobKey) -> None:
    """Erase the job's letters and their log. Raises BusError."""
    await bus.webhook_outbox.remove(*key)
    for name in await bus.delivery_log.keys(f"{key.owner}.{key.id}.>"):
        await bus.delivery_log.delete(name)
