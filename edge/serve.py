"""One edge process: the services are made, their tasks run, and HTTP is served until the signal."""

import gc
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import httpx
import structlog
import uvicorn
from msgspec import structs

from bus.connection import open_edge
from bus.private import private_folder
from bus.users import Tls
from edge.app import create_app
from edge.assembly import Clients, assemble, start
from edge.facades.gateway.gateway import running_gateway
from edge.facades.heygem.keyless import KeylessPort
from edge.outbound import guard
from edge.outbound.targets import Allowed
from edge.parts import Parts
from edge.public import certificate, welcome
from edge.server.server import server, share
from edge.services.agreed import agree_on_store
from edge.services.clock import utc_now
from edge.services.joining import Welcome
from edge.settings import EdgeSettings, HeygemSettings
from edge.store.opening import open_store
from schemas.audit import BY_EDGE
from schemas.loopback import past_proxies

LAST_PUBLISHES_S = 2.0
BACKLOG = 1024  # connections that wait to be accepted
log = structlog.get_logger()


class CannotServe(Exception):
    """The edge cannot start as it is set up; the message says what to change."""


async def serve(settings: EdgeSettings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises CannotServe, EndpointInvalid, StoreError, and BusError when the broker cannot be reached at start.
    """
    try:
        private_folder(settings.data)
    except OSError as error:
        raise CannotServe(
            f"the data folder {settings.data} cannot be made ({error.strerror}): choose another"
        ) from error
    listening = _listen(settings)
    # What the socket says counts: one that was handed down may hear more than `bind`.
    settings = structs.replace(settings, bind=listening.getsockname()[0])
    tls, told = await anyio.to_thread.run_sync(_public, settings)
    public = _listen_publicly(settings.public.listen) if settings.public.listen else None
    keyless = _listen_keyless(settings.heygem)
    async with _services(settings, told) as parts, running_gateway(parts) as gateway:
        first = await parts.keys.bootstrap()
        if first is not None:
            await parts.audit.key_made_at_start(first.key, BY_EDGE)
            print(f"first admin key (shown once): {first.text}", flush=True)  # noqa: T201 - meant for a person's eyes
        app = create_app(parts, gateway)
        shared = share(settings.server, parts.strangers)
        servers = [(server(app, shared), listening)]
        if public is not None:
            pinned = told is not None and told.edge_pin is not None
            servers.append((server(app, shared, tls, pinned=pinned), public))
        if keyless is not None:
            servers.append((server(KeylessPort(app), shared), keyless))
        gc.collect()
        gc.freeze()  # full collections pass over what the start made: they took 0.1 to 0.2 s, while nobody was served
        await _http(servers, settings)


def _listen(settings: EdgeSettings) -> socket.socket:
    """The socket a parent handed down, or our own. Taken before anything else is started."""
    if settings.fd is not None:
        return socket.socket(fileno=settings.fd)
    return _bound(settings.bind, settings.port, "LAMPLIGHTER_BIND or LAMPLIGHTER_PORT")


def _public(settings: EdgeSettings) -> tuple[Tls | None, Welcome | None]:
    try:
        tls = certificate(settings, utc_now())
        return tls, welcome(settings, tls)
    except (OSError, ValueError) as error:
        raise CannotServe(f"the certificate cannot be read ({error}): correct cert and key under [public]") from error


def _listen_publicly(place: str) -> socket.socket:
    host, _, port = place.rpartition(":")
    if not port.isdecimal():
        raise CannotServe(f"public.listen is {place!r}: write address:port, as in 0.0.0.0:8443")
    return _bound(host.strip("[]"), int(port), "public.listen")


def _listen_keyless(heygem: HeygemSettings) -> socket.socket | None:
    wanted = heygem.keyless_port if heygem.enabled else 0
    return _bound("127.0.0.1", wanted, "heygem.keyless_port") if wanted else None


def _bound(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        why = f"{host} port {port} cannot be had ({error.strerror})"
        raise CannotServe(f"{why}: choose another with {setting}") from error


@asynccontextmanager
async def _services(settings: EdgeSettings, told: Welcome | None) -> AsyncIterator[Parts]:
    async with (
        open_edge(settings.broker) as bus,
        open_store(settings.store, settings.data) as store,
        httpx.AsyncClient(mounts=past_proxies()) as client,
        guard.client(Allowed(settings.outbound.allow)) as outside,
    ):
        survey = await store.survey()
        await agree_on_store(bus.agreed, survey.fingerprint, utc_now, replace=settings.store.replace)
        parts, reconciler = await assemble(settings, bus, store, Clients(client, outside), told)
        await parts.joining.start()
        async with anyio.create_task_group() as tasks:
            start(tasks, parts, reconciler)
            yield parts
            with anyio.move_on_after(LAST_PUBLISHES_S):
                await parts.window.idle()
            tasks.cancel_scope.cancel()


async def _http(servers: Sequence[tuple[uvicorn.Server, socket.socket]], settings: EdgeSettings) -> None:
    """Serve on every socket until the signal; a second one cuts what is still open."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as beside:
            beside.start_soon(_stop_at, signals, [one for one, _ in servers])
            async with anyio.create_task_group() as serving:
                for one, listening in servers:
                    address, port, *_ = listening.getsockname()
                    tls = one.config.is_ssl
                    log.info("serving", bind=address, port=port, data=str(settings.data), tls=tls)
                    serving.start_soon(one.serve, [listening])
            beside.cancel_scope.cancel()


async def _stop_at(signals: AsyncIterator[signal.Signals], servers: Sequence[uvicorn.Server]) -> None:
    async for _ in signals:
        for one in servers:
            one.force_exit = one.should_exit
            one.should_exit = True
