"""The HTTP face over the memory bus, served by a real uvicorn."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from msgspec import Struct

from edge.app import create_app
from edge.parts import Parts
from edge.services.keys import Keys
from edge.settings import EdgeSettings
from schemas.access import CLIENT_SCOPES, Scope
from tests.edge.services.world import Dice, FakeWorld, fake_world
from tests.edge.store.served import served


class Face(Struct, frozen=True, kw_only=True):
    """One edge. `ann` and `bob` are ordinary clients, `anyone` has no key."""

    world: FakeWorld
    keys: Keys
    url: str
    texts: dict[str, str]
    ann: httpx.AsyncClient
    bob: httpx.AsyncClient
    admin: httpx.AsyncClient
    runner: httpx.AsyncClient
    anyone: httpx.AsyncClient


OWNERS = {"ann": CLIENT_SCOPES, "bob": CLIENT_SCOPES, "admin": (Scope.ADMIN,), "runner": (Scope.RUNNER,)}


def parts_of(made: FakeWorld, keys: Keys) -> Parts:
    return Parts(
        settings=EdgeSettings(),
        bus=made.bus,
        store=made.store,
        assets=made.assets,
        catalog=made.catalog,
        index=made.index,
        window=made.window,
        gate=made.gate,
        intake=made.intake,
        follower=made.follower,
        viewer=made.viewer,
        hosts=made.hosts,
        keys=keys,
    )


@pytest.fixture
async def face(tmp_path: Path) -> AsyncIterator[Face]:
    async with fake_world(tmp_path) as made:
        keys = Keys(made.bus.keys, made.time, Dice(), made.time.seconds)
        texts = {owner: (await keys.create(owner, scopes)).text for owner, scopes in OWNERS.items()}
        async with served(create_app(parts_of(made, keys))) as url:
            clients = {
                name: httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {text}"}, timeout=20)
                for name, text in texts.items()
            }
            clients["anyone"] = httpx.AsyncClient(base_url=url, timeout=20)
            yield Face(world=made, keys=keys, url=url, texts=texts, **clients)
            for client in clients.values():
                await client.aclose()
