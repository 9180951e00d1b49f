"""The gateway over the fake bus, served by a real uvicorn with the edge's own settings for sockets."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from edge.app import create_app
from edge.facades.gateway.gateway import GatewayLimits, run_gateway
from edge.http.dependencies import EdgeServices
from edge.owners.api_keys import ApiKeyStore
from edge.server.bounded_server import WEBSOCKET_OPTIONS
from schemas.credentials import CLIENT_SCOPES, Scope
from tests.support.edge_services import FakeBusServicesRig, FixedEntropy, fake_bus_services
from tests.support.gateway_client import GatewayClient, connect_gateway
from tests.support.http_server import serve_app
from tests.support.served_edge import lend_routes, make_services

OWNERS = {
    "ann": CLIENT_SCOPES,
    "bob": CLIENT_SCOPES,
    "reader": (Scope.JOBS_READ,),
    "blind": (Scope.JOBS_WRITE,),
    "relay": (Scope.RELAY,),
    "admin": (Scope.ADMIN,),
}


class GatewayEdge(Struct, frozen=True, kw_only=True):
    """The gateway of one edge. `texts`: a key for each of OWNERS."""

    world: FakeBusServicesRig
    services: EdgeServices
    keys: ApiKeyStore
    url: str
    texts: dict[str, str]

    def connect(self, who: str = "ann", **more: Any) -> AbstractAsyncContextManager[GatewayClient]:
        """Connect a client with the key of `who`."""
        return connect_gateway(self.url, self.texts[who], **more)


async def make_keys(keys: ApiKeyStore) -> dict[str, str]:
    """Create a key for each of OWNERS."""
    return {owner: (await keys.create(owner, scopes)).text for owner, scopes in OWNERS.items()}


@asynccontextmanager
async def run_gateway_edge(
    world: FakeBusServicesRig, keys: ApiKeyStore, texts: dict[str, str], limits: GatewayLimits | None = None
) -> AsyncIterator[GatewayEdge]:
    """Serve a gateway over `world`. HeyGem's jobs run on the endpoint echo there."""
    services = make_services(world, keys)
    async with (
        lend_routes() as routes,
        run_gateway(services, limits, world.time, heygem_endpoint="echo") as gateway,
        serve_app(create_app(routes, services, gateway), **WEBSOCKET_OPTIONS) as url,
    ):
        yield GatewayEdge(world=world, services=services, keys=keys, url=url, texts=texts)


@pytest.fixture
def limits() -> GatewayLimits:
    """Return the default limits. A test overrides them with a parametrization of this name."""
    return GatewayLimits()


@pytest.fixture
async def gateway(tmp_path: Path, limits: GatewayLimits) -> AsyncIterator[GatewayEdge]:
    async with fake_bus_services(tmp_path) as world:
        keys = ApiKeyStore(world.bus.api_keys, world.time, FixedEntropy(), world.time.seconds)
        async with run_gateway_edge(world, keys, await make_keys(keys), limits) as gateway:
            yield gateway
