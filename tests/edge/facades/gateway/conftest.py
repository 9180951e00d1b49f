"""The gateway over the memory bus, served by a real uvicorn with the edge's own settings for sockets."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct, structs

from edge.app import create_app
from edge.facades.gateway.gateway import Limits, running_gateway
from edge.parts import Parts
from edge.server.server import SOCKETS
from edge.services.keys import Keys
from edge.settings import HeygemSettings
from schemas.access import CLIENT_SCOPES, Scope
from tests.edge.facades.gateway.desk import Desk, desk
from tests.edge.routes.conftest import parts_of
from tests.edge.services.world import Dice, FakeWorld, fake_world
from tests.edge.store.served import served

OWNERS = {
    "ann": CLIENT_SCOPES,
    "bob": CLIENT_SCOPES,
    "reader": (Scope.JOBS_READ,),
    "blind": (Scope.JOBS_WRITE,),
    "relay": (Scope.RELAY,),
    "admin": (Scope.ADMIN,),
}


class Door(Struct, frozen=True, kw_only=True):
    """One edge's gateway. `texts`: a key for each of OWNERS."""

    world: FakeWorld
    parts: Parts
    keys: Keys
    url: str
    texts: dict[str, str]

    def desk(self, who: str = "ann", **more: Any) -> AbstractAsyncContextManager[Desk]:
        """A client of `who`."""
        return desk(self.url, self.texts[who], **more)


async def make_keys(keys: Keys) -> dict[str, str]:
    """A key for each of OWNERS."""
    return {owner: (await keys.create(owner, scopes)).text for owner, scopes in OWNERS.items()}


@asynccontextmanager
async def opened(
    world: FakeWorld, keys: Keys, texts: dict[str, str], limits: Limits | None = None
) -> AsyncIterator[Door]:
    """A gateway over `world`; HeyGem's jobs go to echo there."""
    made = parts_of(world, keys)
    parts = structs.replace(made, settings=structs.replace(made.settings, heygem=HeygemSettings(endpoint="echo")))
    async with (
        running_gateway(parts, limits, world.time) as gateway,
        served(create_app(parts, gateway), **SOCKETS) as url,
    ):
        yield Door(world=world, parts=parts, keys=keys, url=url, texts=texts)


@pytest.fixture
def limits() -> Limits:
    """A test's own, by a parametrization of this name."""
    return Limits()


@pytest.fixture
async def door(tmp_path: Path, limits: Limits) -> AsyncIterator[Door]:
    async with fake_world(tmp_path) as world:
        keys = Keys(world.bus.keys, world.time, Dice(), world.time.seconds)
        async with opened(world, keys, await make_keys(keys), limits) as door:
            yield door
