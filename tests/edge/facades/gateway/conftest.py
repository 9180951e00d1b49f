"""The gateway over the memory bus, served by a real uvicorn with the edge's own settings for sockets."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct, structs

from edge.app import create_app
from edge.facades.gateway.gateway import GatewayLimits, run_gateway
from edge.http.dependencies import EdgeServices
from edge.owners.api_keys import ApiKeyStore
from edge.server.bounded_server import WEBSOCKET_OPTIONS
from edge.settings import HeygemSettings
from schemas.auth import CLIENT_SCOPES, Scope
from tests.support.edge_services import FakeBusServicesRig, FixedEntropy, fake_bus_services
from tests.support.gateway_client import GatewayClient, connect_gateway
from tests.support.http_server import serve_app
from tests.support.served_edge import make_services

OWNERS = {
    "ann": CLIENT_SCOPES,
    "bob": CLIENT_SCOPES,
    "reader": (Scope.JOBS_READ,),
    "blind": (Scope.JOBS_WRITE,),
    "relay": (Scope.RELAY,),
    "admin": (Scope.ADMIN,),
}


class GatewayEdge(Struct, frozen=True, kw_only=True):
    """One edge's gateway. `texts`: a key for each of OWNERS."""

    world: FakeBusServicesRig
    parts: EdgeServices
    keys: ApiKeyStore
    url: str
    texts: dict[str, str]

    def desk(self, who: str = "ann", **more: Any) -> AbstractAsyncContextManager[GatewayClient]:
        """A client of `who`."""
        return connect_gateway(self.url, self.texts[who], **more)


async def make_keys(keys: ApiKeyStore) -> dict[str, str]:
    """A key for each of OWNERS."""
    return {owner: (await keys.create(owner, scopes)).text for owner, scopes in OWNERS.items()}


@asynccontextmanager
async def run_gateway_edge(
    world: FakeBusServicesRig, keys: ApiKeyStore, texts: dict[str, str], limits: GatewayLimits | None = None
) -> AsyncIterator[GatewayEdge]:
    """A gateway over `world`; HeyGem's jobs go to echo there."""
    made = make_services(world, keys)
    parts = structs.replace(made, settings=structs.replace(made.settings, heygem=HeygemSettings(endpoint="echo")))
    async with (
        run_gateway(parts, limits, world.time) as gateway,
        serve_app(create_app(parts, gateway), **WEBSOCKET_OPTIONS) as url,
    ):
        yield GatewayEdge(world=world, parts=parts, keys=keys, url=url, texts=texts)


@pytest.fixture
def limits() -> GatewayLimits:
    """A test's own, by a parametrization of this name."""
    return GatewayLimits()


@pytest.fixture
async def door(tmp_path: Path, limits: GatewayLimits) -> AsyncIterator[GatewayEdge]:
    async with fake_bus_services(tmp_path) as world:
        keys = ApiKeyStore(world.bus.api_keys, world.time, FixedEntropy(), world.time.seconds)
        async with run_gateway_edge(world, keys, await make_keys(keys), limits) as door:
            yield door
