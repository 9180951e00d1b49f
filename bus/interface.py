"""The ports of the broker: what the edge and the runner may ask of it, and the errors that it answers with.

`bus.open` gives a `Bus` over a real broker, `tests.support.fake_bus` one without; both pass tests/contract/test_bus*.
Methods raise the errors below; `bus.nats.replies` maps every foreign error to one of them.

BusError
  RevisionConflict    another writer was first: read again
  MessageTooLarge     the message can never be stored
  BrokerFull          there is no room: refuse new work
  BrokerDenied        the broker user lacks a right: a mistake in the broker's configuration
  BrokerUnreachable   the broker does not answer: try again
  RowUnreadable       the stored bytes are not a row of the table: leave the row out
"""

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from datetime import datetime
from typing import Generic, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from bus.health import BrokerHealth
from schemas.asset import AssetReference
from schemas.credentials import ApiKey, EnrolledHost, HostToken
from schemas.endpoint_parts import StoredSecret
from schemas.events import FeedMessage, JobRecord, ProgressMessage
from schemas.host import AssetTombstone, HostCapabilities, HostHeartbeat
from schemas.installation import (
    AuditEvent,
    DeletedOwner,
    InstallationConstant,
    JobAction,
    Lease,
    Notice,
    OwnerDeletion,
    Pause,
)
from schemas.job import JobKey, Pointer, Priority
from schemas.job_view import JobUsage, PowerUsage, UsageRow
from schemas.power import PowerRecord
from schemas.webhook import DeliveryLogRow, OwnerWebhooks, WebhookConfig

T = TypeVar("T")


class BusError(Exception):
    """Root of the errors with which the broker refuses a request."""


class RevisionConflict(BusError):
    """The compare-and-set failed because another writer was first. Read again and decide again."""


class MessageTooLarge(BusError):
    """The message is larger than the broker accepts; sending it again cannot succeed."""


class BrokerFull(BusError):
    """The stream or the store has no room. Nothing was written."""


class BrokerDenied(BusError):
    """The broker user has no right to the subject: a mistake in the broker's configuration, not of a job."""


class BrokerUnreachable(BusError):
    """The broker does not answer. It is unknown whether the last write happened: read before writing again."""


class RowUnreadable(BusError):
    """The bytes stored under the key are not a row of the table. The other rows can be used.

    `why`: what the decoder says. `data`: the stored bytes.
    """

    def __init__(self, subject: str, why: str, data: bytes) -> None:
        super().__init__(f"{subject} does not hold a readable row ({why}): delete it or write it again")
        self.why, self.data = why, data


class VersionedRecord(Struct, frozen=True):
    """A job record and the revision of STATE at which it was read."""

    revision: int
    record: JobRecord


class RecordChange(Struct, frozen=True):
    """One message of the STATE stream. `record`: None if the job was deleted or the bytes are unreadable."""

    revision: int
    key: JobKey
    record: JobRecord | None


class CaughtUp(Struct, frozen=True):
    """A marker in `JobStore.changes`: everything stored before the stream was opened has been yielded."""


class JobStore(Protocol):
    """STATE: the record of each job, with its history. The last revision of a key is the truth."""

    async def read(self, key: JobKey) -> VersionedRecord | None:
        """Return the last record, read from the leader; None when the job does not exist or was deleted.

        Raises RecordUnreadable when the bytes are not a record.
        """
        ...

    async def create(self, key: JobKey, record: JobRecord) -> int:
        """Write the first record and return its revision. Raises RevisionConflict when the job exists."""
        ...

    async def update(self, key: JobKey, record: JobRecord, revision: int) -> int:
        """Write the record after `revision` and return the new revision.

        Raises RevisionConflict when the stored record has another revision.
        """
        ...

    async def history(self, key: JobKey) -> list[VersionedRecord]:
        """Return the last 64 revisions, oldest first; an empty list when the job does not exist."""
        ...

    async def delete(self, key: JobKey, revision: int | None) -> None:
        """Write a delete marker after `revision` and erase every earlier revision, so that no byte stays on disk.

        Raises RevisionConflict when the stored record has another revision; None deletes any revision, also an
        unreadable one. The edge removes the marker an hour later.
        """
        ...

    def changes(self, after: int = 0) -> AsyncIterator[RecordChange | CaughtUp]:
        """Yield every change after revision `after`, without end; reconnects after a break without a gap or a repeat.

        From 0: the last record of every job, then CaughtUp, then live changes.
        """
        ...

    async def keys(self) -> set[JobKey]:
        """Return the key of every job that exists."""
        ...


