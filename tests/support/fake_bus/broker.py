"""The broker itself: what all connections share, and what can go wrong with it."""

import time

from bus.interface import BrokerStatus, Bus
from bus.nats.topology import (
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
from schemas.asset import AssetReference
from schemas.auth import ApiKey
from schemas.enrollment import EnrolledHost
from schemas.host import AssetTombstone, HostCapabilities, HostHeartbeat
from schemas.installation import AuditEvent, InstallationConstant, Lease
from schemas.owner_deletion import OwnerDeletion
from schemas.power import PowerRecord
from schemas.webhook import DeliveryLogRow, WebhookConfig
from tests.support.fake_bus.connection import FakeConnection
from tests.support.fake_bus.queues import (
    FakeHostNudges,
    FakeJobFeed,
    FakeJobQueue,
    FakeJobsStream,
    FakeWebhookOutbox,
    FakeWebhookStreams,
)
from tests.support.fake_bus.stores import FakeJobStore, FakeTable, FakeUsageLog
from tests.support.fake_bus.stream import Clock, FakeStatePair, FakeStream

HISTORY_LIMIT = 64
FEED_SUBJECT_LIMIT = 2000


class FakeBus(Bus, frozen=True, kw_only=True):
    """One connection, which can be cut from the broker and healed."""

    health: FakeConnection
    job_store: FakeJobStore

    def cut(self) -> None:
        """A partition: everything asked raises Unreachable, streams fall silent."""
        self.health.cut()

    def heal(self) -> None:
        """The partition is over."""
        self.health.heal()


class FakeBroker:
    """Everything that expires (leases, postponements, presence, deduplication) goes by `clock`, in seconds."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._streams = FakeStatePair(
            FakeStream(clock, per_subject=HISTORY_LIMIT), FakeStream(clock, per_subject=FEED_SUBJECT_LIMIT), epoch="1"
        )
        self._jobs = FakeJobsStream(clock, FakeStream(clock))
        self._usage = FakeStream(clock)
        self._mail = FakeWebhookStreams(clock, self._streams.state, FakeStream(clock))
        self._buckets = {b.name: FakeStream(clock, per_subject=b.history, ttl_s=b.ttl_s) for b in BUCKETS}
        self._full = False

    def connect(self) -> FakeBus:
        """One more connection (the edge's, a runner's)."""
        link = FakeConnection(self._clock, self._status)
        self._jobs.links.append(link)
        return FakeBus(
            health=link,
            job_store=FakeJobStore(link, self._streams),
            job_queue=FakeJobQueue(link, self._jobs),
            feed=FakeJobFeed(link, self._streams),
            host_nudges=FakeHostNudges(link, self._jobs.links),
            heartbeats=FakeTable(link, self._buckets[HOSTS.name], HOSTS.name, HostHeartbeat),
            capabilities=FakeTable(link, self._buckets[OFFERS.name], OFFERS.name, HostCapabilities),
            api_keys=FakeTable(link, self._buckets[KEYS.name], KEYS.name, ApiKey),
            asset_references=FakeTable(link, self._buckets[ASSETS.name], ASSETS.name, AssetReference),
            tombstones=FakeTable(link, self._buckets[TOMBSTONES.name], TOMBSTONES.name, AssetTombstone),
            power_records=FakeTable(link, self._buckets[POWER.name], POWER.name, PowerRecord),
            webhook_configs=FakeTable(link, self._buckets[HOOKS.name], HOOKS.name, WebhookConfig),
            delivery_log=FakeTable(link, self._buckets[DELIVERED.name], DELIVERED.name, DeliveryLogRow),
            leases=FakeTable(link, self._buckets[LEASES.name], LEASES.name, Lease),
            webhook_outbox=FakeWebhookOutbox(link, self._mail),
            installation_constants=FakeTable(link, self._buckets[AGREED.name], AGREED.name, InstallationConstant),
            enrolled_hosts=FakeTable(link, self._buckets[JOINED.name], JOINED.name, EnrolledHost),
            owner_deletions=FakeTable(link, self._buckets[ERASURES.name], ERASURES.name, OwnerDeletion),
            audit_log=FakeTable(link, self._buckets[AUDIT.name], AUDIT.name, AuditEvent),
            usage_log=FakeUsageLog(link, self._usage),
        )

    def _status(self) -> BrokerStatus:
        return BrokerStatus(used_share=1.0 if self._full else 0.0, is_durable=True, version="memory")

    def _all_streams(self) -> tuple[FakeStream, ...]:
        return self._streams.state, self._streams.feed, self._jobs.log, self._mail.letters.log, self._usage

    def stop(self) -> None:
        """The broker is away for everybody; what it stored stays, deduplication forgets what was removed."""
        for link in self._jobs.links:
            link.cut()
        for log in self._all_streams():
            log.forget_removed_ids()

    def start(self) -> None:
        """And back."""
        for link in self._jobs.links:
            link.heal()

    def restart(self) -> None:
        """Away and back at once."""
        self.stop()
        self.start()

    def corrupt(self, subject: str, data: bytes) -> None:
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
        for log in (*self._all_streams(), *self._buckets.values()):
            log.full = full
