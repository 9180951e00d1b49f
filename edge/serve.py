"""One edge process: the services are made, their tasks run, and HTTP is served until the signal."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx
import structlog
import uvicorn

from bus.connection import open_edge
from edge.app import create_app
from edge.assembly import assemble, start
from edge.parts import Parts
from edge.settings import EdgeSettings
from edge.store.directory import open_directory

LAST_PUBLISHES_S = 2.0
BACKLOG = 1024  # connections that wait to be accepted
GRACEFUL_S = 3  # open streams are cut after this: their clients resume
# Longer than clients and proxies keep an idle connection (httpx 5, aiohttp 15, load balancers 60): who closes first
# is never the one that may be spoken to at that moment.
KEEP_ALIVE_S = 75

log = structlog.get_logger()


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