class Lane(NamedTuple):
    """The queue of one pool and priority."""

    pool: str
    priority: Priority


class QueueMessage(Protocol):
    """A pointer that JOBS delivered to this runner.

    It is delivered again after 30 s without `in_progress`, `ack` or `nak`. A message that arrives after its fetch was
    given up, as in a runner that was frozen, is returned at once and delivered again after 1 s. After a crash of the
    broker it may be delivered again whatever was answered, so the runner decides by the job's record.
    """

    pointer: Pointer
    sequence: int

    async def in_progress(self) -> None:
        """Postpone the redelivery to 30 s from now."""
        ...

    async def ack(self) -> None:
        """Remove the message from JOBS. Call it only after the record says that the job needs no message any more.

        Returns after the broker has confirmed it, or has forgotten the delivery.
        """
        ...

    async def nak(self, delay_s: float) -> None:
        """Deliver the message again in `delay_s`, also across a restart of the broker.

        If the broker crashes right after this call, the message comes within 30 s.
        """
        ...


# A runner is woken before the pointer is stored, so that both travel together. The runner then waits this long for the
# pointer. When storing takes more than half of it, the runner is woken again.
WAKE_GRACE_S = 0.05


class JobQueue(Protocol):
    """JOBS: the pointers of jobs that wait for a runner, with one consumer for each pool and priority."""

    async def ensure_consumers(self, pools: Collection[str]) -> None:
        """Create the consumers of `pools` if they do not exist. Only the edge has the right to do so."""
        ...

    async def publish(self, pointer: Pointer, *, repair: bool = False) -> None:
        """Store the pointer and wake the runners that wait for its lane.

        A pointer that is stored already is not stored twice (Msg-Id = subject); with `repair` it is stored again.
        """
        ...

    async def fetch(self, pool: str, priority: Priority, wait_s: float = 0.0) -> QueueMessage | None:
        """Return the next message, one that arrives within `wait_s`, or None.

        Return None also if the consumer does not exist.
        """
        ...

    async def remove(self, pointer: Pointer) -> None:
        """Remove the message of this pointer, even if a runner has it. Do nothing if it does not exist."""
        ...

    async def list_pending(self, owner: str | None = None) -> set[Pointer]:
        """Return every pointer in JOBS, of one owner if named, including those that a runner has."""
        ...

    async def wait_for_messages(self, pools: Collection[str], timeout_s: float) -> frozenset[Lane]:
        """Wait at most `timeout_s` for a publish to `pools`; return the lanes that had one since the last call."""
        ...


T_co = TypeVar("T_co", covariant=True)


class WebhookDelivery(Struct, frozen=True):
    """A state of a job to be sent to a webhook. `replay` counts how many times it was sent again on request.

    `webhook`: the id of the owner-wide webhook; empty for the webhook of the job.
    """

    revision: int
    record: JobRecord
    replay: int = 0
    webhook: str = ""


class LeasedItem(Protocol[T_co]):
    """An item delivered to one edge. It is delivered again after a minute without `ack` or `nak`."""

    @property
    def value(self) -> T_co:
        """The decoded item; reading it neither acks nor naks."""
        ...

    @property
    def is_last(self) -> bool:
        """Whether no new item was stored after it when it was delivered. Items of a `nak` do not count."""
        ...

    async def ack(self) -> None:
        """Remove the item, so that it is never delivered again."""
        ...

    async def nak(self, delay_s: float) -> None:
        """Deliver the item again in `delay_s`, also across a restart of the broker."""
        ...


