"""The generic power drivers: a program of the operator, a signed webhook, Wake-on-LAN, and a relay.

`CommandDriver` runs programs. The contract, which the recipes in deploy/power keep:

- every program gets the host's id in `LAMPLIGHTER_HOST`, the call's id in `LAMPLIGHTER_CALL`, and no standard input;
- it inherits the common variables of the edge's environment (`schemas.outbound_rules`) and those that the host's
  settings name; the folder with our own program `lamplighter` is the last one in its PATH;
- `on` and `off` exit with 0 if the order was accepted or there was nothing to do, and with 75 (EX_TEMPFAIL) if there
  is no capacity. Any other exit is a failure, and the last line of output is its message;
- `state` writes one word on its last line: off, pending, starting, on, stopping, error or unknown. Without such a word
  the exit code counts, so that `ping -c1` works: 0 is on, 1 is off, anything else is unknown;
- a program that exceeds its timeout is killed together with its process group.

`HttpDriver` posts `{"type": "power.start|stop|state", "timestamp", "data": {"host", "call_id"}}` to the URL in the
settings. Any 2xx means that the call was accepted; the body is a `PowerDriverReply`. The call's id is the webhook's
id, so that a receiver can ignore a repeated call.

`WolDriver` powers the host on with a magic packet, and its own runner powers it off. It cannot report a state. A magic
packet is six bytes FF, then sixteen times the address (AMD, Magic Packet Technology, 1995). It is not acknowledged, so
it is sent three times.

`RelayDriver` forwards calls to a relay: a gateway client on the host's network that makes them there. `RelayHub` has
the relays that are connected to this edge. A request goes to every one, and the first successful reply counts. An edge
reaches only the relays that are connected to itself, so connect a relay to each edge (`lamplighter relay` takes
several URLs).
"""

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Collection, Hashable, Mapping
from contextlib import suppress
from datetime import datetime
from subprocess import DEVNULL
from sysconfig import get_path
from typing import IO, NamedTuple, Protocol

import anyio
import httpx2
import msgspec
from anyio import CancelScope, to_thread
from anyio.abc import Process
from msgspec import Struct

from edge.core.clock import Clock, utc_now
from schemas.gateway_protocol import ClientMessage, Envelope, EnvelopeType, RelayPayload, encode_envelope, unix_seconds
from schemas.host_config import CommandHostConfig, HttpHostConfig, WolHostConfig
from schemas.outbound_rules import build_child_environment
from schemas.power import (
    ClusterPowerDriver,
    NoCapacity,
    PowerCallFailed,
    PowerDriver,
    PowerDriverReply,
    ReportedPower,
    parse_reply,
    require_capacity,
)
from schemas.webhook import signature_headers

NO_CAPACITY_EXIT_CODE = 75
OUTPUT_LIMIT_BYTES = 256 * 1024  # a line for each host of a cluster
REPORTED_BY_EXIT_CODE: Mapping[int, ReportedPower] = {0: ReportedPower.ON, 1: ReportedPower.OFF}


class _ProgramResult(NamedTuple):
    exit_code: int
    lines: tuple[str, ...]

    @property
    def last_line(self) -> str:
        return self.lines[-1].strip() if self.lines else ""


