"""One edge process: listening sockets, services and their tasks, and HTTP until a signal.

Start here to follow a start and a shutdown: `serve` is called by `lamplighter edge` and `lamplighter up`.
"""

import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import httpx2
import structlog
import uvicorn
from msgspec import structs

from bus.open import open_edge
from bus.secret_files import make_private_folder
from bus.server.config import TlsFiles
from bus.server.process import BrokerReloadFailed, reload_broker
from bus.spans import SpanRecorder, TracesUnavailable, open_spans
from edge.app import create_app, make_routes
from edge.container import assemble_services, start_tasks
from edge.core.clients import TrustedProxies
from edge.core.clock import utc_now
from edge.core.installation import check_store_fingerprint
from edge.domain import EdgeResources, HttpClients
from edge.facades.gateway.gateway import GatewayLimits, run_gateway
from edge.facades.heygem.facade import HeygemFacade
from edge.facades.heygem.protocol import EASY_PREFIX, TTS_PREFIX, VENDOR_TTS_PREFIX, KeylessPort
from edge.hosts.enrollment import AdvertisedAddresses
from edge.http.dependencies import EdgeServices
from edge.outbound import AllowList, guarded_client
from edge.server.bounded_server import make_server, make_server_context
from edge.server.certificate import (
    CertificateUnusable,
    ServedCertificate,
    check_key_pair,
    load_or_create_certificate,
    read_pem,
    watch_certificate,
)
from edge.settings import EdgeSettings, PublicSettings
from edge.store.directory import open_store
from schemas.certificates import CertificateInfo, first_certificate, read_certificate
from schemas.installation import BY_EDGE
from schemas.outbound_rules import bypass_proxies_for_loopback

LAST_PUBLISHES_TIMEOUT_S = 2.0
LOOPBACK = "127.0.0.1"  # of the port without keys
ACCEPT_BACKLOG = 1024  # connections that the kernel queues before accept

log = structlog.get_logger()


class EdgeStartError(Exception):
    """The settings keep the edge from starting; the message says what to change."""


