"""One edge over the fake bus, served by a real uvicorn, with clients of several owners."""

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2
from litestar import Litestar
from msgspec import Struct

from edge.app import create_app, make_routes
from edge.console import ConsoleSettings
from edge.core.clients import TrustedProxies
from edge.deletion import OwnerDirectory
from edge.facades.gateway.gateway import GatewayLimits, run_gateway
from edge.hosts.enrollment import AdvertisedAddresses, BrokerAccounts, HostEnrollment
from edge.hosts.host_tokens import HostTokens
from edge.hosts.registry import HostSamples
from edge.http.dependencies import EdgeServices
from edge.jobs.job_actions import JobActionService
from edge.notify.service import FactReader, FactSources, NotificationService, NotificationServices
from edge.notify.targets import NotifySettings, build_senders
from edge.owners.api_keys import ApiKeyStore
from edge.owners.audit_log import AuditLog
from edge.owners.quotas import RequestLimiter, StreamLimiter
from edge.owners.signed_credentials import SessionIssuer, TokenIssuer
from edge.power.controller import PowerController
from edge.power.driver_calls import PowerDependencies
from edge.power.drivers import factory as drivers
from edge.power.drivers.generic import RelayHub
from edge.record_metrics import PowerMetrics
from edge.usage import UsageRecorder, UsageReports
from schemas.credentials import CLIENT_SCOPES, Scope
from schemas.host_config import CommandHostConfig, PowerPrice
from tests.support.edge_services import SECRET, FakeBusServicesRig, FixedEntropy, fake_bus_services, observe_fleet
from tests.support.http_server import open_client, serve_app


class ServedEdge(Struct, frozen=True, kw_only=True):
    """A served edge. `ann` and `bob` are ordinary clients; `anyone` has no key."""

    world: FakeBusServicesRig
    services: EdgeServices
    keys: ApiKeyStore
    url: str
    texts: dict[str, str]
    ann: httpx2.AsyncClient
    bob: httpx2.AsyncClient
    admin: httpx2.AsyncClient
    runner: httpx2.AsyncClient
    anyone: httpx2.AsyncClient


NO_NOTIFICATIONS = NotifySettings()
LOOPBACK_PROXY, NO_PROXY = TrustedProxies(("127.0.0.1",)), TrustedProxies(())
ADDRESSES = AdvertisedAddresses(edge="https://e:8443", broker="tls://e:4222")


ALLOWED_ORIGIN = "https://app.example.com"  # its pages may call the API
STREAMS_PER_KEY, STREAMS_PER_OWNER = 20, 30
GATEWAY_LIMITS = GatewayLimits(sockets_per_key=STREAMS_PER_KEY, sockets_per_owner=STREAMS_PER_OWNER)
OWNERS = {"ann": CLIENT_SCOPES, "bob": CLIENT_SCOPES, "admin": (Scope.ADMIN,), "runner": (Scope.RUNNER,)}


PRICE = PowerPrice(per_hour=2.0)
DECLARED_HOSTS = {"gpu-9": CommandHostConfig(on=("true",), off=("true",), state=("false",), price=PRICE)}


def declare_dark_host(made: FakeBusServicesRig) -> PowerController:
    """Declare `gpu-9`, which stays off: its power driver answers, and nothing runs there."""
    declared = DECLARED_HOSTS
    tools = drivers.DriverDependencies(
        client=httpx2.AsyncClient(verify=False), environ={}, now=made.time, new_id=lambda: "id"
    )
    return PowerController(
        PowerDependencies(
            table=made.bus.power_records,
            fleet=observe_fleet(made),
            declared=declared,
            drivers=drivers.build_drivers(declared, tools),
            now=made.time,
            monotonic=made.time.seconds,
            new_id=lambda: "id",
            random=lambda: 0.0,
        )
    )


def _hex(dice: FixedEntropy) -> str:
    return dice(8).hex()


def make_notifications(
    made: FakeBusServicesRig, power: PowerController, settings: NotifySettings
) -> NotificationService:
    sources = FactSources(
        bus=made.bus,
        index=made.index,
        hosts=made.hosts,
        power=power,
        declared={},
        certificates={},
        disks={"data": made.folder},
        clock=made.time,
    )
    return NotificationService(
        settings,
        NotificationServices(
            table=made.bus.notices,
            facts=FactReader(sources),
            leases=made.leases,
            senders=build_senders(settings),
            clock=made.time,
            random=lambda: 0.0,
        ),
    )