class CommandDriver(ClusterPowerDriver):
    """Runs the programs of a host's settings. `environ`: the environment of the edge."""

    def __init__(self, host: str, declared: CommandHostConfig, environ: Mapping[str, str]) -> None:
        self._host = host
        self._declared = declared
        inherited = build_child_environment(environ, *declared.inherit)
        # A service of systemd has a PATH without the virtual environment that it runs in.
        path = os.pathsep.join([inherited.get("PATH", os.defpath), get_path("scripts")])
        self._environ = inherited | {"PATH": path} | declared.env

    @property
    def can_report_state(self) -> bool:
        return self._declared.state is not None or self._declared.states is not None

    @property
    def cluster(self) -> Hashable | None:
        declared = self._declared
        return declared.states and (declared.states, frozenset(declared.env.items()), declared.inherit)

    async def start(self, call_id: str) -> None:
        await self._run_power_call(self._declared.on, call_id)

    async def stop(self, call_id: str) -> None:
        """Run `off`. Without it, the runner reads in the host's record that it must power off."""
        if self._declared.off is not None:
            await self._run_power_call(self._declared.off, call_id)

    async def state(self) -> ReportedPower:
        if self._declared.states is not None:
            return (await self.states([self._host])).get(self._host, ReportedPower.UNKNOWN)
        if self._declared.state is None:
            return ReportedPower.UNKNOWN
        result = await self._run_program(self._declared.state, self._call_variables(""))
        word = result.last_line.lower()
        return (
            ReportedPower(word)
            if word in set(ReportedPower)
            else REPORTED_BY_EXIT_CODE.get(result.exit_code, ReportedPower.UNKNOWN)
        )

    async def states(self, hosts: Collection[str]) -> Mapping[str, ReportedPower]:
        if self._declared.states is None:
            return {}
        result = await self._run_program(self._declared.states, {"LAMPLIGHTER_HOSTS": " ".join(hosts)})
        _check_exit(self._declared.states, result)
        rows = (line.split() for line in result.lines)
        words = {row[0]: row[1].lower() for row in rows if len(row) == 2}
        return {host: ReportedPower(word) for host, word in words.items() if word in set(ReportedPower)}

    async def _run_power_call(self, argv: tuple[str, ...], call_id: str) -> None:
        _check_exit(argv, await self._run_program(argv, self._call_variables(call_id)))

    def _call_variables(self, call_id: str) -> dict[str, str]:
        return {"LAMPLIGHTER_HOST": self._host, "LAMPLIGHTER_CALL": call_id}

    async def _run_program(self, argv: tuple[str, ...], variables: Mapping[str, str]) -> _ProgramResult:
        environ = {**self._environ, **variables}
        # A file, not a pipe: a background process that the program leaves would keep a pipe open.
        with tempfile.TemporaryFile() as output:
            try:
                process = await anyio.open_process(
                    argv, stdin=DEVNULL, stdout=output, stderr=output, env=environ, start_new_session=True
                )
            except OSError as error:
                raise PowerCallFailed(f"{argv[0]} cannot be run ({error.strerror}): correct the host's argv") from error
            exit_code = await _wait_or_kill(process)
            return _ProgramResult(exit_code, await to_thread.run_sync(_read_lines, output))


async def _wait_or_kill(process: Process) -> int:
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with CancelScope(shield=True):
                await process.wait()


def _read_lines(output: IO[bytes]) -> tuple[str, ...]:
    output.seek(max(0, output.seek(0, os.SEEK_END) - OUTPUT_LIMIT_BYTES))
    return tuple(output.read().decode(errors="replace").strip().splitlines())


def _check_exit(argv: tuple[str, ...], result: _ProgramResult) -> None:
    """Raise PowerCallFailed or NoCapacity, unless the program has succeeded."""
    if result.exit_code == 0:
        return
    message = f"{argv[0]}: {result.last_line or f'exit {result.exit_code}'}"
    if result.exit_code == NO_CAPACITY_EXIT_CODE:
        raise NoCapacity(message)
    raise PowerCallFailed(f"{message}; run it by hand to see why")


