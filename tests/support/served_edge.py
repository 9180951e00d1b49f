"""TODO: tests.support.served_edge."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
from msgspec import Struct

from edge.app import create_app
from edge.core.client_throttle import TrustedProxies
from edge.facades.gateway.gateway import run_gateway
from edge.facades.heygem.result_export import ResultExporter
from edge.hosts.enrollment import AdvertisedAddresses, BrokerAccounts, HostEnrollment
from edge.http.dependencies import EdgeServices
from edge.owners.api_keys import ApiKeyStore
from edge.owners.audit_log import AuditLog
from edge.owners.quotas import StreamLimiter
from edge.owners.tokens import TokenIssuer
from edge.power.controller import PowerController
from edge.power.driver_calls import PowerDependencies
from edge.power.drivers import factory as drivers
from edge.power.observation import FleetObserver
from edge.power.relay_hub import RelayHub
from edge.settings import CorsSettings, EdgeSettings
from edge.usage.recorder import UsageRecorder
from edge.usage.report import UsageReports
from schemas.auth import CLIENT_SCOPES, Scope
from schemas.host_config import CommandHostConfig, PowerPrice
from tests.support.edge_services import SECRET, FakeBusServicesRig, FixedEntropy, fake_bus_services
from tests.support.http_server import open_client, serve_app


class ServedEdge(Struct, frozen=True, kw_only=True):
    """One edge. `ann` and `bob` are ordinary clients, `anyone` has no key."""

    world: FakeBusServicesRig
    keys: ApiKeyStore
    url: str
    texts: dict[str, str]
    ann: httpx.AsyncClient
    bob: httpx.AsyncClient
    admin: httpx.AsyncClient
    runner: httpx.AsyncClient
    anyone: httpx.AsyncClient


WELCOME = AdvertisedAddresses(edge="https://e:8443", broker="tls://e:4222")


ALLOWED_ORIGIN = "https://app.example.com"  # whose pages may call


STREAMS_PER_KEY, STREAMS_PER_OWNER = 20, 30


OWNERS = {"ann": CLIENT_SCOPES, "bob": CLIENT_SCOPES, "admin": (Scope.ADMIN,), "runner": (Scope.RUNNER,)}


def declare_dark_host(made: FakeBusServicesRig) -> PowerController:
    """`gpu-9` is declared and stays dark: its switch answers, and nothing runs there."""
    declared = {"gpu-9": CommandHostConfig(on=("true",), off=("true",), state=("false",))}
    tools = drivers.DriverDependencies(
        client=httpx.AsyncClient(verify=False), environ={}, now=made.time, new_id=lambda: "id"
    )
    chance = PowerDependencies(now=made.time, monotonic=made.time.seconds, new_id=lambda: "id", random=lambda: 0.0)
    sight = FleetObserver(made.bus, made.index, made.hosts, made.catalog, made.time)
    return PowerController(made.bus.power_records, sight, declared, drivers.build_drivers(declared, tools), chance)


def _hex(dice: FixedEntropy) -> str:
    return dice(8).hex()


def make_services(made: FakeBusServicesRig, keys: ApiKeyStore, door: BrokerAccounts | None = None) -> EdgeServices:
    power = declare_dark_host(made)
    prices = {"gpu-9": PowerPrice(per_hour=2.0)}
    return EdgeServices(
        settings=EdgeSettings(cors=CorsSettings(origins=(ALLOWED_ORIGIN,))),
        bus=made.bus,
        store=made.store,
        assets=made.assets,
        uploads=made.uploads,
        endpoints=made.catalog,
        index=made.index,
        publish_window=made.window,
        readiness=made.gate,
        input_waiter=made.supply,
        url_fetcher=made.fetches,
        webhooks=made.webhooks,
        jobs=made.intake,
        event_streams=made.follower,
        job_views=made.viewer,
        wait_reasons=made.wait_reasons,
        hosts=made.hosts,
        api_keys=keys,
        tokens=TokenIssuer(SECRET, keys.get, made.time),
        url_signer=made.signer,
        result_export=ResultExporter(None, Path(), made.bus.job_store, made.store, made.index),
        enrollment=HostEnrollment(made.bus, keys, door, WELCOME, made.time),
        owner_deletions=made.erasures(keys),
        quotas=made.quotas,
        power=power,
        usage_reports=UsageReports(made.bus.usage_log, power.records, prices, made.time),
        usage_recorder=UsageRecorder(made.bus.usage_log, made.index, power.records, prices),
        audit=AuditLog(made.bus.audit_log, made.time, FixedEntropy()),
        form_dir=made.folder,
        trusted_proxies=TrustedProxies(("127.0.0.1",)),
        relay_hub=RelayHub(partial(_hex, FixedEntropy()), made.time),
        stream_limits=StreamLimiter("event streams", STREAMS_PER_KEY, STREAMS_PER_OWNER),
        socket_limits=StreamLimiter("gateway sockets", STREAMS_PER_KEY, STREAMS_PER_OWNER),
    )


@asynccontextmanager
async def serve_edge(folder: Path, door: BrokerAccounts | None = None) -> AsyncIterator[ServedEdge]:
    """A served edge that keeps its files in `folder`; hosts may join by `door`."""
    async with fake_bus_services(folder) as made:
        keys = ApiKeyStore(made.bus.api_keys, made.time, FixedEntropy(), made.time.seconds)
        texts = {owner: (await keys.create(owner, scopes)).text for owner, scopes in OWNERS.items()}
        parts = make_services(made, keys, door)
        async with run_gateway(parts) as gateway, serve_app(create_app(parts, gateway)) as url:
            clients = {
                name: open_client(url, headers={"Authorization": f"Bearer {text}"}, timeout=20)
                for name, text in texts.items()
            }
            clients["anyone"] = open_client(url, timeout=20)
            yield ServedEdge(world=made, keys=keys, url=url, texts=texts, **clients)
            for client in clients.values():
                await client.aclose()
