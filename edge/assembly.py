"""The services of one edge, wired to each other (the composition root); `edge.serve` gives them a process."""

import os
import random
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import httpx
from anyio.abc import TaskGroup

from bus.port import Bus
from bus.roster import Roster
from edge.facades.gateway.relays import Relays
from edge.facades.heygem.placing import Placing
from edge.outbound.targets import Allowed
from edge.parts import Parts
from edge.power.caller import Means
from edge.power.controller import PowerController
from edge.power.drivers import build as drivers
from edge.power.sight import Sight
from edge.services.admission import Admission
from edge.services.assets import Assets
from edge.services.audit import Audit
from edge.services.books import Books
from edge.services.catalog import Catalog, load_folder
from edge.services.clock import utc_now
from edge.services.erasures import Erasures, Reach
from edge.services.estimate import Estimator
from edge.services.fetches import Chance, Fetches
from edge.services.follow import Follower
from edge.services.gate import Gate
from edge.services.hosts import HostWatch
from edge.services.index import Index
from edge.services.intake import Intake
from edge.services.joining import Joining, Welcome
from edge.services.keys import Keys
from edge.services.leases import Leases
from edge.services.quotas import Quotas
from edge.services.reconciler import Reconciler
from edge.services.scene import Hourly, Rules, Scene
from edge.services.signing import Signer, agree_secret
from edge.services.stream_limits import StreamLimits
from edge.services.supply import Supply
from edge.services.tokens import Tokens
from edge.services.uploads import Uploads
from edge.services.usage import Accounts
from edge.services.view import Viewer
from edge.services.window import Window
from edge.settings import EdgeSettings
from edge.store.partial import Partials
from edge.store.port import AssetStore
from edge.strangers import Proxies
from edge.webhooks import build as webhooks

CHANCES = webhooks.Chances(now=utc_now, running=time.monotonic, entropy=os.urandom, dice=random.random)


class Clients(NamedTuple):
    """`own`: for what the operator names, power switches. `guarded`: for what clients name, under the guard."""

    own: httpx.AsyncClient
    guarded: httpx.AsyncClient


async def assemble(
    settings: EdgeSettings, bus: Bus, store: AssetStore, clients: Clients, welcome: Welcome | None = None
) -> tuple[Parts, Reconciler]:
    """The services of one edge, wired. Nothing runs yet. `welcome`: what hosts that join are told, if they may."""
    catalog = await _catalog(settings, bus)
    index = Index(settings.data / "index.sqlite", bus.records)
    quotas = _quotas(settings, bus, index)
    window = Window(bus.queue, bus.records, index, catalog.slots, utc_now, quotas.running)
    assets = Assets(bus, store, index, utc_now, settings.max_asset_bytes, quotas, settings.trash)
    leases = Leases(bus.leases, _fresh_id(), utc_now)
    fetches = Fetches(bus, assets, leases, clients.guarded, settings.outbound, utc_now, Chance(random.random))
    supply = Supply(bus.records, assets, fetches, index, window, utc_now)
    hosts = HostWatch(bus, catalog, utc_now)
    secret = await agree_secret(bus.agreed, os.urandom, utc_now)
    signer = Signer(secret, utc_now, settings.urls)
    keys = Keys(bus.keys, utc_now, os.urandom, time.monotonic)
    viewer = Viewer(bus.feed, index, window, hosts, signer.link)
    gate = Gate(bus.link, utc_now, allow_unsynced=settings.allow_unsynced)
    admission = Admission(gate, catalog, assets, Allowed(settings.outbound.allow), utc_now, os.urandom, quotas)
    relays = Relays(_fresh_id)
    power = _power(settings, Sight(bus, index, hosts, catalog, utc_now), bus, clients.own, relays)
    intake = Intake(bus, gate, admission, assets, index, window, utc_now, os.urandom)
    uploads = _uploads(settings, assets, quotas)
    reach = Reach(bus=bus, intake=intake, assets=assets, uploads=uploads, keys=keys, index=index, quotas=quotas)
    parts = Parts(
        settings=settings,
        bus=bus,
        store=store,
        assets=assets,
        uploads=uploads,
        catalog=catalog,
        index=index,
        window=window,
        gate=gate,
        supply=supply,
        fetches=fetches,
        webhooks=webhooks.build(bus, index, viewer, clients.guarded, settings.webhooks, CHANCES),
        intake=intake,
        follower=Follower(bus, viewer, hosts),
        viewer=viewer,
        hosts=hosts,
        keys=keys,
        tokens=Tokens(secret, keys.by_id, utc_now),
        signer=signer,
        placing=Placing(_shared(settings), settings.data / "placing", bus.records, store, index),
        joining=Joining(bus, keys, _door(settings), welcome, utc_now),
        erasures=Erasures(reach, leases, utc_now, settings.trash),
        quotas=quotas,
        power=power,
        usage=Accounts(bus.usage, power.records, settings.prices, utc_now),
        books=Books(bus.usage, index, power.records, settings.prices),
        relays=relays,
        audit=Audit(bus.audit, utc_now, os.urandom),
        proxies=Proxies(settings.server.proxies),
        forms=settings.data / "forms",
        streams=StreamLimits("event streams", settings.server.streams_per_key, settings.server.streams_per_owner),
        sockets=StreamLimits("gateway sockets", settings.server.sockets_per_key, settings.server.sockets_per_owner),
    )
    await _connect(parts)
    return parts, Reconciler(_scene(settings, parts), period_s=settings.reconcile_every_s)


