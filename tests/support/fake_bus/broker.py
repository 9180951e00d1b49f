"""The fake broker: the streams that all connections share, and faults to inject."""

import time

from bus.health import BrokerBacklog, BrokerStatus
from bus.interface import Bus
from bus.nats.topology import (
    ACTIONS,
    AGREED,
    ASSETS,
    AUDIT,
    BUCKETS,
    DELETED_OWNERS,
    DELIVERED,
    ERASURES,
    GUEST_BUCKETS,
    HOOKS,
    HOST_TOKENS,
    HOSTS,
    JOINED,
    KEYS,
    LEASES,
    NOTICES,
    OFFERS,
    OWNER_HOOKS,
    PAUSES,
    POWER,
    SECRETS,
    TOMBSTONES,
)
from schemas.asset import AssetReference
from schemas.credentials import ApiKey, EnrolledHost, HostToken
from schemas.endpoint_parts import StoredSecret
from schemas.host import AssetTombstone, HostCapabilities, HostHeartbeat
from schemas.installation import DeletedOwner, InstallationConstant, JobAction, Lease, Notice, OwnerDeletion, Pause
from schemas.power import PowerRecord
from schemas.webhook import DeliveryLogRow, OwnerWebhooks, WebhookConfig
from tests.support.fake_bus.connection import FakeConnection
from tests.support.fake_bus.queues import (
    FakeHostNudges,
    FakeJobFeed,
    FakeJobQueue,
    FakeJobsStream,
    FakeWebhookOutbox,
    FakeWebhookStreams,
)
from tests.support.fake_bus.stores import FakeAuditStream, FakeJobStore, FakeTable, FakeUsageLog
from tests.support.fake_bus.stream import Clock, FakeStatePair, FakeStream

HISTORY_LIMIT = 64
FEED_SUBJECT_LIMIT = 2000


class FakeBus(Bus, frozen=True, kw_only=True):
    """One connection, which can be cut from the broker and healed."""

    health: FakeConnection
    job_store: FakeJobStore

    def cut(self) -> None:
        """Cut this connection: requests raise BrokerUnreachable, streams fall silent."""
        self.health.cut()

    def heal(self) -> None:
        """End the cut."""
        self.health.heal()


