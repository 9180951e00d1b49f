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

from bus.open import open_edge
from bus.secret_files import make_private_folder
from bus.server.config import TlsFiles
from edge.app import create_app
from edge.container import HttpClients, assemble_services, start_tasks
from edge.core.clock import utc_now
from edge.core.installation import check_store_fingerprint
from edge.facades.gateway.gateway import run_gateway
from edge.facades.heygem.auth import KeylessPort
from edge.hosts.enrollment import AdvertisedAddresses
from edge.http.dependencies import EdgeServices
from edge.outbound import ssrf_guard
from edge.outbound.url_policy import AllowList
from edge.server.bounded_server import make_server, make_server_context
from edge.settings import EdgeSettings, HeygemSettings
from edge.store.factory import open_store
from edge.tls import advertised_addresses, public_certificate
from schemas.environment import bypass_proxies_for_loopback
from schemas.installation import BY_EDGE

LAST_PUBLISHES_TIMEOUT_S = 2.0
ACCEPT_BACKLOG = 1024  # connections that wait to be accepted
log = structlog.get_logger()


class EdgeStartError(Exception):
    """The edge cannot start as it is set up; the message says what to change."""


async def serve(settings: EdgeSettings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises CannotServe, EndpointInvalid, StoreError, and BusError when the broker cannot be reached at start.
    """
    try:
        make_private_folder(settings.data)
    except OSError as error:
        raise EdgeStartError(
            f"the data folder {settings.data} cannot be made ({error.strerror}): choose another"
        ) from error
    listening = _listen(settings)
    # What the socket says counts: one that was handed down may hear more than `bind`.
    settings = structs.replace(settings, bind=listening.getsockname()[0])
    tls, told = await anyio.to_thread.run_sync(_load_public_tls, settings)
    public = _listen_public(settings.public.listen) if settings.public.listen else None
    keyless = _listen_keyless(settings.heygem)
    async with _running_services(settings, told) as parts, run_gateway(parts) as gateway:
        first = await parts.api_keys.bootstrap()
        if first is not None:
            await parts.audit.key_made_at_start(first.key, BY_EDGE)
            print(f"first admin key (shown once): {first.text}", flush=True)  # noqa: T201 - meant for a person's eyes
        app = create_app(parts, gateway)
        shared = make_server_context(settings.server, parts.client_events)
        servers = [(make_server(app, shared), listening)]
        if public is not None:
            pinned = told is not None and told.edge_pin is not None
            servers.append((make_server(app, shared, tls, pinned=pinned), public))
        if keyless is not None:
            servers.append((make_server(KeylessPort(app), shared), keyless))
        gc.collect()
        gc.freeze()  # full collections pass over what the start made: they took 0.1 to 0.2 s, while nobody was served
        await _serve_http(servers, settings)


def _listen(settings: EdgeSettings) -> socket.socket:
    """The socket a parent handed down, or our own. Taken before anything else is started."""
    if settings.fd is not None:
        return socket.socket(fileno=settings.fd)
    return _bind_socket(settings.bind, settings.port, "LAMPLIGHTER_BIND or LAMPLIGHTER_PORT")


def _load_public_tls(settings: EdgeSettings) -> tuple[TlsFiles | None, AdvertisedAddresses | None]:
    try:
        tls = public_certificate(settings, utc_now())
        return tls, advertised_addresses(settings, tls)
    except (OSError, ValueError) as error:
        raise EdgeStartError(
            f"the certificate cannot be read ({error}): correct cert and key under [public]"
        ) from error


def _listen_public(place: str) -> socket.socket:
    host, _, port = place.rpartition(":")
    if not port.isdecimal():
        raise EdgeStartError(f"public.listen is {place!r}: write address:port, as in 0.0.0.0:8443")
    return _bind_socket(host.strip("[]"), int(port), "public.listen")


def _listen_keyless(heygem: HeygemSettings) -> socket.socket | None:
    wanted = heygem.keyless_port if heygem.enabled else 0
    return _bind_socket("127.0.0.1", wanted, "heygem.keyless_port") if wanted else None


def _bind_socket(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=ACCEPT_BACKLOG)
    except OSError as error:
        why = f"{host} port {port} cannot be had ({error.strerror})"
        raise EdgeStartError(f"{why}: choose another with {setting}") from error


@asynccontextmanager
async def _running_services(settings: EdgeSettings, told: AdvertisedAddresses | None) -> AsyncIterator[EdgeServices]:
    async with (
        open_edge(settings.broker) as bus,
        open_store(settings.store, settings.data) as store,
        httpx.AsyncClient(mounts=bypass_proxies_for_loopback()) as client,
        ssrf_guard.guarded_client(AllowList(settings.outbound.allow)) as outside,
    ):
        survey = await store.survey()
        await check_store_fingerprint(
            bus.installation_constants, survey.fingerprint, utc_now, replace=settings.store.replace
        )
        parts, reconciler = await assemble_services(settings, bus, store, HttpClients(client, outside), told)
        await parts.enrollment.start()
        async with anyio.create_task_group() as tasks:
            start_tasks(tasks, parts, reconciler)
            yield parts
            with anyio.move_on_after(LAST_PUBLISHES_TIMEOUT_S):
                await parts.publish_window.wait_until_idle()
            tasks.cancel_scope.cancel()


async def _serve_http(servers: Sequence[tuple[uvicorn.Server, socket.socket]], settings: EdgeSettings) -> None:
    """Serve on every socket until the signal; a second one cuts what is still open."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as beside:
            beside.start_soon(_stop_on_signals, signals, [one for one, _ in servers])
            async with anyio.create_task_group() as serving:
                for one, listening in servers:
                    address, port, *_ = listening.getsockname()
                    tls = one.config.is_ssl
                    log.info("serving", bind=address, port=port, data=str(settings.data), tls=tls)
                    serving.start_soon(one.serve, [listening])
            beside.cancel_scope.cancel()


async def _stop_on_signals(signals: AsyncIterator[signal.Signals], servers: Sequence[uvicorn.Server]) -> None:
    async for _ in signals:
        for one in servers:
            one.force_exit = one.should_exit
            one.should_exit = True