class WebhookOutbox(Protocol):
    """DELIVERIES, and the cursor with which all edges together read STATE for it: each state goes to one edge."""

    async def next_state_change(self) -> LeasedItem[WebhookDelivery | None] | None:
        """Return the next state that no edge has checked for a webhook; None if all are checked.

        A deletion and unreadable bytes have the value None. The cursor begins where the first edge of the installation
        started.
        """
        ...

    async def enqueue(self, delivery: WebhookDelivery) -> None:
        """Store the delivery until it is acked. Storing it twice within minutes stores it once. Raises BrokerFull."""
        ...

    async def fetch(self) -> LeasedItem[WebhookDelivery] | None:
        """Return the next delivery that is due, or None."""
        ...

    async def remove(self, owner: str, job_id: str | None = None) -> int:
        """Erase every delivery of the job, or of the owner, also those that an edge has; return how many there were."""
        ...


class UsageLog(Protocol):
    """USAGE: one row for each finished round of a job and each interval for which a host was on.

    Rows are kept for 400 days.
    """

    async def add(self, row: UsageRow) -> bool:
        """Write the row; return False when it exists already, whichever edge wrote it."""
        ...

    async def job_rows(self, since: datetime) -> list[JobUsage]:
        """Return the rows of jobs that were written at `since` or later; older rows may be among them."""
        ...

    async def power_rows(self, since: datetime) -> list[PowerUsage]:
        """Return the rows of hosts that were written at `since` or later; older rows may be among them."""
        ...

    async def last_job_row(self) -> JobUsage | None:
        """Return the row of a job that was written last; None when there is no row."""
        ...

    async def delete_owner(self, owner: str) -> int:
        """Erase every row of the owner's jobs, so that no byte stays on disk; return how many there were."""
        ...


class AuditEntry(Struct, frozen=True):
    """An event of the audit log and its sequence, which orders the events and never changes."""

    sequence: int
    event: AuditEvent


class AuditPage(NamedTuple):
    """Entries, newest first. `next_before`: where the next page begins; None if nothing is older."""

    entries: tuple[AuditEntry, ...]
    next_before: int | None


class AuditStream(Protocol):
    """AUDIT: what was done to keys, hosts, owners, jobs and settings, for 400 days. Events are never changed."""

    async def append(self, event_id: str, event: AuditEvent) -> bool:
        """Store the event; return False when one with this id is stored already. Raises BusError."""
        ...

    async def page(self, before: int | None, span: int) -> AuditPage:
        """Return the events among the `span` sequences before `before`, or among the last ones.

        A page may be empty although older events exist. Unreadable events are logged and left out.
        """
        ...


class FeedItem(Struct, frozen=True):
    """One item that a follower receives. `id` is `<epoch>-<sequence>`. Exactly one of the other two fields is set.

    `change`: a state, which the broker sources from STATE. `message`: progress or log output, from the runner.
    """

    id: str
    key: JobKey
    change: RecordChange | None = None
    message: FeedMessage | None = None


class JobFeed(Protocol):
    """FEED: states, progress and log output of jobs, for clients that follow them."""

    async def publish(self, key: JobKey, message: FeedMessage) -> None:
        """Publish the message. The same position and type are stored once."""
        ...

    def follow(self, owner: str, job_id: str | None = None, after: str | None = None) -> AsyncIterator[FeedItem]:
        """Yield the owner's items (of one job, if named) after id `after`, without end and without repeating an item.

        Starts at the beginning without `after`, or if `after` is of another epoch or older than what FEED holds.
        Reconnects after a break. When following one job, yields its latest STATE record after the replay if the replay
        did not contain it, so that a follower always sees the final state.
        """
        ...

    def replay(self, owner: str, after: str | None = None) -> AsyncGenerator[FeedItem, None]:
        """Yield the owner's items after `after` as `follow` does. End with the last item that existed at the start.

        Raises BrokerUnreachable when the broker goes away in the meantime.
        """
        ...

    async def last_progress(self, key: JobKey) -> ProgressMessage | None:
        """Return the latest progress of the job, None when it has reported none."""
        ...

    async def messages(self, key: JobKey) -> list[FeedMessage]:
        """Return all stored messages of the job, oldest first."""
        ...

    async def last_id(self) -> str:
        """Return the id of the last item, after which a follower sees only what comes from now on."""
        ...

    async def delete(self, owner: str, job_id: str | None = None) -> int:
        """Erase every message of the job, or of the owner, so that no byte stays on disk; return how many there were.

        The states that were sourced from STATE are among them.
        """
        ...


