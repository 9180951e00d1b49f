"""The services of one edge, wired to each other (the composition root); `edge.process` gives them a process."""

import os
import random
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import httpx
from anyio.abc import TaskGroup

from bus.interface import Bus
from bus.server.host_accounts import HostAccounts
from edge.assets.service import AssetService
from edge.assets.uploads import UploadService
from edge.core.client_throttle import TrustedProxies
from edge.core.clock import utc_now
from edge.core.installation import get_or_create_secret
from edge.core.leases import Leases
from edge.core.signed_urls import UrlSigner
from edge.deletion import DeletionServices, OwnerDeletionService
from edge.facades.heygem.result_export import ResultExporter
from edge.hosts.endpoints import EndpointRegistry, load_endpoints
from edge.hosts.enrollment import AdvertisedAddresses, HostEnrollment
from edge.hosts.registry import HostRegistry
from edge.http.dependencies import EdgeServices
from edge.index.index import JobIndex
from edge.jobs.eta import EtaEstimator
from edge.jobs.event_stream import EventStreams
from edge.jobs.input_waiter import InputWaiter
from edge.jobs.publish_window import PublishWindow
from edge.jobs.readiness import BrokerReadiness
from edge.jobs.reconciler import IntervalTimer, ReconcileContext, ReconcilePolicy, Reconciler
from edge.jobs.service import JobService
from edge.jobs.submission import Admission
from edge.jobs.url_inputs import FetchBackoff, UrlInputFetcher
from edge.jobs.view import JobViewBuilder
from edge.jobs.wait_reason import WaitReasons
from edge.outbound.url_policy import AllowList
from edge.owners.api_keys import ApiKeyStore
from edge.owners.audit_log import AuditLog
from edge.owners.quotas import OwnerQuotas, StreamLimiter
from edge.owners.tokens import TokenIssuer
from edge.power.controller import PowerController
from edge.power.driver_calls import PowerDependencies
from edge.power.drivers import factory as drivers
from edge.power.observation import FleetObserver
from edge.power.relay_hub import RelayHub
from edge.settings import EdgeSettings
from edge.store.port import AssetStore
from edge.store.upload_state import UploadStateStore
from edge.usage.recorder import UsageRecorder
from edge.usage.report import UsageReports
from edge.webhooks import dispatcher as webhooks

WEBHOOK_DEPENDENCIES = webhooks.WebhookDependencies(
    now=utc_now, monotonic=time.monotonic, entropy=os.urandom, random=random.random
)


class HttpClients(NamedTuple):
    """`own`: for what the operator names, power switches. `guarded`: for what clients name, under the guard."""

    operator: httpx.AsyncClient
    untrusted: httpx.AsyncClient


async def assemble_services(
    settings: EdgeSettings,
    bus: Bus,
    store: AssetStore,
    clients: HttpClients,
    welcome: AdvertisedAddresses | None = None,
) -> tuple[EdgeServices, Reconciler]:
    """The services of one edge, wired. Nothing runs yet. `welcome`: what hosts that join are told, if they may."""
    catalog = await _catalog(settings, bus)
    index = JobIndex(settings.data / "index.sqlite", bus.job_store)
    quotas = _make_quotas(settings, bus, index)
    window = PublishWindow(bus.job_queue, bus.job_store, index, catalog.offered_slots, utc_now, quotas.running_limit)
    assets = AssetService(bus, store, index, utc_now, settings.max_asset_bytes, quotas, settings.trash)
    leases = Leases(bus.leases, _fresh_id(), utc_now)
    fetches = UrlInputFetcher(
        bus, assets, leases, clients.untrusted, settings.outbound, utc_now, FetchBackoff(random.random)
    )
    supply = InputWaiter(bus.job_store, assets, fetches, index, window, utc_now)
    hosts = HostRegistry(bus, catalog, utc_now, index.queue_ranks.count_pending)
    secret = await get_or_create_secret(bus.installation_constants, os.urandom, utc_now)
    signer = UrlSigner(secret, utc_now, settings.urls)
    keys = ApiKeyStore(bus.api_keys, utc_now, os.urandom, time.monotonic)
    gate = BrokerReadiness(bus.health, utc_now, allow_unsynced=settings.allow_unsynced)
    admission = Admission(gate, catalog, assets, AllowList(settings.outbound.allow), utc_now, os.urandom, quotas)
    relays = RelayHub(_fresh_id)
    power = _make_power_controller(
        settings, FleetObserver(bus, index, hosts, catalog, utc_now), bus, clients.operator, relays
    )
    wait_reasons = WaitReasons(hosts, catalog, power, utc_now)
    eta = EtaEstimator(index, wait_reasons, catalog, utc_now)
    viewer = JobViewBuilder(bus.feed, index, window, wait_reasons, eta, signer.sign_url)
    intake = JobService(bus, gate, admission, assets, index, window, utc_now, os.urandom)
    uploads = _make_uploads(settings, assets, quotas)
    reach = DeletionServices(
        bus=bus, job_service=intake, assets=assets, uploads=uploads, keys=keys, index=index, quotas=quotas
    )
    parts = EdgeServices(
        settings=settings,
        bus=bus,
        store=store,
        assets=assets,
        uploads=uploads,
        endpoints=catalog,
        index=index,
        publish_window=window,
        readiness=gate,
        input_waiter=supply,
        url_fetcher=fetches,
        webhooks=webhooks.build_webhooks(
            bus, index, viewer, clients.untrusted, settings.webhooks, WEBHOOK_DEPENDENCIES
        ),
        jobs=intake,
        event_streams=EventStreams(bus, viewer, hosts),
        job_views=viewer,
        hosts=hosts,
        wait_reasons=wait_reasons,
        api_keys=keys,
        tokens=TokenIssuer(secret, keys.get, utc_now),
        url_signer=signer,
        result_export=ResultExporter(_heygem_dir(settings), settings.data / "placing", bus.job_store, store, index),
        enrollment=HostEnrollment(bus, keys, _broker_user_admin(settings), welcome, utc_now),
        owner_deletions=OwnerDeletionService(reach, leases, utc_now, settings.trash),
        quotas=quotas,
        power=power,
        usage_reports=UsageReports(bus.usage_log, power.records, settings.prices, utc_now),
        usage_recorder=UsageRecorder(bus.usage_log, index, power.records, settings.prices),
        relay_hub=relays,
        audit=AuditLog(bus.audit_log, utc_now, os.urandom),
        trusted_proxies=TrustedProxies(settings.server.proxies),
        form_dir=settings.data / "forms",
        stream_limits=StreamLimiter(
            "event streams", settings.server.streams_per_key, settings.server.streams_per_owner
        ),
        socket_limits=StreamLimiter(
            "gateway sockets", settings.server.sockets_per_key, settings.server.sockets_per_owner
        ),
    )
    await _connect(parts)
    return parts, Reconciler(_make_reconcile_context(settings, parts), period_s=settings.reconcile_every_s)