class HttpDriver(PowerDriver):
    """Sends webhooks. `client`: the caller closes it. `new_id`: creates the id of a state request."""

    def __init__(
        self,
        host: str,
        declared: HttpHostConfig,
        client: httpx2.AsyncClient,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._host = host
        self._declared = declared
        self._client = client
        self._now = now
        self._new_id = new_id

    @property
    def can_report_state(self) -> bool:
        return True

    async def start(self, call_id: str) -> None:
        await self._post("power.start", call_id)

    async def stop(self, call_id: str) -> None:
        await self._post("power.stop", call_id)

    async def state(self) -> ReportedPower:
        return (await self._post("power.state", self._new_id())).state

    async def _post(self, kind: str, call_id: str) -> PowerDriverReply:
        at = self._now()
        body = msgspec.json.encode(
            {"type": kind, "timestamp": at, "data": {"host": self._host, "call_id": call_id}},
        )
        headers = {"content-type": "application/json", **signature_headers(call_id, at, body, self._declared.secret)}
        try:
            response = await self._client.post(self._declared.url, content=body, headers=headers)
        except (
            httpx2.HTTPError,
            httpx2.InvalidURL,
            ValueError,
        ) as error:  # ValueError: a host name that idna cannot decode
            raise PowerCallFailed(
                f"{self._declared.url} does not answer ({type(error).__name__}): is it up?"
            ) from error
        if not response.is_success:
            raise PowerCallFailed(f"{self._declared.url} answered {response.status_code}: see its log")
        return parse_reply(response.content)


PACKET_COUNT = 3


def magic_packet(mac: str) -> bytes:
    """Return the 102 bytes of the packet for an address like `a4:bb:6d:00:11:22`."""
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "").replace("-", "")) * 16


class WolDriver(PowerDriver):
    """Sends packets to `broadcast` from any interface with a route to it."""

    def __init__(self, declared: WolHostConfig) -> None:
        self._declared = declared

    @property
    def can_report_state(self) -> bool:
        return False

    async def start(self, call_id: str) -> None:
        """Send the packet. The call id is not needed, because a machine that is on ignores the packet."""
        try:
            await to_thread.run_sync(self._send_packets)
        except OSError as error:
            where = f"{self._declared.broadcast}:{self._declared.port}"
            raise PowerCallFailed(
                f"no packet to {where} ({error.strerror}): is the edge on the host's network?"
            ) from error

    async def stop(self, call_id: str) -> None:
        """Do nothing: the runner reads in the host's record that it must power off."""

    async def state(self) -> ReportedPower:
        return ReportedPower.UNKNOWN

    def _send_packets(self) -> None:
        packet = magic_packet(self._declared.mac)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for _ in range(PACKET_COUNT):
                sender.sendto(packet, (self._declared.broadcast, self._declared.port))


class RelayUnavailable(Exception):
    """No relay that knows the host is connected."""


class PowerRelay(Protocol):
    """Sends requests to the connected relays. `RelayHub` implements it."""

    async def request(self, kind: str, host: str, call_id: str) -> PowerDriverReply:
        """Send `kind` (`gpu.power.start|stop|state`) and wait for the reply. Raises RelayUnavailable."""
        ...


class RelayDriver(PowerDriver):
    """Sends power calls through `relay`. `host`: its name at the relay. A state request has an empty call id.

    `wake_only`: the relay only starts the host, and cannot tell its state.
    """

    def __init__(self, relay: PowerRelay, host: str, *, wake_only: bool = False) -> None:
        self._relay = relay
        self._host = host
        self._wake_only = wake_only

    @property
    def can_report_state(self) -> bool:
        return not self._wake_only

    async def start(self, call_id: str) -> None:
        await self._request("gpu.power.start", call_id)

    async def stop(self, call_id: str) -> None:
        """Ask the relay to stop the host. With `wake_only` the runner reads in the host's record that it must."""
        if not self._wake_only:
            await self._request("gpu.power.stop", call_id)

    async def state(self) -> ReportedPower:
        return (await self._request("gpu.power.state", "")).state

    async def _request(self, kind: str, call_id: str) -> PowerDriverReply:
        try:
            return require_capacity(await self._relay.request(kind, self._host, call_id))
        except RelayUnavailable as error:
            raise PowerCallFailed(f"no relay is connected for {self._host}: start `lamplighter relay` there") from error