async def _catalog(settings: EdgeSettings, bus: Bus) -> Catalog:
    """What the broker's bucket offers, and the endpoints that the settings name."""
    catalog = Catalog(bus, tuple(endpoint for folder in settings.endpoints for endpoint in load_folder(folder)))
    await catalog.refresh()
    return catalog


async def _connect(parts: Parts) -> None:
    """Make the folder of forms, read the books, and connect the services that ask or tell one another."""
    parts.forms.mkdir(mode=0o700, exist_ok=True)
    await parts.books.open()
    parts.power.listen(parts.hosts.tell)
    parts.hosts.ask_power(parts.power.prospect, parts.power.switches)
    parts.hosts.count_by(parts.index.lines.waiting)
    parts.viewer.foretell_by(Estimator(parts.index, parts.hosts, parts.catalog, utc_now).eta)


def _quotas(settings: EdgeSettings, bus: Bus, index: Index) -> Quotas:
    own = {owner: one.quotas for owner, one in settings.owners.items()}
    return Quotas(settings.quotas, own, index, bus.assets, time.monotonic)


def _uploads(settings: EdgeSettings, assets: Assets, quotas: Quotas) -> Uploads:
    partials = Partials(settings.data / "uploads")
    limit = settings.max_asset_bytes
    uploads = Uploads(partials, assets, utc_now, os.urandom, settings.uploads, limit, quotas)
    quotas.count(uploads.promised)
    return uploads


def _shared(settings: EdgeSettings) -> Path | None:
    return settings.heygem.data_root if settings.heygem.enabled else None


def _door(settings: EdgeSettings) -> Roster | None:
    joining = settings.joining
    return Roster(settings.broker, joining.folder, joining.reload) if joining.folder and joining.reload else None


def _power(
    settings: EdgeSettings, sight: Sight, bus: Bus, client: httpx.AsyncClient, relays: Relays
) -> PowerController:
    """The controller of the declared hosts. Raises DriverMissing."""
    means = drivers.Means(client=client, environ=os.environ, now=utc_now, fresh_id=_fresh_id, relay=relays)
    chance = Means(now=utc_now, running=time.monotonic, fresh_id=_fresh_id, dice=random.random)
    return PowerController(bus.power, sight, settings.hosts, drivers.build(settings.hosts, means), chance)


def _fresh_id() -> str:
    return os.urandom(8).hex()


def _scene(settings: EdgeSettings, parts: Parts) -> Scene:
    rules = Rules(
        low_max_wait=timedelta(seconds=settings.low_max_wait_s), retention=timedelta(days=settings.retention_days)
    )
    return Scene(
        bus=parts.bus,
        index=parts.index,
        window=parts.window,
        hosts=parts.hosts,
        assets=parts.assets,
        supply=parts.supply,
        now=utc_now,
        hourly=Hourly(rules.check_every, utc_now()),
        orphans=Hourly(rules.check_every, utc_now()),
        power=parts.power,
        rules=rules,
    )


def start(tasks: TaskGroup, parts: Parts, reconciler: Reconciler) -> None:
    """Start everything that runs beside the requests."""
    runs = (
        parts.index.run,
        parts.uploads.run,
        parts.window.run,
        parts.hosts.run,
        parts.follower.run,
        parts.fetches.run,
        parts.supply.run,
        parts.webhooks.courier.run,
        parts.placing.run,
        parts.power.run,
        parts.books.run,
        parts.keys.run,
        parts.erasures.run,
        reconciler.run,
    )
    for run in runs:
        tasks.start_soon(run)
