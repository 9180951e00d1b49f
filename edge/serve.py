"""One edge process: the composition root. Services are made, their tasks run, and HTTP is served until the signal."""

import os
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import anyio
import httpx
import structlog
import uvicorn
from anyio.abc import TaskGroup

from bus.connection import open_edge
from bus.port import Bus
from edge.app import create_app
from edge.parts import Parts
from edge.power.caller import Means
from edge.power.controller import PowerController
from edge.power.drivers import build as drivers
from edge.power.sight import Sight
from edge.services.assets import Assets
from edge.services.catalog import Catalog, load_folder
from edge.services.clock import utc_now
from edge.services.follow import Follower
from edge.services.gate import Gate
from edge.services.hosts import HostWatch
from edge.services.index import Index
from edge.services.intake import Intake
from edge.services.keys import Keys
from edge.services.reconciler import Reconciler
from edge.services.scene import Hourly, Rules, Scene
from edge.services.view import Viewer
from edge.services.window import Window
from edge.settings import EdgeSettings
from edge.store.directory import open_directory
from edge.store.port import Store

LAST_PUBLISHES_S = 2.0
BACKLOG = 1024  # connections that wait to be accepted
GRACEFUL_S = 3  # open streams are cut after this: their clients resume
# Longer than clients and proxies keep an idle connection (httpx 5, aiohttp 15, load balancers 60): who closes first
# is never the one that may be spoken to at that moment.
KEEP_ALIVE_S = 75

log = structlog.get_logger()


async def assemble(
    settings: EdgeSettings, bus: Bus, store: Store, client: httpx.AsyncClient
) -> tuple[Parts, Reconciler]:
    """The services of one edge, wired. Nothing runs yet."""
    catalog = Catalog(bus, tuple(endpoint for folder in settings.endpoints for endpoint in load_folder(folder)))
    await catalog.refresh()
    index = Index(settings.data / "index.sqlite", bus.records)
    window = Window(bus.queue, bus.records, index, catalog.slots, utc_now)
    assets = Assets(bus, store, index, utc_now, settings.max_asset_bytes)
    hosts = HostWatch(bus, catalog, utc_now)
    viewer = Viewer(bus.feed, index, window, hosts)
    gate = Gate(bus.link, utc_now, allow_unsynced=settings.allow_unsynced)
    parts = Parts(
        settings=settings,
        bus=bus,
        store=store,
        assets=assets,
        catalog=catalog,
        index=index,
        window=window,
        gate=gate,
        intake=Intake(bus, gate, catalog, assets, index, window, utc_now, os.urandom),
        follower=Follower(bus, viewer, hosts),
        viewer=viewer,
        hosts=hosts,
        keys=Keys(bus.keys, utc_now, os.urandom, time.monotonic),
        power=_power(settings, Sight(bus, index, hosts, catalog, utc_now), bus, client),
    )
    parts.power.listen(hosts.tell)
    hosts.ask_power(parts.power.prospect)
    return parts, Reconciler(_scene(settings, parts), period_s=settings.reconcile_every_s)


def _power(settings: EdgeSettings, sight: Sight, bus: Bus, client: httpx.AsyncClient) -> PowerController:
    """The controller of the declared hosts. Raises DriverMissing."""
    means = drivers.Means(client=client, environ=os.environ, now=utc_now, fresh_id=_fresh_id)
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
        now=utc_now,
        hourly=Hourly(rules.check_every, utc_now()),
        power=parts.power,
        rules=rules,
    )


def start(tasks: TaskGroup, parts: Parts, reconciler: Reconciler) -> None:
    """Start everything that runs beside the requests."""
    runs = (parts.index.run, parts.window.run, parts.hosts.run, parts.follower.run, parts.power.run, reconciler.run)
    for run in runs:
        tasks.start_soon(run)


class CannotServe(Exception):
    """The edge cannot start as it is set up; the message says what to change."""


async def serve(settings: EdgeSettings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises CannotServe, EndpointInvalid, StoreError, and BusError when the broker cannot be reached at start.
    """
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotServe(
            f"the data folder {settings.data} cannot be made ({error.strerror}): choose another"
        ) from error
    listening = _listen(settings)
    async with _services(settings) as parts:
        first = await parts.keys.bootstrap()
        if first is not None:
            print(f"first admin key (shown once): {first.text}", flush=True)  # noqa: T201 - meant for a person's eyes
        await _http(settings, parts, listening)


def _listen(settings: EdgeSettings) -> socket.socket:
    """The socket a parent handed down, or our own. Taken before anything else is started."""
    if settings.fd is not None:
        return socket.socket(fileno=settings.fd)
    family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
    try:
        return socket.create_server((settings.bind, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        why = f"{settings.bind} port {settings.port} cannot be had ({error.strerror})"
        raise CannotServe(f"{why}: choose another with LAMPLIGHTER_BIND or LAMPLIGHTER_PORT") from error


@asynccontextmanager
async def _services(settings: EdgeSettings) -> AsyncIterator[Parts]:
    async with (
        open_edge(settings.broker) as bus,
        open_directory(settings.data / "assets") as store,
        httpx.AsyncClient() as client,
    ):
        parts, reconciler = await assemble(settings, bus, store, client)
        async with anyio.create_task_group() as tasks:
            start(tasks, parts, reconciler)
            yield parts
            with anyio.move_on_after(LAST_PUBLISHES_S):
                await parts.window.idle()
            tasks.cancel_scope.cancel()


async def _http(settings: EdgeSettings, parts: Parts, listening: socket.socket) -> None:
    config = uvicorn.Config(
        create_app(parts),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACEFUL_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        ws="websockets-sansio",
        ws_max_size=1024 * 1024,
        ws_ping_interval=20,
        proxy_headers=False,  # nothing here goes by what a proxy says of its client
    )
    address, port, *_ = listening.getsockname()
    log.info("serving", bind=address, port=port, data=str(settings.data))
    await uvicorn.Server(config).serve([listening])
