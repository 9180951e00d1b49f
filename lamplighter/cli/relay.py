"""`lamplighter relay`: connected to the gateway of each edge, it switches hosts on its own network when an edge asks.

The token of `relay --join` is kept in the relay's data folder for later starts.
"""

import os
import random
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import anyio.to_thread
import click
import httpx2
import msgspec
import structlog
import uvloop
from msgspec import Struct, field
from msgspec.structs import replace
from websockets import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.asyncio.client import ClientConnection, connect

from bus.secret_files import atomic_write, make_private_folder
from edge.core.clock import utc_now
from edge.power.drivers.factory import DriverDependencies, DriverUnusable, build_drivers
from lamplighter.api import TrustInvalid
from lamplighter.cli.context import REFUSED, USAGE
from lamplighter.cli.join_token import join_option, read_token
from lamplighter.cli.language import say
from lamplighter.cli.process_setup import (
    ServiceNotifier,
    exit_on_error,
    format_option,
    level_option,
    read_settings,
)
from lamplighter.cli.server_commands import config_option
from lamplighter.transport import explain_refused_certificate, find_verification_error, make_ssl_context
from runner.host.health_file import NO_HEALTH_FILE, RENEW_INTERVAL_S, HealthFile
from schemas.backoff import Backoff
from schemas.certificates import PIN_PREFIX
from schemas.credentials import JoinTokenInvalid, RelayToken, decode_relay_token
from schemas.gateway_protocol import ClientMessage, EnvelopeType, FrameUnreadable, read_frame
from schemas.host_config import AnyHostConfig
from schemas.job import Token
from schemas.outbound_rules import bypass_proxies_for_loopback, is_loopback_url
from schemas.power import NoCapacity, PowerCallFailed, PowerDriver, ReportedPower
from schemas.settings_schema import SECRET

RECONNECT_BACKOFF = Backoff(first_s=0.25, limit_s=15.0)  # jitter doubles it at most
CLOSE_CODE_UNAUTHORIZED = 4401
STOP_TIMEOUT_S = 10.0  # a call to a driver in progress is cancelled

_log = structlog.get_logger()


class RelayTarget(Struct, frozen=True):
    """The edges of a relay, and the key for them."""

    urls: tuple[str, ...] = ()
    """Addresses of the edges, as in `https://edge.example.com`."""
    key: Annotated[str, SECRET] = ""
    """An API key with the scope `relay`."""
    ca: str | None = None
    """PEM file with the certificates to trust there, in place of this machine's."""
    pin: str | None = None
    """Public key or certificate of the edge to trust, under any name: `sha256:…`, or a PEM file."""


class RelaySettings(Struct, frozen=True):
    """The settings of `lamplighter relay`: `[relay]`, and under `[hosts.NAME]` the driver of each host."""

    relay: RelayTarget = RelayTarget()
    data: Path = Path(".lamplighter/relay")
    """Folder where the token of `--join` is kept."""
    hosts: dict[Token, AnyHostConfig] = field(default_factory=dict)
    health_file: Path | None = None
    """File that is touched while an edge is connected, for `lamplighter health`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged."""
    log_format: Literal["json", "text"] = "text"
    """The format of the log."""


class RelayKeyRejected(Exception):
    """An edge rejects the relay's key."""


class RelayedHost(Struct, frozen=True):
    """The driver of a host, and the timeout of its calls in seconds."""

    driver: PowerDriver
    timeout_s: float


async def _start(driver: PowerDriver, call_id: str) -> ReportedPower:
    await driver.start(call_id)
    return ReportedPower.STARTING


async def _stop(driver: PowerDriver, call_id: str) -> ReportedPower:
    await driver.stop(call_id)
    return ReportedPower.STOPPING


async def _state(driver: PowerDriver, _: str) -> ReportedPower:
    return await driver.state()


POWER_CALLS: Mapping[str, Callable[[PowerDriver, str], Awaitable[ReportedPower]]] = {
    EnvelopeType.START: _start,
    EnvelopeType.STOP: _stop,
    EnvelopeType.STATE: _state,
}