async def serve(settings: EdgeSettings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises EdgeStartError, EndpointInvalid, StoreError, SecretKeysUnusable, and BusError when the broker cannot be
    reached at start.
    """
    gc.freeze()  # a collection would look through all that was imported, 30 ms each time
    try:
        make_private_folder(settings.data)
    except OSError as error:
        reason = f"the data folder {settings.data} cannot be created ({error.strerror})"
        raise EdgeStartError(f"{reason}: choose another with LAMPLIGHTER_DATA") from error
    keyless_ports = _list_keyless_ports(settings)
    listening = _listen(settings)
    # A socket from a parent process may be bound to another address than `bind`.
    settings = structs.replace(settings, bind=listening.getsockname()[0])
    tls, addresses = await anyio.to_thread.run_sync(_load_public_tls, settings)
    public = _listen_public(settings.public.listen) if settings.public.listen else None
    pinned = addresses is not None and bool(addresses.broker) and addresses.edge_pin is not None
    certificate = ServedCertificate(tls, pinned=pinned) if public is not None and tls is not None else None
    keyless = [(port, _bind_socket(LOOPBACK, port.number, port.setting)) for port in keyless_ports]
    async with (
        _running_services(settings, addresses, _watched_certificates(settings, tls)) as (services, heygem),
        run_gateway(
            services,
            GatewayLimits(
                sockets_per_key=settings.server.sockets_per_key, sockets_per_owner=settings.server.sockets_per_owner
            ),
            heygem_endpoint=settings.heygem.endpoint,
        ) as gateway,
    ):
        first = await services.api_keys.bootstrap()
        if first is not None:
            await services.audit.key_made_at_start(first.key, BY_EDGE)
            print(f"first admin key (shown once): {first.text}", flush=True)  # noqa: T201 - meant for a person's eyes
        routes = make_routes(
            heygem=heygem is not None, cors_origins=settings.cors.origins, console_settings=settings.console
        )
        app = create_app(routes, services, gateway, heygem=heygem)
        context = make_server_context(settings.server, services.client_events)
        servers = [(make_server(app, context), listening)]
        if public is not None:
            servers.append((make_server(app, context, certificate), public))
        servers += [(make_server(KeylessPort(app, port.prefix, port.mount), context), bound) for port, bound in keyless]
        gc.collect()
        gc.freeze()  # otherwise full collections block the event loop
        async with anyio.create_task_group() as renewing:
            if certificate is not None:
                renewing.start_soon(watch_certificate, certificate, partial(_on_renewed, settings, tls, services))
            await _serve_http(servers, settings)
            renewing.cancel_scope.cancel()


def _watched_certificates(settings: EdgeSettings, tls: TlsFiles | None) -> Mapping[str, Path]:
    """Return the certificate files whose end `/metrics` tells, by server."""
    edge = tls.cert if tls is not None else None
    files = {"edge": edge, "broker": settings.public.broker_cert or (edge if settings.public.broker else None)}
    return {server: path for server, path in files.items() if path is not None}


async def _on_renewed(settings: EdgeSettings, tls: TlsFiles | None, services: EdgeServices) -> None:
    """Make tokens name the renewed certificate, and the broker read it again: it may serve the same files."""
    try:
        services.enrollment.update_addresses(await anyio.to_thread.run_sync(advertised_addresses, settings, tls))
        if settings.enrollment.reload_command:
            await reload_broker(settings.enrollment.reload_command)
    except (CertificateUnusable, BrokerReloadFailed) as error:
        log.warning("certificate_renewal_incomplete", error=str(error))


def _listen(settings: EdgeSettings) -> socket.socket:
    """Return the socket of a parent process, or bind our own. Runs before anything else starts."""
    if settings.fd is not None:
        return socket.socket(fileno=settings.fd)
    return _bind_socket(settings.bind, settings.port, "LAMPLIGHTER_BIND or LAMPLIGHTER_PORT")


def _load_public_tls(settings: EdgeSettings) -> tuple[TlsFiles | None, AdvertisedAddresses | None]:
    try:
        tls = public_certificate(settings, utc_now())
        return tls, advertised_addresses(settings, tls)
    except CertificateUnusable as error:
        raise EdgeStartError(str(error)) from error
    except OSError as error:
        folder = settings.data / "tls"
        raise EdgeStartError(
            f"the certificate cannot be created in {folder} ({error.strerror}): correct its owner and permissions"
        ) from error


def public_certificate(settings: EdgeSettings, now: datetime) -> TlsFiles | None:
    """Return the certificate to serve: the operator's, or one created once in `data`/tls. None without HTTPS.

    Blocking. Raises CertificateUnusable, and OSError when a new certificate cannot be written.
    """
    public = settings.public
    if public.cert and public.key:
        files = TlsFiles(public.cert, public.key)
        check_key_pair(files, "public.cert", "public.key", "correct cert and key in [public]")
        return files
    if not public.listen:
        return None
    files = load_or_create_certificate(settings.data / "tls", public.names, now)
    remedy = "restore both files, or delete both for a new certificate, with which every host enrolls again"
    check_key_pair(files, "public.cert", "public.key", remedy)
    return files


def advertised_addresses(settings: EdgeSettings, tls: TlsFiles | None) -> AdvertisedAddresses | None:
    """Return the addresses and pins for join tokens; None if the address of the edge is unknown.

    Blocking. Raises CertificateUnusable.
    """
    public = settings.public
    if not public.url:
        return None
    broker = public.broker if settings.enrollment.nats_conf_dir else ""
    cert = tls.cert if tls else None
    edge_shown = _pinned_certificate(public, public.url, cert, "public.cert")
    broker_setting = "public.broker_cert" if public.broker_cert else "public.cert"
    broker_shown = _pinned_certificate(public, broker, public.broker_cert or cert, broker_setting)
    return AdvertisedAddresses(
        edge=public.url,
        broker=broker,
        edge_pin=edge_shown and edge_shown.sha256,
        broker_pin=broker_shown and broker_shown.sha256,
        edge_key_pin=edge_shown and edge_shown.key_sha256,
    )


def _pinned_certificate(public: PublicSettings, url: str, cert: Path | None, setting: str) -> CertificateInfo | None:
    if not (public.pin and url.startswith(("https:", "tls:")) and cert):
        return None
    remedy = f"correct {setting.removeprefix('public.')} in [public]"
    pem = read_pem(cert, setting, remedy)
    try:
        return read_certificate(first_certificate(pem))
    except ValueError as error:
        raise CertificateUnusable(f"{setting} {cert} is not a certificate as PEM: {remedy}") from error


def _listen_public(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return _bind_socket(host.strip("[]"), int(port), "public.listen")


class _LoopbackPort(NamedTuple):
    """A port of 127.0.0.1 that asks for no key. The paths below `prefix` there are those below `mount` in the app."""

    number: int
    setting: str
    prefix: str
    mount: str


def _list_keyless_ports(settings: EdgeSettings) -> list[_LoopbackPort]:
    """Return the ports without keys that are open. Raises EdgeStartError if a trusted proxy would reach them."""
    heygem = settings.heygem
    ports = [
        _LoopbackPort(heygem.keyless_port, "heygem.keyless_port", EASY_PREFIX, EASY_PREFIX),
        _LoopbackPort(heygem.tts_port, "heygem.tts_port", VENDOR_TTS_PREFIX, TTS_PREFIX),
    ]
    given = [port for port in ports if port.number and heygem.enabled]
    if given and LOOPBACK in TrustedProxies(settings.server.trusted_proxies):
        raise EdgeStartError(
            f"{given[0].setting} answers programs of {LOOPBACK} without a key, and server.trusted_proxies has a proxy "
            "at that address: let the proxy connect from 127.0.0.2 and trust that (docs/proxy.md), or close the port"
        )
    return given


def _bind_socket(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=ACCEPT_BACKLOG)
    except OSError as error:
        reason = f"{host} port {port} cannot be opened ({error.strerror})"
        raise EdgeStartError(f"{reason}: choose another with {setting}") from error


@asynccontextmanager
async def _open_spans(settings: EdgeSettings) -> AsyncIterator[SpanRecorder]:
    try:
        async with open_spans(settings.traces, "lamplighter-edge") as spans:
            yield spans
    except TracesUnavailable as error:
        raise EdgeStartError(str(error)) from error


@asynccontextmanager
async def _running_services(
    settings: EdgeSettings, addresses: AdvertisedAddresses | None, certificates: Mapping[str, Path]
) -> AsyncIterator[tuple[EdgeServices, HeygemFacade | None]]:
    """Run all services for the duration of the block."""
    # Reading the system's certificates takes 20 ms, so both clients share them, unless the environment names others.
    tls = httpx2.create_ssl_context(trust_env=False)
    names_others = any(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    async with (
        open_edge(settings.broker) as bus,
        open_store(settings.store, settings.data) as store,
        httpx2.AsyncClient(verify=True if names_others else tls, mounts=bypass_proxies_for_loopback()) as operator,
        guarded_client(AllowList(settings.outbound.allow), tls=tls) as untrusted,
        _open_spans(settings) as spans,
    ):
        survey = await store.survey()
        await check_store_fingerprint(
            bus.installation_constants, survey.fingerprint, utc_now, replace=settings.store.replace
        )
        clients = HttpClients(operator, untrusted)
        edge = await assemble_services(EdgeResources(settings, bus, store, clients, addresses, certificates, spans))
        await edge.services.enrollment.start()
        async with anyio.create_task_group() as tasks:
            start_tasks(tasks, edge)
            yield edge.services, edge.heygem
            with anyio.move_on_after(LAST_PUBLISHES_TIMEOUT_S):
                await edge.services.publish_window.wait_until_idle()
            tasks.cancel_scope.cancel()


async def _serve_http(servers: Sequence[tuple[uvicorn.Server, socket.socket]], settings: EdgeSettings) -> None:
    """Serve on every socket until a signal. A second signal closes open connections at once."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as background:
            background.start_soon(_stop_on_signals, signals, [server for server, _ in servers])
            async with anyio.create_task_group() as serving:
                for server, listening in servers:
                    address, port, *_ = listening.getsockname()
                    tls = server.config.is_ssl
                    log.info("serving", bind=address, port=port, data=str(settings.data), tls=tls)
                    serving.start_soon(server.serve, [listening])
            background.cancel_scope.cancel()


async def _stop_on_signals(signals: AsyncIterator[signal.Signals], servers: Sequence[uvicorn.Server]) -> None:
    async for _ in signals:
        for server in servers:
            server.force_exit = server.should_exit
            server.should_exit = True
