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

from edge.power.drivers.port import Driver, NoCapacity, SwitchFailed
from schemas.envelope import Kind, Message, Unreadable, read
from schemas.loopback import leads_here
from schemas.power import Provider
from schemas.switch import HostDeclaration
from schemas.words import Token

FIRST_S, MOST_S = 0.5, 30.0
UNWELCOME = 4401

_log = structlog.get_logger()


class RelayTo(Struct, frozen=True):
    """`urls`: every edge, as in https://edge.example.com. `key` has the scope `relay`."""

    urls: tuple[str, ...] = ()
    key: str = ""


class RelaySettings(Struct, frozen=True):
    """`lamplighter relay`: `[relay]`, and under `[hosts.NAME]` how each host is switched from here."""

    relay: RelayTo = RelayTo()
    hosts: dict[Token, HostDeclaration] = field(default_factory=dict)
    log_level: str = "info"
    log_format: str = "text"


class Unwelcome(Exception):
    """An edge does not take the key."""


class Switch(Struct, frozen=True):
    """A host's driver, and how long a call of it may take, in seconds."""

    driver: Driver
    timeout_s: float


async def _start(driver: Driver, call_id: str) -> Provider:
    await driver.start(call_id)
    return Provider.STARTING


async def _stop(driver: Driver, call_id: str) -> Provider:
    await driver.stop(call_id)
    return Provider.STOPPING


async def _state(driver: Driver, _: str) -> Provider:
    return await driver.state()


ACTIONS: Mapping[str, Callable[[Driver, str], Awaitable[Provider]]] = {
    Kind.START: _start,
    Kind.STOP: _stop,
    Kind.STATE: _state,
}


async def keep(url: str, key: str, switches: Mapping[str, Switch]) -> None:
    """Serve the edge at `url` without end, connecting anew whenever the connection ends. Raises Unwelcome."""
    where = url.rstrip("/").replace("http", "ws", 1) + "/ws"
    headers = {"Authorization": f"Bearer {key}"}
    proxy: Literal[True] | None = None if leads_here(url) else True  # True: the one that the environment names
    wait_s = FIRST_S
    while True:
        try:
            async with connect(where, additional_headers=headers, proxy=proxy) as socket:
                _log.info("relay_connected", url=url)
                code = await _serve(socket, switches)
            wait_s = FIRST_S
            _check(url, code == UNWELCOME)
        except InvalidStatus as refused:
            _check(url, refused.response.status_code == HTTPStatus.UNAUTHORIZED)
        except (OSError, TimeoutError, WebSocketException) as error:
            _log.info("relay_not_connected", url=url, error=str(error))
        await anyio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads the relays of a restarted edge
        wait_s = min(2 * wait_s, MOST_S)


def _check(url: str, refused: bool) -> None:
    if refused:
        raise Unwelcome(f"{url} does not take the key: make one with the scope relay and set LAMPLIGHTER_RELAY__KEY")


async def _serve(socket: ClientConnection, switches: Mapping[str, Switch]) -> int | None:
    """Answer until the connection ends; its close code."""
    async with anyio.create_task_group() as tasks:
        try:
            async for frame in socket:
                message = _question(frame)
                if message is not None:
                    tasks.start_soon(_answer, socket, message, switches)
        except ConnectionClosed:
            pass  # connected anew by whoever called
        tasks.cancel_scope.cancel()
    return socket.close_code


def _question(frame: str | bytes) -> Message | None:
    """What a relay is asked; None for what every client is told."""
    try:
        message = read(frame)
    except Unreadable:
        return None
    return message if message.type in ACTIONS else None


async def _answer(socket: ClientConnection, message: Message, switches: Mapping[str, Switch]) -> None:
    said = {"type": message.type, "request_id": message.request_id, "payload": message.payload}
    said |= await _press(message, switches)
    _log.info("relay_asked", kind=message.type, host=message.payload.get("host"), result=said.get("result"))
    try:
        await socket.send(msgspec.json.encode(said).decode())
    except ConnectionClosed:
        return  # the edge asks again


async def _press(message: Message, switches: Mapping[str, Switch]) -> dict[str, Any]:
    """`result`, or the error."""
    host, call_id = str(message.payload.get("host", "")), str(message.payload.get("call_id", ""))
    switch = switches.get(host)
    if switch is None:
        return {"error": True, "error_msg": f"this relay does not know {host}: declare [hosts.{host}] here"}
    try:
        with anyio.fail_after(switch.timeout_s):
            state = await ACTIONS[message.type](switch.driver, call_id)
    except NoCapacity:
        return {"result": {"state": Provider.UNKNOWN, "no_capacity": True}}
    except SwitchFailed as failed:
        return {"error": True, "error_msg": str(failed)}
    except TimeoutError:
        return {"error": True, "error_msg": f"the switch of {host} did not answer in {switch.timeout_s:.0f} s"}
    return {"result": {"state": state, "no_capacity": False}}