async def _catalog(settings: EdgeSettings, bus: Bus) -> EndpointRegistry:
    """What the broker's bucket offers, and the endpoints that the settings name."""
    catalog = EndpointRegistry(
        bus, tuple(endpoint for folder in settings.endpoints for endpoint in load_endpoints(folder))
    )
    await catalog.refresh()
    return catalog


async def _connect(parts: EdgeServices) -> None:
    """Make the folder of forms, read the books, and connect the services that ask or tell one another."""
    parts.form_dir.mkdir(mode=0o700, exist_ok=True)
    await parts.usage_recorder.load_position()
    parts.power.subscribe(parts.hosts.notify)


def _make_quotas(settings: EdgeSettings, bus: Bus, index: JobIndex) -> OwnerQuotas:
    own = {owner: one.quotas for owner, one in settings.owners.items()}
    return OwnerQuotas(settings.quotas, own, index, bus.asset_references, time.monotonic)


def _make_uploads(settings: EdgeSettings, assets: AssetService, quotas: OwnerQuotas) -> UploadService:
    partials = UploadStateStore(settings.data / "uploads")
    limit = settings.max_asset_bytes
    uploads = UploadService(partials, assets, utc_now, os.urandom, settings.uploads, limit, quotas)
    quotas.set_pending_bytes_source(uploads.pending_bytes)
    return uploads


def _heygem_dir(settings: EdgeSettings) -> Path | None:
    return settings.heygem.data_root if settings.heygem.enabled else None


def _broker_user_admin(settings: EdgeSettings) -> HostAccounts | None:
    enrollment = settings.enrollment
    if not (enrollment.nats_conf_dir and enrollment.reload_command):
        return None
    return HostAccounts(settings.broker, enrollment.nats_conf_dir, enrollment.reload_command)


def _make_power_controller(
    settings: EdgeSettings, sight: FleetObserver, bus: Bus, client: httpx.AsyncClient, relays: RelayHub
) -> PowerController:
    """The controller of the declared hosts. Raises DriverMissing."""
    means = drivers.DriverDependencies(client=client, environ=os.environ, now=utc_now, new_id=_fresh_id, relay=relays)
    chance = PowerDependencies(now=utc_now, monotonic=time.monotonic, new_id=_fresh_id, random=random.random)
    return PowerController(
        bus.power_records, sight, settings.hosts, drivers.build_drivers(settings.hosts, means), chance
    )


def _fresh_id() -> str:
    return os.urandom(8).hex()


def _make_reconcile_context(settings: EdgeSettings, parts: EdgeServices) -> ReconcileContext:
    rules = ReconcilePolicy(
        low_max_wait=timedelta(seconds=settings.low_max_wait_s), retention=timedelta(days=settings.retention_days)
    )
    return ReconcileContext(
        bus=parts.bus,
        index=parts.index,
        publish_window=parts.publish_window,
        hosts=parts.hosts,
        assets=parts.assets,
        input_waiter=parts.input_waiter,
        now=utc_now,
        index_check_timer=IntervalTimer(rules.check_interval, utc_now()),
        orphan_timer=IntervalTimer(rules.check_interval, utc_now()),
        power_probe=parts.power,
        policy=rules,
    )


def start_tasks(tasks: TaskGroup, parts: EdgeServices, reconciler: Reconciler) -> None:
    """Start everything that runs beside the requests."""
    runs = (
        parts.index.run,
        parts.uploads.run,
        parts.publish_window.run,
        parts.hosts.run,
        parts.event_streams.run,
        parts.url_fetcher.run,
        parts.input_waiter.run,
        parts.webhooks.dispatcher.run,
        parts.result_export.run,
        parts.power.run,
        parts.usage_recorder.run,
        parts.api_keys.run,
        parts.owner_deletions.run,
        reconciler.run,
    )
    for run in runs:
        tasks.start_soon(run)
