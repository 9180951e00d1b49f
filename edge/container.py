"""The composition root: builds every service of one edge and connects them. `edge.process` runs the result.

Services receive what they need as constructor arguments, so the order of the calls is the order of the layers.
"""

import os
import platform
import random
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import httpx2
from anyio import to_thread
from anyio.abc import TaskGroup
from msgspec import Struct

from bus.interface import Bus
from bus.server.host_accounts import HostAccounts
from bus.spans import NO_SPANS, SpanRecorder
from edge.assets.service import AssetService
from edge.assets.uploads import UploadService
from edge.core.clock import utc_now
from edge.core.installation import get_or_create_secret
from edge.core.leases import Leases
from edge.core.metrics import EdgeMetrics
from edge.core.signed_urls import UrlSigner
from edge.core.trusted_proxies import TrustedProxies
from edge.deletion import DeletionServices, OwnerDeletionService
from edge.facades.heygem.facade import HeygemFacade, make_heygem_facade
from edge.hosts.endpoints import EndpointRegistry, load_endpoints
from edge.hosts.enrollment import AdvertisedAddresses, HostEnrollment
from edge.hosts.host_tokens import HostTokens, SilentHostRemover
from edge.hosts.registry import HostRegistry
from edge.hosts.samples import HostSamples
from edge.http.dependencies import EdgeServices
from edge.index.index import JobIndex
from edge.jobs.eta import EtaEstimator, RunHistory
from edge.jobs.event_stream import EventStreams
from edge.jobs.input_waiter import InputWaiter
from edge.jobs.job_actions import JobActionService
from edge.jobs.job_metrics import JobMetrics
from edge.jobs.publish_window import PublishWindow
from edge.jobs.readiness import BrokerReadiness
from edge.jobs.reconciler import IntervalTimer, ReconcileContext, ReconcilePolicy, Reconciler
from edge.jobs.service import JobService
from edge.jobs.submission import Admission
from edge.jobs.url_inputs import FetchBackoff, UrlInputFetcher
from edge.jobs.view import JobViewBuilder
from edge.jobs.wait_reason import WaitReasons
from edge.notify.facts import FactReader, FactSources
from edge.notify.service import NotificationService, NotificationServices
from edge.notify.targets import build_senders
from edge.outbound.url_policy import AllowList
from edge.owners.api_keys import ApiKeyStore
from edge.owners.audit_log import AuditLog
from edge.owners.directory import OwnerDirectory
from edge.owners.quotas import OwnerQuotas, RequestLimiter, StreamLimiter
from edge.owners.secret_keys import read_or_make_keys
from edge.owners.secrets import SecretStore
from edge.owners.sessions import SessionIssuer
from edge.owners.tokens import TokenIssuer
from edge.power.controller import PowerController
from edge.power.driver_calls import PowerDependencies
from edge.power.drivers import factory as drivers
from edge.power.observation import FleetObserver
from edge.power.power_metrics import PowerMetrics
from edge.power.relay_hub import RelayHub
from edge.settings import EdgeSettings
from edge.store.port import AssetStore
from edge.store.shared_uploads import SharedUploadStateStore
from edge.store.upload_state import UploadStateStore
from edge.usage.recorder import UsageRecorder
from edge.usage.report import UsageReports
from edge.webhooks import dispatcher as webhooks

SECRET_KEY_FILE = "secrets.key"  # in the data folder  # noqa: S105 - the name of a file
WEBHOOK_DEPENDENCIES = webhooks.WebhookDependencies(
    now=utc_now, monotonic=time.monotonic, entropy=os.urandom, random=random.random
)


class HttpClients(NamedTuple):
    """`operator`: for URLs of the operator (power drivers). `untrusted`: for URLs of clients, with the SSRF guard."""

    operator: httpx2.AsyncClient
    untrusted: httpx2.AsyncClient


