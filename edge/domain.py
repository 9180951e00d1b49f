"""The first part of the composition root: builds the services of `edge.jobs`, and the services that they use.

`edge.container` builds the rest: the layers above `edge.jobs` in EDGE_LAYERS of tests/architecture.py, except power.
"""

import os
import random
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import httpx2
from anyio import to_thread
from msgspec import Struct

from bus.interface import Bus
from bus.spans import NO_SPANS, SpanRecorder
from edge.assets.service import AssetService
from edge.assets.uploads import UploadService
from edge.core.clock import utc_now
from edge.core.installation import Leases, get_or_create_secret
from edge.core.metrics import EdgeMetrics
from edge.hosts.endpoints import EndpointRegistry, load_endpoints
from edge.hosts.enrollment import AdvertisedAddresses
from edge.hosts.registry import HostRegistry
from edge.index.index import JobIndex
from edge.jobs.forecast import EtaEstimator, RunHistory, WaitReasons
from edge.jobs.inputs import FetchBackoff, InputWaiter, UrlInputFetcher
from edge.jobs.publish_window import PublishWindow
from edge.jobs.service import JobService
from edge.jobs.submission import Admission, BrokerReadiness
from edge.jobs.view import JobViewBuilder
from edge.outbound import AllowList
from edge.owners.api_keys import ApiKeyStore
from edge.owners.quotas import OwnerQuotas
from edge.owners.secret_keys import SecretKeyFile
from edge.owners.secrets import SecretStore
from edge.owners.signed_credentials import UrlSigner
from edge.power.controller import PowerController
from edge.power.driver_calls import PowerDependencies
from edge.power.drivers import factory as drivers
from edge.power.drivers.generic import RelayHub
from edge.power.observation import FleetObserver
from edge.record_metrics import JobMetrics, PowerMetrics
from edge.settings import EdgeSettings
from edge.store.port import AssetStore
from edge.store.unfinished_uploads import SharedUploadStateStore, UploadStateStore

SECRET_KEY_FILE = "secrets.key"  # in the data folder  # noqa: S105 - the name of a file


class HttpClients(NamedTuple):
    """`operator`: for URLs of the operator (power drivers). `untrusted`: for URLs of clients, with the SSRF guard."""

    operator: httpx2.AsyncClient
    untrusted: httpx2.AsyncClient


class EdgeResources(NamedTuple):
    """The settings, connections and files that the process of an edge opens for its services.

    `addresses`: the addresses in join tokens; None if hosts cannot join. `certificates`: the files of
    the certificates that `/metrics` watches, by server.
    """

    settings: EdgeSettings
    bus: Bus
    store: AssetStore
    clients: HttpClients
    addresses: AdvertisedAddresses | None = None
    certificates: Mapping[str, Path] = MappingProxyType({})
    spans: SpanRecorder = NO_SPANS


class Domain(Struct, frozen=True, kw_only=True):
    """The services that those of `edge.jobs` use: index, endpoints, hosts, assets, owners, and the power of hosts.

    `edge.power` is a layer above `edge.jobs`, but its controller is built first: the wait reasons of jobs ask it
    through a port. `run_history` comes from `edge.jobs`: power plans with it too. `signing_secret` signs URLs, tokens
    and sessions.
    """

    signing_secret: bytes
    url_signer: UrlSigner
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


class JobServices(Struct, frozen=True, kw_only=True):
    """The services of `edge.jobs` for one edge, in the order in which they depend on each other."""

    publish_window: PublishWindow
    url_fetcher: UrlInputFetcher
    input_waiter: InputWaiter
    readiness: BrokerReadiness
    wait_reasons: WaitReasons
    eta: EtaEstimator
    views: JobViewBuilder
    service: JobService


