"""Open the bus over a real broker: as an edge, which creates streams and consumers, or as a runner, which uses them."""

import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import anyio
import msgspec
import structlog
from msgspec import Struct

from bus.health import UptimeClock
from bus.interface import Bus, BusError
from bus.nats.connection import NatsConnection, reply_status
from bus.nats.feed import NatsJobFeed, ReaderConsumerProxy
from bus.nats.health import MonitorClients, NatsBrokerHealth, open_monitor_client
from bus.nats.jetstream import JetStreamClient
from bus.nats.key_value import NatsJobStore, NatsTable
from bus.nats.snapshots import SnapshotClient
from bus.nats.streams import NatsAuditStream, NatsHostNudges, NatsJobQueue, NatsUsageLog, NatsWebhookOutbox
from bus.nats.topology import (
    ACTIONS,
    AGREED,
    ASSETS,
    DELETED_OWNERS,
    DELIVERED,
    ERASURES,
    GLOBAL_ACCOUNT,
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
    ensure_shared_consumers,
    ensure_streams,
    inbox_prefix,
)
from bus.settings import BrokerSettings
from schemas.asset import AssetReference
from schemas.credentials import ApiKey, EnrolledHost, HostToken
from schemas.endpoint_parts import StoredSecret
from schemas.host import AssetTombstone, HostCapabilities, HostHeartbeat
from schemas.installation import DeletedOwner, InstallationConstant, JobAction, Lease, Notice, OwnerDeletion, Pause
from schemas.power import PowerRecord
from schemas.webhook import DeliveryLogRow, OwnerWebhooks, WebhookConfig

SWEEP_INTERVAL_S = 600.0
DELETE_MARKER_TTL = timedelta(hours=1)

log = structlog.get_logger(__name__)


class _NatsAdapters(NamedTuple):
    """The adapters that have to act when the connection changes, and the client that all adapters share."""

    jetstream: JetStreamClient
    health: NatsBrokerHealth
    job_store: NatsJobStore
    job_queue: NatsJobQueue

    def build_bus(self, *, as_edge: bool) -> Bus:
        """Build the bus with all its ports."""
        jetstream = self.jetstream
        return Bus(
            health=self.health,
            job_store=self.job_store,
            job_queue=self.job_queue,
            feed=NatsJobFeed(jetstream),
            host_nudges=NatsHostNudges(jetstream.connection),
            heartbeats=NatsTable(jetstream, HOSTS, HostHeartbeat, as_edge=as_edge),
            capabilities=NatsTable(jetstream, OFFERS, HostCapabilities, as_edge=as_edge),
            api_keys=NatsTable(jetstream, KEYS, ApiKey, as_edge=as_edge),
            asset_references=NatsTable(jetstream, ASSETS, AssetReference, as_edge=as_edge),
            tombstones=NatsTable(jetstream, TOMBSTONES, AssetTombstone, as_edge=as_edge),
            power_records=NatsTable(jetstream, POWER, PowerRecord, as_edge=as_edge),
            pauses=NatsTable(jetstream, PAUSES, Pause, as_edge=as_edge),
            deleted_owners=NatsTable(jetstream, DELETED_OWNERS, DeletedOwner, as_edge=as_edge),
            webhook_configs=NatsTable(jetstream, HOOKS, WebhookConfig, as_edge=as_edge),
            owner_webhooks=NatsTable(jetstream, OWNER_HOOKS, OwnerWebhooks, as_edge=as_edge),
            delivery_log=NatsTable(jetstream, DELIVERED, DeliveryLogRow, as_edge=as_edge),
            secrets=NatsTable(jetstream, SECRETS, StoredSecret, as_edge=as_edge),
            leases=NatsTable(jetstream, LEASES, Lease, as_edge=as_edge),
            webhook_outbox=NatsWebhookOutbox(jetstream),
            installation_constants=NatsTable(jetstream, AGREED, InstallationConstant, as_edge=as_edge),
            enrolled_hosts=NatsTable(jetstream, JOINED, EnrolledHost, as_edge=as_edge),
            host_tokens=NatsTable(jetstream, HOST_TOKENS, HostToken, as_edge=as_edge),
            owner_deletions=NatsTable(jetstream, ERASURES, OwnerDeletion, as_edge=as_edge),
            job_actions=NatsTable(jetstream, ACTIONS, JobAction, as_edge=as_edge),
            audit_log=NatsAuditStream(jetstream),
            notices=NatsTable(jetstream, NOTICES, Notice, as_edge=as_edge),
            usage_log=NatsUsageLog(jetstream),
        )


