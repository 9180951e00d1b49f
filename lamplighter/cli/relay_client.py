"""A relay: it stands on a host's own network, is connected to the gateway of each edge, and presses switches there."""

import random
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Literal

import anyio
import msgspec
import structlog
from msgspec import Struct, field
from websockets import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.asyncio.client import ClientConnection, connect

from edge.power.drivers.port import NoCapacity, PowerCallFailed, PowerDriver
from schemas.environment import is_loopback_url
from schemas.gateway_protocol import ClientMessage, EnvelopeType, FrameUnreadable, read_frame
from schemas.host_config import AnyHostConfig
from schemas.ids import Token
from schemas.power import ReportedPower

RECONNECT_BACKOFF_MIN_S, RECONNECT_BACKOFF_MAX_S = 0.5, 30.0
CLOSE_CODE_UNAUTHORIZED = 4401

_log = structlog.get_logger()


class RelayTarget(Struct, frozen=True):
    """`urls`: every edge, as in https://edge.example.com. `key` has the scope `relay`."""

    urls: tuple[str, ...] = ()
    key: str = ""


class RelaySettings(Struct, frozen=True):
    """`lamplighter relay`: `[relay]`, and under `[hosts.NAME]` how each host is switched from here."""

    relay: RelayTarget = RelayTarget()
    hosts: dict[Token, AnyHostConfig] = field(default_factory=dict)
    log_level: str = "info"
    log_format: str = "text"


class RelayKeyRejected(Exception):
    """An edge does not take the key."""


class RelayedHost(Struct, frozen=True):
    """A host's driver, and how long a call of it may take, in seconds."""

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


async def serve_edge(url: str, key: str, switches: Mapping[str, RelayedHost]) -> None:
    """Serve the edge at `url` without end, connecting anew whenever the connection ends. Raises Unwelcome."""
    where = url.rstrip("/").replace("http", "ws", 1) + "/ws"
    headers = {"Authorization": f"Bearer {key}"}
    proxy: Literal[True] | None = None if is_loopback_url(url) else True  # True: the one that the environment names
    wait_s = RECONNECT_BACKOFF_MIN_S
    while True:
        try:
            async with connect(where, additional_headers=headers, proxy=proxy) as socket:
                _log.info("relay_connected", url=url)
                code = await _answer_requests(socket, switches)
            wait_s = RECONNECT_BACKOFF_MIN_S
            _raise_if_rejected(url, code == CLOSE_CODE_UNAUTHORIZED)
        except InvalidStatus as refused:
            _raise_if_rejected(url, refused.response.status_code == HTTPStatus.UNAUTHORIZED)
        except (OSError, TimeoutError, WebSocketException) as error:
            _log.info("relay_not_connected", url=url, error=str(error))
        await anyio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads the relays of a restarted edge
        wait_s = min(2 * wait_s, RECONNECT_BACKOFF_MAX_S)


def _raise_if_rejected(url: str, refused: bool) -> None:
    if refused:
        raise RelayKeyRejected(
            f"{url} does not take the key: make one with the scope relay and set LAMPLIGHTER_RELAY__KEY"
        )


async def _answer_requests(socket: ClientConnection, switches: Mapping[str, RelayedHost]) -> int | None:
    """Answer until the connection ends; its close code."""
    async with anyio.create_task_group() as tasks:
        try:
            async for frame in socket:
                message = _parse_request(frame)
                if message is not None:
                    tasks.start_soon(_answer_request, socket, message, switches)
        except ConnectionClosed:
            pass  # connected anew by whoever called
        tasks.cancel_scope.cancel()
    return socket.close_code


def _parse_request(frame: str | bytes) -> ClientMessage | None:
    """What a relay is asked; None for what every client is told."""
    try:
        message = read_frame(frame)
    except FrameUnreadable:
        return None
    return message if message.type in POWER_CALLS else None


async def _answer_request(
    socket: ClientConnection, message: ClientMessage, switches: Mapping[str, RelayedHost]
) -> None:
    said = {"type": message.type, "request_id": message.request_id, "payload": message.payload}
    said |= await _call_driver(message, switches)
    _log.info("relay_asked", kind=message.type, host=message.payload.get("host"), result=said.get("result"))
    try:
        await socket.send(msgspec.json.encode(said).decode())
    except ConnectionClosed:
        return  # the edge asks again


async def _call_driver(message: ClientMessage, switches: Mapping[str, RelayedHost]) -> dict[str, Any]:
    """`result`, or the error."""
    host, call_id = str(message.payload.get("host", "")), str(message.payload.get("call_id", ""))
    switch = switches.get(host)
    if switch is None:
        return {"error": True, "error_msg": f"this relay does not know {host}: declare [hosts.{host}] here"}
    try:
        with anyio.fail_after(switch.timeout_s):
            state = await POWER_CALLS[message.type](switch.driver, call_id)
    except NoCapacity:
        return {"result": {"state": ReportedPower.UNKNOWN, "no_capacity": True}}
    except PowerCallFailed as failed:
        return {"error": True, "error_msg": str(failed)}
    except TimeoutError:
        return {"error": True, "error_msg": f"the switch of {host} did not answer in {switch.timeout_s:.0f} s"}
    return {"result": {"state": state, "no_capacity": False}}
