"""What the edge and the runner may ask of the broker, in our words. `bus.connection` makes it true, `bus.memory` too.

BusError
  Conflict      the record moved on: re-read
  TooLarge      never recordable
  StoreFull     refuse new work
  Denied        the broker user lacks a right: a mistake of set-up, loud
  Unreachable   the broker is away: try again
"""

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from typing import Generic, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from bus.ledger import Ledger
from bus.outgoing import Outbox
from schemas.access import Agreed, ApiKey
from schemas.asset import Reference
from schemas.erasure import Erasure
from schemas.events import Recorded
from schemas.feed import Note, ProgressNote
from schemas.host import Offer, Presence, Tombstone
from schemas.job import JobKey, Pointer
from schemas.joining import Joined
from schemas.lease import Lease
from schemas.power import PowerRecord
from schemas.webhook import DeliveryRow, Hooks
from schemas.words import Priority

T = TypeVar("T")


class BusError(Exception):
    """Root of what the broker can answer instead of doing as told."""


class Conflict(BusError):
    """The compare-and-set failed: somebody wrote first. Re-read and decide again."""


class TooLarge(BusError):
    """The message is larger than the broker takes, now and for ever."""


class StoreFull(BusError):
    """The stream or the store has no room. What was asked did not happen."""


class Denied(BusError):
    """The broker user has no right to this subject: a mistake of set-up, never of a job."""


class Unreachable(BusError):
    """The broker does not answer. Whether the last write happened is unknown: read before writing again."""


class Entry(Struct, frozen=True):
    """A record and the revision of STATE it was read at."""

    revision: int
    recorded: Recorded


class Change(Struct, frozen=True):
    """One step of STATE's own stream; `recorded` None: the record was deleted, or its bytes are unreadable."""

    revision: int
    key: JobKey
    recorded: Recorded | None


class CaughtUp(Struct, frozen=True):
    """Everything that was there when the stream was opened has been given."""


class Records(Protocol):
    """STATE: what happened, and each job as it became. The last revision of a key is the truth."""

    async def read(self, key: JobKey) -> Entry | None:
        """The last record, from the leader; None when there is none or it was deleted. RecordUnreadable on rubbish."""
        ...

    async def create(self, key: JobKey, recorded: Recorded) -> int:
        """Write the first record, return its revision; Conflict when there is one."""
        ...

    async def update(self, key: JobKey, recorded: Recorded, revision: int) -> int:
        """Write behind `revision`, return the new one; Conflict when the record is past it."""
        ...

    async def history(self, key: JobKey) -> list[Entry]:
        """The revisions that are kept (the last 64), oldest first. Empty when there is no job."""
        ...

    async def delete(self, key: JobKey, revision: int | None) -> None:
        """Leave a delete marker behind `revision` (Conflict when past it) and erase every revision before it.

        None: whatever it is at, an unreadable one too.

        The marker goes by itself an hour later.
        """
        ...

    def changes(self, after: int = 0) -> AsyncIterator[Change | CaughtUp]:
        """Every change behind revision `after`, without end; from 0: the last of every key, CaughtUp, then live.

        Re-opens by itself behind the last change given when the broker comes back.
        """
        ...

    async def keys(self) -> set[JobKey]:
        """Every key with a living record; deleted ones left out."""
        ...


class Lane(NamedTuple):
    """What one consumer hands out: the pointers of a pool that have one priority."""

    pool: str
    priority: Priority


class Delivery(Protocol):
    """One pointer handed out. It comes again after 30 s unless it is extended, postponed or done.

    After a crash of the broker it may come again whatever was said of it: who takes it goes by the record.
    """

    pointer: Pointer
    sequence: int

    async def extend(self) -> None:
        """Still at it: 30 s from now."""
        ...

    async def done(self) -> None:
        """Gone for good, acknowledged by the broker unless it forgot the delivery. Never before the record says so."""
        ...

    async def later(self, delay_s: float) -> None:
        """Hand it out again in `delay_s`, over a restart of the broker too (a crash right after: within 30 s)."""
        ...


WOKEN_S = 0.05  # a wake is said before what it tells of is stored; a store that takes longer is told of again


class Queue(Protocol):
    """JOBS: the pointers that wait, one consumer a pool and priority."""

    async def ensure(self, pools: Collection[str]) -> None:
        """Make the consumers of `pools` (the edge's right; the runner only binds)."""
        ...

    async def publish(self, pointer: Pointer, *, repair: bool = False) -> None:
        """Wake its lane and let it wait: whoever is woken takes it within WOKEN_S.

        Twice is once (Msg-Id = subject), but `repair` publishes anew.
        """
        ...

    async def take(self, pool: str, priority: Priority, wait_s: float = 0.0) -> Delivery | None:
        """The next one, at once, or one that comes within `wait_s`; None also when the consumer is not there yet."""
        ...

    async def withdraw(self, pointer: Pointer) -> None:
        """Remove that round's message, whoever holds it. Nothing happens when it is gone."""
        ...

    async def waiting(self, owner: str | None = None) -> set[Pointer]:
        """Every pointer in JOBS, those handed out included."""
        ...

    async def woken(self, pools: Collection[str], timeout_s: float) -> frozenset[Lane]:
        """Wait until one of `pools` is published to, at most `timeout_s`; its lanes that were, since the last call."""
        ...