def make_services(
    made: FakeBusServicesRig,
    keys: ApiKeyStore,
    accounts: BrokerAccounts | None = None,
    proxies: TrustedProxies = LOOPBACK_PROXY,
    requests_per_minute: int = 30_000,
    certificates: Mapping[str, Path] = MappingProxyType({}),
    notify: NotifySettings = NO_NOTIFICATIONS,
) -> EdgeServices:
    power = declare_dark_host(made)
    enrollment = HostEnrollment(made.bus, keys, accounts, ADDRESSES, made.time)
    prices = {"gpu-9": PRICE}
    return EdgeServices(
        bus=made.bus,
        store=made.store,
        assets=made.assets,
        uploads=made.uploads,
        endpoints=made.endpoints,
        index=made.index,
        publish_window=made.publish_window,
        readiness=made.readiness,
        input_waiter=made.input_waiter,
        url_fetcher=made.fetches,
        webhooks=made.webhooks,
        jobs=made.jobs,
        job_actions=JobActionService(
            made.bus.job_actions, made.jobs, made.index, made.leases, made.time, FixedEntropy()
        ),
        event_streams=made.event_streams,
        job_views=made.job_views,
        eta=made.eta,
        wait_reasons=made.wait_reasons,
        hosts=made.hosts,
        host_samples=HostSamples(made.hosts, made.folder / "host-samples.json", made.time),
        api_keys=keys,
        secrets=made.secrets,
        tokens=TokenIssuer(SECRET, keys.get, made.time),
        sessions=SessionIssuer(SECRET, keys.get, made.time, FixedEntropy(), made.bus.installation_constants),
        url_signer=made.signer,
        enrollment=enrollment,
        host_tokens=HostTokens(made.bus, enrollment, DECLARED_HOSTS, made.time, FixedEntropy()),
        owners=OwnerDirectory(made.bus, made.index, keys),
        owner_deletions=made.erasures(keys),
        quotas=made.quotas,
        power=power,
        usage_reports=UsageReports(made.bus.usage_log, power.records, prices, made.time),
        usage_recorder=UsageRecorder(made.bus.usage_log, made.index, power.records, prices),
        notifications=make_notifications(made, power, notify),
        audit=AuditLog(made.bus.audit_log, made.time, FixedEntropy(), made.folder),
        form_dir=made.folder,
        data_dir=made.folder,
        metrics=made.metrics,
        power_metrics=PowerMetrics(power, DECLARED_HOSTS, made.metrics, made.time),
        now=made.time,
        certificates=certificates,
        trusted_proxies=proxies,
        relay_hub=RelayHub(partial(_hex, FixedEntropy()), made.time),
        request_limits=RequestLimiter(requests_per_minute, made.time.seconds),
        stream_limits=StreamLimiter("event streams", STREAMS_PER_KEY, STREAMS_PER_OWNER),
    )


_idle_routes: defaultdict[tuple[tuple[str, Any], ...], list[Litestar]] = defaultdict(list)


@asynccontextmanager
async def lend_routes(**options: Any) -> AsyncIterator[Litestar]:
    """Yield routes that no other edge of this process serves meanwhile. `options`: of make_routes."""
    idle = _idle_routes[tuple(sorted(options.items()))]
    routes = idle.pop() if idle else make_routes(**options)
    yield routes
    idle.append(routes)


@asynccontextmanager
async def serve_edge(
    folder: Path, accounts: BrokerAccounts | None = None, console: ConsoleSettings | None = None, **options: Any
) -> AsyncIterator[ServedEdge]:
    """Serve an edge that keeps its files in `folder`.

    `accounts`: lets hosts enroll. `console`: where the console is, if not at `/`. `options`: of make_services.
    """
    async with fake_bus_services(folder) as made:
        keys = ApiKeyStore(made.bus.api_keys, made.time, FixedEntropy(), made.time.seconds)
        texts = {owner: (await keys.create(owner, scopes)).text for owner, scopes in OWNERS.items()}
        services = make_services(made, keys, accounts, **options)
        async with (
            lend_routes(cors_origins=(ALLOWED_ORIGIN,), console_settings=console or ConsoleSettings()) as routes,
            run_gateway(services, GATEWAY_LIMITS, heygem_endpoint="heygem") as gateway,
            serve_app(create_app(routes, services, gateway)) as url,
        ):
            clients = {
                name: open_client(url, headers={"Authorization": f"Bearer {text}"}, timeout=20)
                for name, text in texts.items()
            }
            clients["anyone"] = open_client(url, timeout=20)
            yield ServedEdge(world=made, services=services, keys=keys, url=url, texts=texts, **clients)
            for client in clients.values():
                await client.aclose()