async def build_domain(resources: EdgeResources) -> Domain:
    """Build the services that those of `edge.jobs` use."""
    settings, bus, store = resources.settings, resources.bus, resources.store
    endpoints = await _load_endpoint_registry(settings, bus)
    secret_keys = await to_thread.run_sync(SecretKeyFile, settings.secrets.key_file or settings.data / SECRET_KEY_FILE)
    index = JobIndex(settings.data / "index.sqlite", bus.job_store)
    metrics = EdgeMetrics(settings.metrics)
    JobMetrics(index, metrics)  # the index keeps it, because it subscribes to changes
    upload_states = await to_thread.run_sync(_open_upload_states, settings, store)
    quotas = _make_quotas(settings, bus, index, upload_states)
    assets = AssetService(bus, store, index, utc_now, settings.max_asset_bytes, quotas, settings.trash)
    hosts = HostRegistry(bus, endpoints, utc_now, index.queue_ranks.count_pending)
    relay_hub = RelayHub(fresh_id)
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
    power = _make_power_controller(settings, observer, bus, resources.clients.operator, relay_hub)
    power.subscribe(hosts.notify)
    signing_secret = await get_or_create_secret(bus.installation_constants, os.urandom, utc_now)
    return Domain(
        signing_secret=signing_secret,
        url_signer=UrlSigner(signing_secret, utc_now, settings.urls),
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
        secrets=SecretStore(bus.secrets, secret_keys, utc_now),
        relay_hub=relay_hub,
        power=power,
        power_metrics=PowerMetrics(power, settings.hosts, metrics, utc_now),
        metrics=metrics,
        leases=Leases(bus.leases, fresh_id(), utc_now),
    )


def build_jobs(resources: EdgeResources, domain: Domain) -> JobServices:
    """Build the services of jobs on those of `domain`."""
    settings, bus = resources.settings, resources.bus
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
        client=resources.clients.untrusted,
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
        sign_url=domain.url_signer.sign_url,
    )
    return JobServices(
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
        service=_make_job_service(resources, domain, readiness, publish_window),
    )


def _make_job_service(
    resources: EdgeResources, domain: Domain, readiness: BrokerReadiness, publish_window: PublishWindow
) -> JobService:
    admission = Admission(
        readiness=readiness,
        endpoints=domain.endpoints,
        assets=domain.assets,
        url_allow_list=AllowList(resources.settings.outbound.allow),
        clock=utc_now,
        entropy=os.urandom,
        quotas=domain.quotas,
        secrets=domain.secrets,
    )
    return JobService(
        bus=resources.bus,
        admission=admission,
        assets=domain.assets,
        index=domain.index,
        publish_window=publish_window,
        clock=utc_now,
        metrics=domain.metrics,
        spans=resources.spans,
    )


async def _load_endpoint_registry(settings: EdgeSettings, bus: Bus) -> EndpointRegistry:
    """Load the endpoints in the folders of the settings, and those that hosts offer in the broker's bucket."""
    endpoints = EndpointRegistry(
        bus, tuple(endpoint for folder in settings.endpoints for endpoint in load_endpoints(folder))
    )
    await endpoints.refresh()
    return endpoints


def _open_upload_states(settings: EdgeSettings, store: AssetStore) -> UploadStateStore:
    """Open the states of unfinished uploads: in the data folder, and if edges share them also in the store.

    Edges can share them only if the settings name the store: otherwise it is a folder of this edge.
    """
    folder, uploads = settings.data / "uploads", settings.uploads
    objects = store.upload_objects() if settings.store.url and uploads.shared else None
    if objects is None:
        return UploadStateStore(folder)
    return SharedUploadStateStore(folder, objects, timedelta(seconds=uploads.ttl_s))


def _make_quotas(settings: EdgeSettings, bus: Bus, index: JobIndex, uploads: UploadStateStore) -> OwnerQuotas:
    overrides = {owner: one.quotas for owner, one in settings.owners.items()}
    return OwnerQuotas(settings.quotas, overrides, index, bus.asset_references, time.monotonic, uploads)


def _make_power_controller(
    settings: EdgeSettings, observer: FleetObserver, bus: Bus, client: httpx2.AsyncClient, relay_hub: RelayHub
) -> PowerController:
    """Build the controller of the declared hosts. Raises DriverUnusable."""
    driver_dependencies = drivers.DriverDependencies(
        client=client, environ=os.environ, now=utc_now, new_id=fresh_id, relay=relay_hub
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
            new_id=fresh_id,
            random=random.random,
        )
    )


def fresh_id() -> str:
    """Return a new random id of 16 hexadecimal digits."""
    return os.urandom(8).hex()
