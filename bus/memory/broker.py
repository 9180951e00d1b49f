"""The broker itself: what all connections share, and what can go wrong with it."""

import time

from bus.buckets import (
    AGREED,
    ASSETS,
    AUDIT,
    BUCKETS,
    DELIVERED,
    ERASURES,
    HOOKS,
    HOSTS,
    JOINED,
    KEYS,
    LEASES,
    OFFERS,
    POWER,
    TOMBSTONES,
)
from bus.memory.control import MemoryControl
from bus.memory.feed import MemoryFeed
from bus.memory.link import MemoryLink
from bus.memory.log import Clock, Log
from bus.memory.outbox import Mail, MemoryOutbox
from bus.memory.queue import Jobs, MemoryQueue
from bus.memory.records import MemoryRecords
from bus.memory.streams import Streams
from bus.memory.table import MemoryTable
from bus.memory.usage import MemoryLedger
from bus.port import Bus, Health
from schemas.access import Agreed, ApiKey
from schemas.asset import Reference
from schemas.audit import AuditEvent
from schemas.erasure import Erasure
from schemas.host import Offer, Presence, Tombstone
from schemas.joining import Joined
from schemas.lease import Lease
from schemas.power import PowerRecord
from schemas.webhook import DeliveryRow, Hooks

HISTORY = 64
FEED_PER_SUBJECT = 2000


class MemoryBus(Bus, frozen=True, kw_only=True):
    """One connection, which can be cut from the broker and healed."""

    link: MemoryLink
    records: MemoryRecords

    def cut(self) -> None:
        """A partition: everything asked raises Unreachable, streams fall silent."""
        self.link.cut()

    def heal(self) -> None:
        """The partition is over."""
        self.link.heal()


class MemoryBroker:
    """Everything that expires (leases, postponements, presence, deduplication) goes by `clock`, in seconds."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._streams = Streams(Log(clock, per_subject=HISTORY), Log(clock, per_subject=FEED_PER_SUBJECT), epoch="1")
        self._jobs = Jobs(clock, Log(clock))
        self._usage = Log(clock)
        self._mail = Mail(clock, self._streams.state, Log(clock))
        self._buckets = {b.name: Log(clock, per_subject=b.history, ttl_s=b.ttl_s) for b in BUCKETS}
        self._full = False

    def connect(self) -> MemoryBus:
        """One more connection (the edge's, a runner's)."""
        link = MemoryLink(self._clock, self._health)
        self._jobs.links.append(link)
        return MemoryBus(
            link=link,
            records=MemoryRecords(link, self._streams),
            queue=MemoryQueue(link, self._jobs),
            feed=MemoryFeed(link, self._streams),
            control=MemoryControl(link, self._jobs.links),
            hosts=MemoryTable(link, self._buckets[HOSTS.name], HOSTS.name, Presence),
            offers=MemoryTable(link, self._buckets[OFFERS.name], OFFERS.name, Offer),
            keys=MemoryTable(link, self._buckets[KEYS.name], KEYS.name, ApiKey),
            assets=MemoryTable(link, self._buckets[ASSETS.name], ASSETS.name, Reference),
            tombstones=MemoryTable(link, self._buckets[TOMBSTONES.name], TOMBSTONES.name, Tombstone),
            power=MemoryTable(link, self._buckets[POWER.name], POWER.name, PowerRecord),
            hooks=MemoryTable(link, self._buckets[HOOKS.name], HOOKS.name, Hooks),
            delivered=MemoryTable(link, self._buckets[DELIVERED.name], DELIVERED.name, DeliveryRow),
            leases=MemoryTable(link, self._buckets[LEASES.name], LEASES.name, Lease),
            outbox=MemoryOutbox(link, self._mail),
            agreed=MemoryTable(link, self._buckets[AGREED.name], AGREED.name, Agreed),
            joined=MemoryTable(link, self._buckets[JOINED.name], JOINED.name, Joined),
            erasures=MemoryTable(link, self._buckets[ERASURES.name], ERASURES.name, Erasure),
            audit=MemoryTable(link, self._buckets[AUDIT.name], AUDIT.name, AuditEvent),
            usage=MemoryLedger(link, self._usage),
        )

    def _health(self) -> Health:
        return Health(used=1.0 if self._full else 0.0, synced=True, version="memory")

    def _streamed(self) -> tuple[Log, ...]:
        return self._streams.state, self._streams.feed, self._jobs.log, self._mail.letters.log, self._usage

    def stop(self) -> None:
        """The broker is away for everybody; what it stored stays, deduplication forgets what was removed."""
        for link in self._jobs.links:
            link.cut()
        for log in self._streamed():
            log.forget_removed_ids()

    def start(self) -> None:
        """And back."""
        for link in self._jobs.links:
            link.heal()

    def restart(self) -> None:
        """Away and back at once."""
        self.stop()
        self.start()

    def vandalise(self, subject: str, data: bytes) -> None:
        """Write any bytes where another program could: to the subject of a record or a row, or of a stream."""
        _, _, bucket = subject.rpartition("$KV.")
        if subject.startswith("$KV.STATE."):
            self._streams.write(subject, data)
        elif subject.startswith("$KV."):
            self._buckets[bucket.partition(".")[0]].append(subject, data)
        else:
            logs = {"job": self._jobs.log, "usage": self._usage}
            logs.get(subject.partition(".")[0], self._streams.feed).append(subject, data)

    def fill(self, full: bool = True) -> None:
        """Let the store be full: every write raises StoreFull until `fill(False)`."""
        self._full = full
        for log in (*self._streamed(), *self._buckets.values()):
            log.full = full