REQUEST_KINDS: Mapping[str, EnvelopeType] = {
    kind.value: kind for kind in (EnvelopeType.START, EnvelopeType.STOP, EnvelopeType.STATE)
}


class RelayConnection(Protocol):
    """The socket of a connected relay."""

    def send_text(self, text: str) -> None:
        """Send `text`, or drop it if the socket is closed."""
        ...


class _RelayRequest(Struct, eq=False):
    """A pending request to one relay. `reply`: None if the relay disconnects. `eq=False`: hashable by identity."""

    kind: str
    request_id: str
    payload: RelayPayload
    socket: RelayConnection
    reply: "asyncio.Future[PowerDriverReply | PowerCallFailed | None]"


class RelayHub(PowerRelay):
    """Sends requests to the connected relays. `new_id`: creates request ids."""

    def __init__(self, new_id: Callable[[], str], now: Clock = utc_now) -> None:
        self._now = now
        self._new_id = new_id
        self._connections: list[RelayConnection] = []
        self._requests: dict[str, _RelayRequest] = {}

    def register(self, socket: RelayConnection) -> None:
        """Send requests to this relay from now on."""
        self._connections.append(socket)

    def unregister(self, socket: RelayConnection) -> None:
        """Remove a relay and fail its pending requests."""
        if socket in self._connections:
            self._connections.remove(socket)
        for request in tuple(self._requests.values()):
            if request.socket is socket and not request.reply.done():
                request.reply.set_result(None)

    async def request(self, kind: str, host: str, call_id: str) -> PowerDriverReply:
        """Return the first successful reply. Raises RelayUnavailable, or PowerCallFailed if all relays fail."""
        requests = [self._send_request(socket, REQUEST_KINDS[kind], host, call_id) for socket in self._connections]
        waiting = {request.reply for request in requests}
        failure: PowerCallFailed | None = None
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for outcome in [reply.result() for reply in done]:
                    if isinstance(outcome, PowerDriverReply):
                        return outcome
                    failure = outcome or failure
            raise failure or RelayUnavailable
        finally:
            for request in requests:
                self._requests.pop(request.request_id, None)
                request.reply.cancel()

    def _send_request(self, socket: RelayConnection, kind: EnvelopeType, host: str, call_id: str) -> _RelayRequest:
        request_id = self._new_id()
        payload = RelayPayload(host=host, call_id=call_id or request_id)
        request = _RelayRequest(kind, request_id, payload, socket, asyncio.get_running_loop().create_future())
        self._requests[request_id] = request
        socket.send_text(
            encode_envelope(Envelope(type=kind, ts=unix_seconds(self._now()), request_id=request_id, payload=payload))
        )
        return request

    def handle_reply(self, socket: RelayConnection, message: ClientMessage) -> None:
        """Pass a relay's reply to its request; drop a reply to a request that has ended."""
        request = self._find_request(socket, message)
        if request is None or request.reply.done():
            return
        if message.error:
            why = message.error_msg or "it failed without a message: see its log"
            request.reply.set_result(PowerCallFailed(f"the relay: {why[:500]}"))
            return
        try:
            request.reply.set_result(msgspec.convert(message.result, PowerDriverReply))
        except msgspec.ValidationError as error:
            request.reply.set_result(PowerCallFailed(f'the relay\'s reply is not {{"state": …}}: {error}'))

    def _find_request(self, socket: RelayConnection, message: ClientMessage) -> _RelayRequest | None:
        """Find the request by request_id or call_id; a relay that returns neither must reply in order."""
        own = [one for one in self._requests.values() if one.socket is socket and one.kind == message.type]
        call_id = message.payload.get("call_id")
        for one in own:
            if message.request_id == one.request_id or (call_id and call_id == one.payload.call_id):
                return one
        has_no_id = not message.request_id and not call_id
        return own[0] if own and has_no_id else None
