"""Opening the bus over a real broker: as the edge, which owns the topology, or as a runner, which only binds."""

import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import anyio
import msgspec
import structlog
from msgspec import Struct

from bus.interface import Bus, BusError
from bus.nats.connection import NatsConnection, reply_status
from bus.nats.feed import NatsJobFeed
from bus.nats.health import MonitorClients, NatsBrokerHealth, open_monitor_client
from bus.nats.host_nudges import NatsHostNudges
from bus.nats.jetstream import JetStreamClient
from bus.nats.job_queue import NatsJobQueue
from bus.nats.job_store import NatsJobStore
from bus.nats.reader_proxy import ReaderConsumerProxy
from bus.nats.snapshots import SnapshotClient
from bus.nats.table import NatsTable
from bus.nats.topology import (
    AGREED,
    ASSETS,
    AUDIT,
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
    ensure_shared_consumers,
    ensure_streams,
)
from bus.nats.usage_log import NatsUsageLog
from bus.nats.users import GLOBAL_ACCOUNT, inbox_prefix
from bus.nats.webhook_outbox import NatsWebhookOutbox
from bus.settings import BrokerSettings
from bus.uptime_clock import UptimeClock
from schemas.asset import AssetReference
from schemas.auth import ApiKey
from schemas.enrollment import EnrolledHost
from schemas.host import AssetTombstone, HostCapabilities, HostHeartbeat
from schemas.installation import AuditEvent, InstallationConstant, Lease
from schemas.owner_deletion import OwnerDeletion
from schemas.power import PowerRecord
from schemas.webhook import DeliveryLogRow, WebhookConfig

SWEEP_INTERVAL_S = 600.0
DELETE_MARKER_TTL = timedelta(hours=1)

log = structlog.get_logger(__name__)


class _NatsAdapters(NamedTuple):
    """The parts of a bus that have something to do when the connection changes."""

    js: JetStreamClient
    health: NatsBrokerHealth
    job_store: NatsJobStore
    job_queue: NatsJobQueue

    def build_bus(self, *, as_edge: bool) -> Bus:
        """All of it."""
        js = self.js
        return Bus(
            health=self.health,
            job_store=self.job_store,
            job_queue=self.job_queue,
            feed=NatsJobFeed(js),
            host_nudges=NatsHostNudges(js.connection),
            heartbeats=NatsTable(js, HOSTS, HostHeartbeat, as_edge=as_edge),
            capabilities=NatsTable(js, OFFERS, HostCapabilities, as_edge=as_edge),
            api_keys=NatsTable(js, KEYS, ApiKey, as_edge=as_edge),
            asset_references=NatsTable(js, ASSETS, AssetReference, as_edge=as_edge),
            tombstones=NatsTable(js, TOMBSTONES, AssetTombstone, as_edge=as_edge),
            power_records=NatsTable(js, POWER, PowerRecord, as_edge=as_edge),
            webhook_configs=NatsTable(js, HOOKS, WebhookConfig, as_edge=as_edge),
            delivery_log=NatsTable(js, DELIVERED, DeliveryLogRow, as_edge=as_edge),
            leases=NatsTable(js, LEASES, Lease, as_edge=as_edge),
            webhook_outbox=NatsWebhookOutbox(js),
            installation_constants=NatsTable(js, AGREED, InstallationConstant, as_edge=as_edge),
            enrolled_hosts=NatsTable(js, JOINED, EnrolledHost, as_edge=as_edge),
            owner_deletions=NatsTable(js, ERASURES, OwnerDeletion, as_edge=as_edge),
            audit_log=NatsTable(js, AUDIT, AuditEvent, as_edge=as_edge),
            usage_log=NatsUsageLog(js),
        )