@asynccontextmanager
async def open_edge(settings: BrokerSettings) -> AsyncIterator[Bus]:
    """Open the bus of an edge: create the streams on each connection, remove old delete markers, serve readers.

    Raises BrokerUnreachable when no broker answers, BrokerDenied when it refuses the user. Afterwards the bus
    reconnects without end.
    """
    async with _build_adapters(settings) as adapters:

        async def set_up() -> None:
            await _warn_without_accounts(adapters.jetstream.connection)
            await ensure_streams(adapters.jetstream, settings.replicas)
            await ensure_shared_consumers(adapters.jetstream)
            await adapters.job_queue.ensure_known_consumers()

        async def sweep() -> None:
            while True:
                await _sweep_job_store(adapters.job_store)
                await anyio.sleep(SWEEP_INTERVAL_S)

        adapters.jetstream.connection.setup_steps.append(set_up)
        async with _keep_connected(adapters, sweep, ReaderConsumerProxy(adapters.jetstream.connection).serve):
            yield adapters.build_bus(as_edge=True)


@asynccontextmanager
async def open_runner(settings: BrokerSettings) -> AsyncIterator[Bus]:
    """Open the bus of a runner, which needs exactly the rights of `bus.nats.topology.runner_user`.

    Raises as `open_edge` does.
    """
    async with _build_adapters(settings) as adapters, _keep_connected(adapters):
        yield adapters.build_bus(as_edge=False)


@asynccontextmanager
async def open_for_backup(settings: BrokerSettings) -> AsyncIterator[tuple[Bus, SnapshotClient]]:
    """Open the bus of an edge without creating anything, for backup and restore. Raises as `open_edge` does."""
    async with _build_adapters(settings) as adapters, _keep_connected(adapters):
        yield adapters.build_bus(as_edge=True), SnapshotClient(adapters.jetstream)


@asynccontextmanager
async def _build_adapters(settings: BrokerSettings) -> AsyncIterator[_NatsAdapters]:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_monitor_client(url)) for url in settings.monitor.split(",") if url
        ]
        jetstream = JetStreamClient(NatsConnection(settings, inbox_prefix(settings.user), secrets.token_hex(8)))
        health = NatsBrokerHealth(
            jetstream, MonitorClients(clients, anyio.current_time) if clients else None, UptimeClock()
        )
        yield _NatsAdapters(jetstream, health, NatsJobStore(jetstream), NatsJobQueue(jetstream))


@asynccontextmanager
async def _keep_connected(
    adapters: _NatsAdapters, *tasks: Callable[[], Coroutine[Any, Any, None]]
) -> AsyncIterator[None]:
    """Connect once, then keep the connection and run `tasks` beside it.

    An error of the body is raised as it is, not in the ExceptionGroup of the task group.
    """
    connection = adapters.jetstream.connection
    connection.on_connected.append(adapters.health.on_connected)
    connection.on_disconnected.append(adapters.health.on_disconnected)
    raised: Exception | None = None
    async with connection.subscribed("wake.*", adapters.job_queue.on_wake):
        await connection.connect()
        async with anyio.create_task_group() as group:
            group.start_soon(connection.reconnect_forever)
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
    """The broker's description of a connection's user."""

    data: _UserAccount = _UserAccount()


async def _warn_without_accounts(connection: NatsConnection) -> None:
    """Warn about a broker that was set up for an earlier release: without accounts, its hosts can write anything."""
    reply = await connection.request("$SYS.REQ.USER.INFO")
    if not reply_status(reply) and msgspec.json.decode(reply.data, type=_UserInfo).data.account == GLOBAL_ACCOUNT:
        log.warning(
            "broker_without_accounts_found",
            error="a host or a reader with a broker password can write anything: set up accounts as docs/hosts.md says",
        )


async def _sweep_job_store(job_store: NatsJobStore) -> None:
    try:
        await job_store.sweep_delete_markers(datetime.now(UTC), DELETE_MARKER_TTL)
        await job_store.trim_history()
    except BusError as error:
        log.warning("job_store_sweep_failed", error=str(error))