class AssembledEdge(NamedTuple):
    """The services of one edge, what cleans up behind jobs and hosts, and the HeyGem facade if it is enabled."""

    services: EdgeServices
    reconciler: Reconciler
    silent_hosts: SilentHostRemover
    heygem: HeygemFacade | None


class _Domain(Struct, frozen=True, kw_only=True):
    """The services below jobs: endpoints, hosts, assets and owners, with the power of hosts."""

    endpoints: EndpointRegistry
    index: JobIndex
    run_history: RunHistory
    quotas: OwnerQuotas
    uploads: UploadService
    assets: AssetService
    hosts: HostRegistry
    api_keys: ApiKeyStore
    secrets: SecretStore
    relay_hub: RelayHub
    power: PowerController
    power_metrics: PowerMetrics
    leases: Leases
    metrics: EdgeMetrics


class _Jobs(Struct, frozen=True, kw_only=True):
    """The services of `edge.jobs` for one edge, in the order in which they depend on each other."""

    publish_window: PublishWindow
    url_fetcher: UrlInputFetcher
    input_waiter: InputWaiter
    readiness: BrokerReadiness
    wait_reasons: WaitReasons
    eta: EtaEstimator
    views: JobViewBuilder
    service: JobService


async def assemble_services(  # noqa: PLR0913, PLR0917 - what a process opens and reads for its services
    settings: EdgeSettings,
    bus: Bus,
    store: AssetStore,
    clients: HttpClients,
    addresses: AdvertisedAddresses | None = None,
    certificates: Mapping[str, Path] = MappingProxyType({}),
    spans: SpanRecorder = NO_SPANS,
) -> AssembledEdge:
    """Build the services of one edge. Nothing runs yet.

    `addresses`: the addresses in join tokens; None if hosts cannot join. `certificates`: as in EdgeServices.
    """
    domain = await _build_domain(settings, bus, store, clients)
    signing_secret = await get_or_create_secret(bus.installation_constants, os.urandom, utc_now)
    url_signer = UrlSigner(signing_secret, utc_now, settings.urls)
    jobs = _build_jobs(settings, bus, clients, domain, url_signer, spans)
    index, power, server = domain.index, domain.power, settings.server
    enrollment = HostEnrollment(bus, domain.api_keys, _make_host_accounts(settings), addresses, utc_now)
    services = EdgeServices(
        bus=bus,
        store=store,
        assets=domain.assets,
        uploads=domain.uploads,
        endpoints=domain.endpoints,
        index=index,
        publish_window=jobs.publish_window,
        readiness=jobs.readiness,
        input_waiter=jobs.input_waiter,
        url_fetcher=jobs.url_fetcher,
        webhooks=webhooks.build_webhooks(
            bus,
            index,
            jobs.views,
            clients.untrusted,
            AllowList(settings.outbound.allow),
            settings.webhooks,
            WEBHOOK_DEPENDENCIES,
            domain.metrics,
        ),
        jobs=jobs.service,
        job_actions=JobActionService(bus.job_actions, jobs.service, index, domain.leases, utc_now, os.urandom),
        event_streams=EventStreams(bus, jobs.views, domain.hosts),
        job_views=jobs.views,
        eta=jobs.eta,
        hosts=domain.hosts,
        host_samples=HostSamples(domain.hosts, settings.data / "host-samples.json", utc_now),
        wait_reasons=jobs.wait_reasons,
        api_keys=domain.api_keys,
        secrets=domain.secrets,
        tokens=TokenIssuer(signing_secret, domain.api_keys.get, utc_now),
        sessions=SessionIssuer(signing_secret, domain.api_keys.get, utc_now, os.urandom, bus.installation_constants),
        url_signer=url_signer,
        enrollment=enrollment,
        host_tokens=HostTokens(bus, enrollment, settings.hosts, utc_now, os.urandom),
        owners=OwnerDirectory(bus, index, domain.api_keys),
        owner_deletions=_make_owner_deletions(settings, bus, domain, jobs.service),
        quotas=domain.quotas,
        power=power,
        usage_reports=UsageReports(bus.usage_log, power.records, settings.prices, utc_now),
        usage_recorder=UsageRecorder(bus.usage_log, index, power.records, settings.prices),
        relay_hub=domain.relay_hub,
        notifications=_make_notifications(settings, bus, domain, certificates),
        audit=AuditLog(bus.audit_log, utc_now, os.urandom, settings.data),
        trusted_proxies=TrustedProxies(server.trusted_proxies, requests_per_client=server.connections_per_address),
        form_dir=settings.data / "forms",
        data_dir=settings.data,
        metrics=domain.metrics,
        power_metrics=domain.power_metrics,
        now=utc_now,
        certificates=certificates,
        request_limits=RequestLimiter(server.requests_per_minute, time.monotonic),
        stream_limits=StreamLimiter("event streams", server.streams_per_key, server.streams_per_owner),
    )
    services.webhooks.dispatcher.subscribe_states(services.notifications.on_state)
    services.form_dir.mkdir(mode=0o700, exist_ok=True)
    await services.audit.record_settings(settings, EdgeSettings(), platform.node(), signing_secret)
    await services.usage_recorder.load_position()
    reconciler = Reconciler(_make_reconcile_context(settings, services), period_s=settings.reconcile_every_s)
    heygem = make_heygem_facade(settings.heygem, settings.data, bus.job_store, store, index)
    return AssembledEdge(services, reconciler, _make_silent_host_remover(settings, services), heygem)