@asynccontextmanager
async def open_edge(settings: BrokerSettings) -> AsyncIterator[Bus]:
    """The edge's bus: makes the topology on every new connection, removes old delete markers, serves readers.

    Raises Unreachable when no broker answers, Denied when it refuses the user. Afterwards it dials for ever.
    """
    async with _build_adapters(settings) as parts:

        async def set_up() -> None:
            await _warn_without_accounts(parts.js.connection)
            await ensure_streams(parts.js, settings.replicas)
            await ensure_shared_consumers(parts.js)
            await parts.job_queue.ensure_known_consumers()

        async def sweep() -> None:
            while True:
                await _sweep_job_store(parts.job_store)
                await anyio.sleep(SWEEP_INTERVAL_S)

        parts.js.connection.setup_steps.append(set_up)
        async with _keep_connected(parts, sweep, ReaderConsumerProxy(parts.js.connection).serve):
            yield parts.build_bus(as_edge=True)


@asynccontextmanager
async def open_runner(settings: BrokerSettings) -> AsyncIterator[Bus]:
    """A runner's bus: needs exactly the rights of `bus.nats.users.runner_user`. Raises as `open_edge` does."""
    async with _build_adapters(settings) as parts, _keep_connected(parts):
        yield parts.build_bus(as_edge=False)


@asynccontextmanager
async def open_for_backup(settings: BrokerSettings) -> AsyncIterator[tuple[Bus, SnapshotClient]]:
    """The edge's bus as it finds the broker: nothing is made. For backup and restore; raises as `open_edge` does."""
    async with _build_adapters(settings) as parts, _keep_connected(parts):
        yield parts.build_bus(as_edge=True), SnapshotClient(parts.js)


@asynccontextmanager
async def _build_adapters(settings: BrokerSettings) -> AsyncIterator[_NatsAdapters]:
    async with AsyncExitStack() as opened:
        clients = [
            await opened.enter_async_context(open_monitor_client(url)) for url in settings.monitor.split(",") if url
        ]
        js = JetStreamClient(NatsConnection(settings, inbox_prefix(settings.user), secrets.token_hex(8)))
        link = NatsBrokerHealth(js, MonitorClients(clients, anyio.current_time) if clients else None, UptimeClock())
        yield _NatsAdapters(js, link, NatsJobStore(js), NatsJobQueue(js))


@asynccontextmanager
async def _keep_connected(parts: _NatsAdapters, *tasks: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """The connection, dialled once and then kept, with `tasks` beside it.

    An error of the body leaves as itself, not in the group's ExceptionGroup.
    """
    wire = parts.js.connection
    wire.on_connected.append(parts.health.on_connected)
    wire.on_disconnected.append(parts.health.on_disconnected)
    raised: Exception | None = None
    async with wire.subscribed("wake.*", parts.job_queue.on_wake):
        await wire.connect()
        async with anyio.create_task_group() as group:
            group.start_soon(wire.reconnect_forever)
            for task in tasks:
                group.start_soon(task)
            try:
                yield
            except Exception as error:
                raised = error
            group.cancel_scope.cancel()
    if raised is not None:
        raise raised


class _UserAccount(Struct, frozen=True):
    account: str = ""


class _UserInfo(Struct, frozen=True):
    """What the broker says of a connection's user."""

    data: _UserAccount = _UserAccount()


async def _warn_without_accounts(wire: NatsConnection) -> None:
    """Say that a broker set up for an earlier release, without accounts, protects nothing from its hosts."""
    said = await wire.request("$SYS.REQ.USER.INFO")
    if not reply_status(said) and msgspec.json.decode(said.data, type=_UserInfo).data.account == GLOBAL_ACCOUNT:
        log.warning(
            "the broker has no accounts: whoever has the broker password of a host or a reader can write anything; "
            "move it as docs/hosts.md says"
        )


async def _sweep_job_store(records: NatsJobStore) -> None:
    try:
        await records.sweep_delete_markers(datetime.now(UTC), DELETE_MARKER_TTL)
        await records.trim_history()
    except BusError as error:
        log.warning("old delete markers and revisions stay for now", error=str(error))
