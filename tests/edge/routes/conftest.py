"""The HTTP face over the memory bus, served by a real uvicorn."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from msgspec import Struct

from edge.app import create_app
from edge.facades.gateway.gateway import running_gateway
from edge.facades.gateway.relays import Relays
from edge.facades.heygem.placing import Placing
from edge.parts import Parts
from edge.power.caller import Means
from edge.power.controller import PowerController
from edge.power.drivers import build as drivers
from edge.power.sight import Sight
from edge.services.audit import Audit
from edge.services.books import Books
from edge.services.joining import Door, Joining, Welcome
from edge.services.keys import Keys
from edge.services.stream_limits import StreamLimits
from edge.services.tokens import Tokens
from edge.services.usage import Accounts
from edge.settings import CorsSettings, EdgeSettings
from edge.strangers import Proxies
from schemas.access import CLIENT_SCOPES, Scope
from schemas.switch import CommandHost, Price
from tests.edge.services.world import SECRET, Dice, FakeWorld, fake_world
from tests.edge.store.served import open_client, served


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


WELCOME = Welcome(edge="https://e:8443", broker="tls://e:4222")
ORIGIN = "https://app.example.com"  # whose pages may call
STREAMS_PER_KEY, STREAMS_PER_OWNER = 20, 30
OWNERS = {"ann": CLIENT_SCOPES, "bob": CLIENT_SCOPES, "admin": (Scope.ADMIN,), "runner": (Scope.RUNNER,)}


def switched(made: FakeWorld) -> PowerController:
    """`gpu-9` is declared and stays dark: its switch answers, and nothing runs there."""
    declared = {"gpu-9": CommandHost(on=("true",), off=("true",), state=("false",))}
    tools = drivers.Means(client=httpx.AsyncClient(verify=False), environ={}, now=made.time, fresh_id=lambda: "id")
    chance = Means(now=made.time, running=made.time.seconds, fresh_id=lambda: "id", dice=lambda: 0.0)
    sight = Sight(made.bus, made.index, made.hosts, made.catalog, made.time)
    return PowerController(made.bus.power, sight, declared, drivers.build(declared, tools), chance)


def _hex(dice: Dice) -> str:
    return dice(8).hex()


def parts_of(made: FakeWorld, keys: Keys, door: Door | None = None) -> Parts:
    power = switched(made)
    prices = {"gpu-9": Price(per_hour=2.0)}
    return Parts(
        settings=EdgeSettings(cors=CorsSettings(origins=(ORIGIN,))),
        bus=made.bus,
        store=made.store,
        assets=made.assets,
        uploads=made.uploads,
        catalog=made.catalog,
        index=made.index,
        window=made.window,
        gate=made.gate,
        supply=made.supply,
        fetches=made.fetches,
        webhooks=made.webhooks,
        intake=made.intake,
        follower=made.follower,
        viewer=made.viewer,
        hosts=made.hosts,
        keys=keys,
        tokens=Tokens(SECRET, keys.by_id, made.time),
        signer=made.signer,
        placing=Placing(None, Path(), made.bus.records, made.store, made.index),
        joining=Joining(made.bus, keys, door, WELCOME, made.time),
        erasures=made.erasures(keys),
        quotas=made.quotas,
        power=power,
        usage=Accounts(made.bus.usage, power.records, prices, made.time),
        books=Books(made.bus.usage, made.index, power.records, prices),
        audit=Audit(made.bus.audit, made.time, Dice()),
        forms=made.folder,
        proxies=Proxies(("127.0.0.1",)),
        relays=Relays(partial(_hex, Dice()), made.time),
        streams=StreamLimits("event streams", STREAMS_PER_KEY, STREAMS_PER_OWNER),
        sockets=StreamLimits("gateway sockets", STREAMS_PER_KEY, STREAMS_PER_OWNER),
    )


@asynccontextmanager
async def face_at(folder: Path, door: Door | None = None) -> AsyncIterator[Face]:
    """A served edge that keeps its files in `folder`; hosts may join by `door`."""
    async with fake_world(folder) as made:
        keys = Keys(made.bus.keys, made.time, Dice(), made.time.seconds)
        texts = {owner: (await keys.create(owner, scopes)).text for owner, scopes in OWNERS.items()}
        parts = parts_of(made, keys, door)
        async with running_gateway(parts) as gateway, served(create_app(parts, gateway)) as url:
            clients = {
                name: open_client(url, headers={"Authorization": f"Bearer {text}"}, timeout=20)
                for name, text in texts.items()
            }
            clients["anyone"] = open_client(url, timeout=20)
            yield Face(world=made, keys=keys, url=url, texts=texts, **clients)
            for client in clients.values():
                await client.aclose()


@pytest.fixture
async def face(tmp_path: Path) -> AsyncIterator[Face]:
    async with face_at(tmp_path) as made:
        yield made