async def _build_domain(settings: EdgeSettings, bus: Bus, store: AssetStore, clients: HttpClients) -> _Domain:
    endpoints = await _load_endpoint_registry(settings, bus)
    keys = await to_thread.run_sync(read_or_make_keys, settings.secrets.key_file or settings.data / SECRET_KEY_FILE)
    index = JobIndex(settings.data / "index.sqlite", bus.job_store)
    metrics = EdgeMetrics(settings.metrics)
    JobMetrics(index, metrics)
    upload_states = await to_thread.run_sync(_open_upload_states, settings, store)
    quotas = _make_quotas(settings, bus, index, upload_states)
    assets = AssetService(bus, store, index, utc_now, settings.max_asset_bytes, quotas, settings.trash)
    hosts = HostRegistry(bus, endpoints, utc_now, index.queue_ranks.count_pending)
    relay_hub = RelayHub(_fresh_id)
    run_history = RunHistory(index, endpoints)
    observer = FleetObserver(
        bus=bus,
        index=index,
        hosts=hosts,
        endpoints=endpoints,
        now=utc_now,
        usual_run_s=run_history.median_s,
        running_limit=quotas.running_limit,
    )
    power = _make_power_controller(settings, observer, bus, clients.operator, relay_hub)
    power.subscribe(hosts.notify)
    return _Domain(
        endpoints=endpoints,
        index=index,
        run_history=run_history,
        quotas=quotas,
        uploads=UploadService(
            upload_states, assets, utc_now, os.urandom, settings.uploads, settings.max_asset_bytes, quotas
        ),
        assets=assets,
        hosts=hosts,
        api_keys=ApiKeyStore(bus.api_keys, utc_now, os.urandom, time.monotonic),
        secrets=SecretStore(bus.secrets, keys, utc_now),
        relay_hub=relay_hub,
        power=power,
        power_metrics=PowerMetrics(power, settings.hosts, metrics, utc_now),
        metrics=metrics,
        leases=Leases(bus.leases, _fresh_id(), utc_now),
    )