class TableRow(Struct, Generic[T], frozen=True):
    """A value and the revision at which it was read."""

    revision: int
    value: T


class TableRows(dict[str, TableRow[T]]):
    """The readable rows of a table by key. `unreadable`: the error of each other row, by key."""

    def __init__(self, rows: Mapping[str, TableRow[T]], unreadable: Mapping[str, RowUnreadable]) -> None:
        super().__init__(rows)
        self.unreadable = dict(unreadable)


class Table(Protocol[T]):
    """A small bucket with rows of one type, such as HOSTS or KEYS."""

    async def get(self, key: str) -> TableRow[T] | None:
        """Return the row; None when it does not exist or has expired. Raises RowUnreadable."""
        ...

    async def put(self, key: str, value: T) -> int:
        """Write the row over whatever is stored; return the new revision."""
        ...

    async def create(self, key: str, value: T) -> int:
        """Write a new row and return its revision. Raises RevisionConflict when the row exists."""
        ...

    async def update(self, key: str, value: T, revision: int) -> int:
        """Write the row after `revision` and return the new revision.

        Raises RevisionConflict when the stored row has another revision.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove the row; nothing happens when it does not exist."""
        ...

    async def rows(self, prefix: str = "") -> TableRows[T]:
        """Return every row whose key starts with `prefix` (whole tokens: `owner.`).

        Unreadable rows are logged, and are not among the rows but among their `unreadable`.
        """
        ...

    async def keys(self, pattern: str = ">") -> set[str]:
        """Return the keys that match `pattern`, in one request: `*` matches one token, a last `>` all that follow.

        A key that a runner deleted may still be among them, and so are those of unreadable rows.
        """
        ...


class HostNudges(Protocol):
    """Core subjects `ctl.<host>`. A nudge may be lost, because the runner reads STATE again anyway."""

    async def nudge(self, host: str, key: JobKey) -> None:
        """Ask the runner of `host` to read the job's record now."""
        ...

    def subscribe(self, host: str) -> AsyncIterator[JobKey]:
        """Yield the keys of the nudges for `host`, without end."""
        ...


class Bus(Struct, frozen=True, kw_only=True):
    """All ports, over one connection to the broker."""

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
    pauses: Table[Pause]
    deleted_owners: Table[DeletedOwner]
    installation_constants: Table[InstallationConstant]
    webhook_configs: Table[WebhookConfig]
    owner_webhooks: Table[OwnerWebhooks]
    delivery_log: Table[DeliveryLogRow]
    secrets: Table[StoredSecret]
    leases: Table[Lease]
    webhook_outbox: WebhookOutbox
    enrolled_hosts: Table[EnrolledHost]
    host_tokens: Table[HostToken]
    owner_deletions: Table[OwnerDeletion]
    job_actions: Table[JobAction]
    audit_log: AuditStream
    notices: Table[Notice]
    usage_log: UsageLog


async def forget_deliveries(bus: Bus, key: JobKey) -> None:
    """Erase the job's webhook deliveries with their log, and its notices. Raises BusError."""
    await bus.webhook_outbox.remove(*key)
    for name in await bus.notices.keys(f"job.{key.owner}.{key.id}.>"):
        await bus.notices.delete(name)
    for name in await bus.delivery_log.keys(f"{key.owner}.{key.id}.>"):
        await bus.delivery_log.delete(name)
