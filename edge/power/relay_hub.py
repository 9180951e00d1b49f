"""The relays connected to this edge: gateway sockets that make power calls on their own network.

A request goes to every connected relay, and the first successful reply counts. An edge reaches only the relays that
are connected to itself, so connect a relay to each edge (`lamplighter relay` takes several URLs).
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
from msgspec import Struct

from edge.core.clock import Clock, utc_now
from edge.power.drivers.relay import PowerRelay, RelayUnavailable
from schemas.gateway_protocol import ClientMessage, Envelope, EnvelopeType, RelayPayload, encode_envelope, unix_seconds
from schemas.power_driver import PowerCallFailed, PowerDriverReply

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