class FakeBroker:
    """Everything that expires (leases, delays, heartbeats, deduplication) uses `clock`, in seconds."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._streams = FakeStatePair(
            FakeStream(clock, per_subject=HISTORY_LIMIT), FakeStream(clock, per_subject=FEED_SUBJECT_LIMIT), epoch="1"
        )
        self._jobs = FakeJobsStream(clock, FakeStream(clock))
        self._usage = FakeStream(clock)
        self._webhooks = FakeWebhookStreams(clock, self._streams.state, FakeStream(clock))
        buckets = (*BUCKETS, *GUEST_BUCKETS)
        self._buckets = {b.name: FakeStream(clock, per_subject=b.history, ttl_s=b.ttl_s) for b in buckets}
        self._full = False

    def connect(self) -> FakeBus:
        """Return one more connection (the edge's, a runner's)."""
        connection = FakeConnection(self._clock, self._status, self._backlog)
        self._jobs.connections.append(connection)
        return FakeBus(
            health=connection,
            job_store=FakeJobStore(connection, self._streams),
            job_queue=FakeJobQueue(connection, self._jobs),
            feed=FakeJobFeed(connection, self._streams),
            host_nudges=FakeHostNudges(connection, self._jobs.connections),
            heartbeats=FakeTable(connection, self._buckets[HOSTS.name], HOSTS.name, HostHeartbeat),
            capabilities=FakeTable(connection, self._buckets[OFFERS.name], OFFERS.name, HostCapabilities),
            api_keys=FakeTable(connection, self._buckets[KEYS.name], KEYS.name, ApiKey),
            asset_references=FakeTable(connection, self._buckets[ASSETS.name], ASSETS.name, AssetReference),
            tombstones=FakeTable(connection, self._buckets[TOMBSTONES.name], TOMBSTONES.name, AssetTombstone),
            power_records=FakeTable(connection, self._buckets[POWER.name], POWER.name, PowerRecord),
            pauses=FakeTable(connection, self._buckets[PAUSES.name], PAUSES.name, Pause),
            deleted_owners=FakeTable(connection, self._buckets[DELETED_OWNERS.name], DELETED_OWNERS.name, DeletedOwner),
            webhook_configs=FakeTable(connection, self._buckets[HOOKS.name], HOOKS.name, WebhookConfig),
            owner_webhooks=FakeTable(connection, self._buckets[OWNER_HOOKS.name], OWNER_HOOKS.name, OwnerWebhooks),
            delivery_log=FakeTable(connection, self._buckets[DELIVERED.name], DELIVERED.name, DeliveryLogRow),
            secrets=FakeTable(connection, self._buckets[SECRETS.name], SECRETS.name, StoredSecret),
            leases=FakeTable(connection, self._buckets[LEASES.name], LEASES.name, Lease),
            webhook_outbox=FakeWebhookOutbox(connection, self._webhooks),
            installation_constants=FakeTable(connection, self._buckets[AGREED.name], AGREED.name, InstallationConstant),
            enrolled_hosts=FakeTable(connection, self._buckets[JOINED.name], JOINED.name, EnrolledHost),
            host_tokens=FakeTable(connection, self._buckets[HOST_TOKENS.name], HOST_TOKENS.name, HostToken),
            owner_deletions=FakeTable(connection, self._buckets[ERASURES.name], ERASURES.name, OwnerDeletion),
            job_actions=FakeTable(connection, self._buckets[ACTIONS.name], ACTIONS.name, JobAction),
            audit_log=FakeAuditStream(connection, self._buckets[AUDIT.name]),
            notices=FakeTable(connection, self._buckets[NOTICES.name], NOTICES.name, Notice),
            usage_log=FakeUsageLog(connection, self._usage),
        )

    def _status(self) -> BrokerStatus:
        return BrokerStatus(used_share=1.0 if self._full else 0.0, is_durable=True, version="memory")

    def _backlog(self) -> BrokerBacklog:
        deliveries = self._webhooks.deliveries.log.messages_after(0, "delivery.")
        oldest_s = self._clock() - deliveries[0].at if deliveries else 0.0
        pointers = len(self._jobs.log.messages_after(0, "job."))
        return BrokerBacklog(pointers, self._webhooks.states.count_pending(), len(deliveries), oldest_s)

    def _all_streams(self) -> tuple[FakeStream, ...]:
        return self._streams.state, self._streams.feed, self._jobs.log, self._webhooks.deliveries.log, self._usage

    def stop(self) -> None:
        """Cut all connections; streams keep their messages, deduplication forgets removed ones."""
        for connection in self._jobs.connections:
            connection.cut()
        for log in self._all_streams():
            log.forget_removed_ids()

    def start(self) -> None:
        """Heal all connections."""
        for connection in self._jobs.connections:
            connection.heal()

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def corrupt(self, subject: str, data: bytes) -> None:
        """Write any bytes to the subject of a record, a row or a stream, as another program could."""
        _, _, bucket = subject.rpartition("$KV.")
        if subject.startswith("$KV.STATE."):
            self._streams.write(subject, data)
        elif subject.startswith("$KV."):
            self._buckets[bucket.partition(".")[0]].append(subject, data)
        else:
            logs = {"job": self._jobs.log, "usage": self._usage}
            logs.get(subject.partition(".")[0], self._streams.feed).append(subject, data)

    def fill(self, full: bool = True) -> None:
        """Make the store full: every write raises BrokerFull until `fill(False)`."""
        self._full = full
        for log in (*self._all_streams(), *self._buckets.values()):
            log.full = full
