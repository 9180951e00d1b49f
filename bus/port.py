"""What the edge and the runner may ask of the broker, in our words. `bus.connection` makes it true, `bus.memory` too.

The ports with ideas of their own stand beside it, and are named here for those who use them: errors (`bus.refusals`),
STATE (`bus.recorded`), JOBS (`bus.waiting`), DELIVERIES (`bus.outgoing`), USAGE (`bus.ledger`).
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Generic, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from bus.ledger import Ledger
from bus.outgoing import Outbox
from bus.recorded import CaughtUp, Change, Entry, Records
from bus.refusals import BusError, Conflict, Denied, StoreFull, TooLarge, Unreachable, Unreadable
from bus.waiting import WOKEN_S, Delivery, Lane, Queue
from schemas.access import Agreed, ApiKey
from schemas.asset import Reference
from schemas.audit import AuditEvent
from schemas.erasure import Erasure
from schemas.feed import Note, ProgressNote
from schemas.host import Offer, Presence, Tombstone
from schemas.job import JobKey
from schemas.joining import Joined
from schemas.lease import Lease
from schemas.power import PowerRecord
from schemas.webhook import DeliveryRow, Hooks

__all__ = [
    "WOKEN_S",
    "Bus",
    "BusError",
    "CaughtUp",
    "Change",
    "Conflict",
    "Control",
    "Delivery",
    "Denied",
    "Entry",
    "Feed",
    "FeedItem",
    "Health",
    "Lane",
    "Link",
    "Queue",
    "Records",
    "Row",
    "StoreFull",
    "Table",
    "TooLarge",
    "Unreachable",
    "Unreadable",
]

T = TypeVar("T")


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

    async def rows(self, prefix: str = "") -> dict[str, Row[T]]:
        """Every row whose key starts with `prefix` (whole tokens: `owner.`). Leaves out, and logs, unreadable rows."""
        ...

    async def keys(self, pattern: str = ">") -> set[str]:
        """The keys that match, in one request: `*` is any one token, a last `>` all that follow.

        One that a runner deleted may still be among them, and so are unreadable rows.
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

    `halted`: its disk did not take a write, and it stores nothing until it is started anew. `ailing`: what befell some
    servers of a cluster while the others do the work, and what to do, a line each.
    """

    used: float
    synced: bool | None
    version: str
    halted: bool = False
    ailing: tuple[str, ...] = ()


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
    audit: Table[AuditEvent]
    usage: Ledger