class FeedItem(Struct, frozen=True):
    """One thing a follower sees. `id` is `<epoch>-<sequence>`; exactly one of the two is set.

    `change`: a state, sourced from STATE by the broker. `note`: progress or log, from the runner.
    """

    id: str
    key: JobKey
    change: Change | None = None
    note: Note | None = None


class Feed(Protocol):
    """FEED: what clients follow."""

    async def publish(self, key: JobKey, note: Note) -> None:
        """Say it; the same place and kind twice is once."""
        ...

    def follow(self, owner: str, job_id: str | None = None, after: str | None = None) -> AsyncIterator[FeedItem]:
        """The owner's items (of one job, if named) behind id `after`, without end; from the start for None, an id of
        another epoch, or one outside what is held. Re-opens by itself when the broker comes back; what was given is not
        given again. Of one job, once all that is held was given, a state of STATE that was not among it is given too
        (the last one after a resume at the end), so that a follower always learns of the end."""
        ...

    def held(self, owner: str, after: str | None = None) -> AsyncGenerator[FeedItem, None]:
        """The owner's items behind `after` as in `follow`, up to what is there at the opening; then it ends.

        Raises Unreachable when the broker goes away meanwhile.
        """
        ...

    async def last_progress(self, key: JobKey) -> ProgressNote | None:
        """The latest progress that was said."""
        ...

    async def notes(self, key: JobKey) -> list[Note]:
        """All notes held of the job, oldest first."""
        ...

    async def position(self) -> str:
        """The id behind which nothing is yet."""
        ...

    async def erase(self, owner: str, job_id: str | None = None) -> int:
        """Erase every message of the job, or of all the owner's, the sourced states too, so that no byte stays; how
        many there were."""
        ...


class Row(Struct, Generic[T], frozen=True):
    """A value and the revision it was read at."""

    revision: int
    value: T


class Table(Protocol[T]):
    """A small bucket of one type: HOSTS, OFFERS, KEYS, ASSETS, TOMBSTONES, POWER, AGREED, JOINED, HOOKS…"""

    async def get(self, key: str) -> Row[T] | None:
        """The row, or None when there is none (or its time ran out)."""
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

    async def rows(self, prefix: str = "") -> dict[str, Row[T]]:
        """Every row whose key starts with `prefix` (whole tokens: `owner.`)."""
        ...

    async def keys(self, pattern: str = ">") -> set[str]:
        """The keys that match, in one request: `*` is any one token, a last `>` all that follow.

        One that a runner deleted may still be among them.
        """
        ...


class Control(Protocol):
    """Core subjects `ctl.<host>`: a nudge that may be lost, because the runner re-reads STATE anyway."""

    async def nudge(self, host: str, key: JobKey) -> None:
        """Tell `host` to look at the job's record now."""
        ...

    def nudges(self, host: str) -> AsyncIterator[JobKey]:
        """What `host` is told to look at, without end."""
        ...


class Health(NamedTuple):
    """The broker as the edge sees it. `used` is the share of the store in use, 0 to 1; `synced` None: unknown.

    `halted`: its disk did not take a write, and it stores nothing until it is started anew.
    """

    used: float
    synced: bool | None
    version: str
    halted: bool = False


class Link(Protocol):
    """The connection itself."""

    async def health(self) -> Health:
        """Ask the broker; raises Unreachable."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the connection stands now."""
        ...

    @property
    def trouble(self) -> str:
        """What keeps a broker that is there from being used, and what to do; empty where it is well, or just away."""
        ...

    def unbroken_s(self) -> float:
        """Seconds since the connection came up, without a break, a suspend or a clock jump: the gone rule's clock."""
        ...

    def reconnects(self) -> AsyncIterator[None]:
        """One item each time the broker has come back (topology is ensured again before it)."""
        ...


class Bus(Struct, frozen=True, kw_only=True):
    """All of it, over one connection."""

    link: Link
    records: Records
    queue: Queue
    feed: Feed
    control: Control
    hosts: Table[Presence]
    offers: Table[Offer]
    keys: Table[ApiKey]
    assets: Table[Reference]
    tombstones: Table[Tombstone]
    power: Table[PowerRecord]
    agreed: Table[Agreed]
    hooks: Table[Hooks]
    delivered: Table[DeliveryRow]
    leases: Table[Lease]
    outbox: Outbox
    joined: Table[Joined]
    erasures: Table[Erasure]
    usage: Ledger