def _build_jobs(  # noqa: PLR0913, PLR0917 - what the services of jobs are made from
    settings: EdgeSettings,
    bus: Bus,
    clients: HttpClients,
    domain: _Domain,
    url_signer: UrlSigner,
    spans: SpanRecorder,
) -> _Jobs:
    endpoints, index, assets, quotas = domain.endpoints, domain.index, domain.assets, domain.quotas
    publish_window = PublishWindow(
        queue=bus.job_queue,
        records=bus.job_store,
        index=index,
        pool_slots=endpoints.offered_slots,
        clock=utc_now,
        running_limit=quotas.running_limit,
    )
    url_fetcher = UrlInputFetcher(
        bus=bus,
        assets=assets,
        leases=domain.leases,
        client=clients.untrusted,
        settings=settings.outbound,
        clock=utc_now,
        backoff=FetchBackoff(random.random),
    )
    readiness = BrokerReadiness(bus.health, utc_now, allow_unsynced=settings.allow_unsynced)
    wait_reasons = WaitReasons(domain.hosts, endpoints, domain.power, utc_now)
    eta = EtaEstimator(index, domain.run_history, wait_reasons, endpoints, utc_now)
    views = JobViewBuilder(
        feed=bus.feed,
        index=index,
        publish_window=publish_window,
        wait_reasons=wait_reasons,
        eta=eta,
        sign_url=url_signer.sign_url,
    )
    return _Jobs(
        publish_window=publish_window,
        url_fetcher=url_fetcher,
        input_waiter=InputWaiter(
            records=bus.job_store,
            assets=assets,
            url_fetcher=url_fetcher,
            index=index,
            publish_window=publish_window,
            clock=utc_now,
        ),
        readiness=readiness,
        wait_reasons=wait_reasons,
        eta=eta,
        views=views,
        service=_make_job_service(settings, bus, domain, readiness, publish_window, spans),
    )


def _make_job_service(  # noqa: PLR0913, PLR0917 - the services that it calls
    settings: EdgeSettings,
    bus: Bus,
    domain: _Domain,
    readiness: BrokerReadiness,
    publish_window: PublishWindow,
    spans: SpanRecorder,
) -> JobService:
    admission = Admission(
        readiness=readiness,
        endpoints=domain.endpoints,
        assets=domain.assets,
        url_allow_list=AllowList(settings.outbound.allow),
        clock=utc_now,
        entropy=os.urandom,
        quotas=domain.quotas,
        secrets=domain.secrets,
    )
    return JobService(
        bus=bus,
        readiness=readiness,
        admission=admission,
        assets=domain.assets,
        index=domain.index,
        publish_window=publish_window,
        clock=utc_now,
        entropy=os.urandom,
        metrics=domain.metrics,
        spans=spans,
    )


async def _load_endpoint_registry(settings: EdgeSettings, bus: Bus) -> EndpointRegistry:
    """Load the endpoints in the folders of the settings, and those that hosts offer in the broker's bucket."""
    endpoints = EndpointRegistry(
        bus, tuple(endpoint for folder in settings.endpoints for endpoint in load_endpoints(folder))
    )
    await endpoints.refresh()
    return endpoints


def _open_upload_states(settings: EdgeSettings, store: AssetStore) -> UploadStateStore:
    """Open the folder of unfinished uploads, and where edges share them: a store that is named may be theirs."""
    folder, uploads = settings.data / "uploads", settings.uploads
    objects = store.upload_objects() if settings.store.url and uploads.shared else None
    if objects is None:
        return UploadStateStore(folder)
    return SharedUploadStateStore(folder, objects, timedelta(seconds=uploads.ttl_s))


def _make_quotas(settings: EdgeSettings, bus: Bus, index: JobIndex, uploads: UploadStateStore) -> OwnerQuotas:
    overrides = {owner: one.quotas for owner, one in settings.owners.items()}
    return OwnerQuotas(settings.quotas, overrides, index, bus.asset_references, time.monotonic, uploads)


def _make_owner_deletions(
    settings: EdgeSettings, bus: Bus, domain: _Domain, job_service: JobService
) -> OwnerDeletionService:
    services = DeletionServices(
        bus=bus,
        job_service=job_service,
        assets=domain.assets,
        uploads=domain.uploads,
        keys=domain.api_keys,
        secrets=domain.secrets,
        index=domain.index,
        quotas=domain.quotas,
    )
    return OwnerDeletionService(services, domain.leases, utc_now, settings.trash)