async def serve_edge(  # noqa: PLR0913 - an edge, and callbacks for its connection
    url: str,
    key: str,
    hosts: Mapping[str, RelayedHost],
    connected: Callable[[], None] = lambda: None,
    health: HealthFile = NO_HEALTH_FILE,
    *,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve the edge at `url`, and connect again whenever the connection ends. Raises RelayKeyRejected.

    `connected` is called after each successful connection. `health` is renewed while it lasts.
    `tls`: what decides whether the certificate is trusted; None: the authorities of this machine.
    """
    where = url.rstrip("/").replace("http", "ws", 1) + "/ws"
    headers = {"Authorization": f"Bearer {key}"}
    proxy: Literal[True] | None = None if is_loopback_url(url) else True  # True: use the environment's proxy
    trust: dict[str, Any] = {"ssl": tls} if tls is not None else {}
    failures = 0
    while True:
        try:
            async with connect(where, additional_headers=headers, proxy=proxy, **trust) as socket:
                _log.info("relay_connected", url=url)
                connected()
                code = await _answer_requests(socket, hosts, health)
            failures = 0
            _raise_if_rejected(url, code == CLOSE_CODE_UNAUTHORIZED)
        except InvalidStatus as refused:
            _raise_if_rejected(url, refused.response.status_code == HTTPStatus.UNAUTHORIZED)
        except (OSError, TimeoutError, WebSocketException) as error:
            refused_tls = find_verification_error(error)
            if refused_tls is None:
                _log.info("relay_connect_failed", url=url, error=str(error))
            else:
                why = await anyio.to_thread.run_sync(explain_refused_certificate, url, refused_tls)
                _log.warning("relay_connect_failed", url=url, error=why)
        # The jitter spreads the relays of a restarted edge.
        await anyio.sleep(RECONNECT_BACKOFF.delay_s(failures, random.random()))  # noqa: S311 - not a secret
        failures += 1


def _raise_if_rejected(url: str, refused: bool) -> None:
    if refused:
        raise RelayKeyRejected(
            f"{url} rejected the key: join again with a token of `lamplighter hosts add --relay`, or correct relay.key"
        )


async def _answer_requests(
    socket: ClientConnection, hosts: Mapping[str, RelayedHost], health: HealthFile
) -> int | None:
    """Answer requests until the connection ends; return its close code."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_renew_health, health)
        try:
            async for frame in socket:
                message = _parse_request(frame)
                if message is not None:
                    tasks.start_soon(_answer_request, socket, message, hosts)
        except ConnectionClosed:
            pass  # the caller connects again
        tasks.cancel_scope.cancel()
    return socket.close_code


async def _renew_health(health: HealthFile) -> None:
    while True:
        await health.renew()
        await anyio.sleep(RENEW_INTERVAL_S)


def _parse_request(frame: str | bytes) -> ClientMessage | None:
    """Return a request to a relay, or None for the messages that all clients get."""
    try:
        message = read_frame(frame)
    except FrameUnreadable:
        return None
    return message if message.type in POWER_CALLS else None


async def _answer_request(socket: ClientConnection, message: ClientMessage, hosts: Mapping[str, RelayedHost]) -> None:
    answer = {"type": message.type, "request_id": message.request_id, "payload": message.payload}
    answer |= await _call_driver(message, hosts)
    _log.info(
        "relay_request_answered", kind=message.type, host=message.payload.get("host"), result=answer.get("result")
    )
    try:
        await socket.send(msgspec.json.encode(answer).decode())
    except ConnectionClosed:
        return  # the edge repeats the request


async def _call_driver(message: ClientMessage, hosts: Mapping[str, RelayedHost]) -> dict[str, Any]:
    """Call the host's driver and return the `result` or error fields of the answer."""
    host, call_id = str(message.payload.get("host", "")), str(message.payload.get("call_id", ""))
    relayed = hosts.get(host)
    if relayed is None:
        return {"error": True, "error_msg": f"this relay does not know {host}: declare [hosts.{host}] here"}
    try:
        with anyio.fail_after(relayed.timeout_s):
            state = await POWER_CALLS[message.type](relayed.driver, call_id)
    except NoCapacity:
        return {"result": {"state": ReportedPower.UNKNOWN, "no_capacity": True}}
    except PowerCallFailed as failed:
        return {"error": True, "error_msg": str(failed)}
    except TimeoutError:
        return {"error": True, "error_msg": f"the switch of {host} did not answer in {relayed.timeout_s:.0f} s"}
    return {"result": {"state": state, "no_capacity": False}}


ENROLLMENT_FILE = "relay.json"


class RelayEnrollmentUnreadable(Exception):
    """The kept token cannot be used; the message says what to do."""


def join_relay(settings: RelaySettings, token: str) -> None:
    """Keep the token's content with mode 0600. Blocking. Raises JoinTokenInvalid, OSError."""
    invitation = decode_relay_token(token)
    make_private_folder(settings.data)
    atomic_write(settings.data / ENROLLMENT_FILE, msgspec.json.encode(invitation))


def apply_relay_enrollment(settings: RelaySettings) -> RelaySettings:
    """Return `settings` with the kept address, key and pin, unless `[relay]` names an edge. Blocking.

    Raises RelayEnrollmentUnreadable.
    """
    file: Path = settings.data / ENROLLMENT_FILE
    if settings.relay.urls or not file.exists():
        return settings
    try:
        kept = msgspec.json.decode(file.read_bytes(), type=RelayToken)
    except (OSError, msgspec.DecodeError) as error:
        raise RelayEnrollmentUnreadable(f"{file} cannot be read ({error}): join again with a new token") from error
    pin = f"{PIN_PREFIX}{kept.edge_pin}" if kept.edge_pin else None
    return replace(settings, relay=RelayTarget(urls=(kept.edge,), key=kept.key, pin=pin))


@click.command()
@config_option
@level_option
@format_option
@join_option
def relay(config: Path, log_level: str | None, log_format: str | None, token: str | None) -> None:
    """Power hosts of this network on and off when an edge asks."""
    notifier = ServiceNotifier.from_environment(os.environ)
    settings = read_settings(RelaySettings, config, log_level, log_format)
    with exit_on_error({JoinTokenInvalid: USAGE, RelayEnrollmentUnreadable: USAGE, OSError: USAGE}):
        if token is not None:
            join_relay(settings, read_token(token))
        settings = apply_relay_enrollment(settings)
    if not settings.relay.urls or not settings.relay.key or not settings.hosts:
        why = "a relay needs --join TOKEN, or urls and key under [relay]; and [hosts.NAME] with a driver"
        click.echo(f"lamplighter: {say(why)}", err=True)
        sys.exit(USAGE)
    with exit_on_error({RelayKeyRejected: REFUSED, DriverUnusable: USAGE, TrustInvalid: USAGE}):
        uvloop.run(_serve_edges(settings, notifier))


async def _serve_edges(settings: RelaySettings, notifier: ServiceNotifier) -> None:
    """Serve all edges until SIGTERM or SIGINT. The relay is ready when the first edge has accepted it."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with (
            notifier.pinging(),
            httpx2.AsyncClient(mounts=bypass_proxies_for_loopback()) as client,
            anyio.create_task_group() as tasks,
        ):
            dependencies = DriverDependencies(
                client=client, environ=os.environ, now=utc_now, new_id=lambda: os.urandom(8).hex()
            )
            drivers = build_drivers(settings.hosts, dependencies)
            relayed = {host: RelayedHost(driver, settings.hosts[host].timeout) for host, driver in drivers.items()}
            health = HealthFile(settings.health_file)
            target = settings.relay
            for url in target.urls:
                tls = await anyio.to_thread.run_sync(make_ssl_context, url, target.ca, target.pin)
                serve = partial(serve_edge, url, target.key, relayed, notifier.ready, health, tls=tls)
                tasks.start_soon(serve)
            await anext(signals)
            notifier.stopping(STOP_TIMEOUT_S)
            tasks.cancel_scope.cancel()