def _make_notifications(
    settings: EdgeSettings, bus: Bus, domain: _Domain, certificates: Mapping[str, Path]
) -> NotificationService:
    """Build the notifications. Raises TargetInvalid."""
    sources = FactSources(
        bus=bus,
        index=domain.index,
        hosts=domain.hosts,
        power=domain.power,
        declared=settings.hosts,
        certificates=certificates,
        disks={str(settings.data): settings.data},
        clock=utc_now,
        allow_unsynced=settings.allow_unsynced,
    )
    return NotificationService(
        settings.notify,
        NotificationServices(
            table=bus.notices,
            facts=FactReader(sources),
            leases=domain.leases,
            senders=build_senders(settings.notify),
            clock=utc_now,
            random=random.random,
        ),
    )


def _make_host_accounts(settings: EdgeSettings) -> HostAccounts | None:
    enrollment = settings.enrollment
    if not (enrollment.nats_conf_dir and enrollment.reload_command):
        return None
    return HostAccounts(settings.broker, enrollment.nats_conf_dir, enrollment.reload_command)


def _make_silent_host_remover(settings: EdgeSettings, services: EdgeServices) -> SilentHostRemover:
    return SilentHostRemover(
        services.bus,
        services.host_tokens,
        services.index,
        services.audit,
        utc_now,
        timedelta(seconds=settings.enrollment.remove_after_s),
    )


def _make_power_controller(
    settings: EdgeSettings, observer: FleetObserver, bus: Bus, client: httpx2.AsyncClient, relay_hub: RelayHub
) -> PowerController:
    """Build the controller of the declared hosts. Raises DriverMissing."""
    driver_dependencies = drivers.DriverDependencies(
        client=client, environ=os.environ, now=utc_now, new_id=_fresh_id, relay=relay_hub
    )
    return PowerController(
        PowerDependencies(
            table=bus.power_records,
            fleet=observer,
            declared=settings.hosts,
            drivers=drivers.build_drivers(settings.hosts, driver_dependencies),
            pools=settings.pools,
            now=utc_now,
            monotonic=time.monotonic,
            new_id=_fresh_id,
            random=random.random,
        )
    )


def _fresh_id() -> str:
    return os.urandom(8).hex()


def _make_reconcile_context(settings: EdgeSettings, services: EdgeServices) -> ReconcileContext:
    policy = ReconcilePolicy(
        low_max_wait=timedelta(seconds=settings.low_max_wait_s), retention=timedelta(days=settings.retention_days)
    )
    return ReconcileContext(
        bus=services.bus,
        index=services.index,
        publish_window=services.publish_window,
        hosts=services.hosts,
        assets=services.assets,
        input_waiter=services.input_waiter,
        now=utc_now,
        index_check_timer=IntervalTimer(policy.check_interval, utc_now()),
        orphan_timer=IntervalTimer(policy.check_interval, utc_now()),
        power_probe=services.power,
        policy=policy,
    )


def start_tasks(tasks: TaskGroup, edge: AssembledEdge) -> None:
    """Start the background tasks of every service. They run until `tasks` is cancelled."""
    services = edge.services
    runs = [
        services.index.run,
        services.uploads.run,
        services.publish_window.run,
        services.hosts.run,
        services.event_streams.run,
        services.url_fetcher.run,
        services.input_waiter.run,
        services.webhooks.dispatcher.run,
        services.power.run,
        services.usage_recorder.run,
        services.api_keys.run,
        services.secrets.run,
        services.owner_deletions.run,
        services.job_actions.run,
        services.audit.run,
        services.notifications.run,
        services.host_samples.run,
        edge.reconciler.run,
        edge.silent_hosts.run,
    ]
    if edge.heygem is not None:
        runs.append(edge.heygem.result_exporter.run)
    for run in runs:
        tasks.start_soon(run)
