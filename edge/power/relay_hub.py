"""The connected relays: sockets whose key has the scope `relay`, asked to press a host's switch on their own network.

Every relay of this edge is asked and the first that knows the host answers for it. A relay that is connected to another
edge is not asked by this one: connect it to each (`lamplighter relay` takes several URLs).
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
from msgspec import Struct

from edge.core.clock import Clock, utc_now
from edge.power.drivers.port import PowerCallFailed, PowerDriverReply
from edge.power.drivers.relay import PowerRelay, RelayUnavailable
from schemas.gateway_protocol import ClientMessage, Envelope, EnvelopeType, RelayPayload, encode_envelope, unix_seconds

REQUEST_KINDS: Mapping[str, EnvelopeType] = {
    kind.value: kind for kind in (EnvelopeType.START, EnvelopeType.STOP, EnvelopeType.STATE)
}


class RelayConnection(Protocol):
    """A relay's socket."""

    def send_text(self, text: str) -> None:
        """Send, if it still can be sent."""
        ...


class _RelayRequest(Struct, eq=False):
    """One question to one relay. `eq=False`: it is itself, and may lie in a set."""

    kind: str
    request_id: str
    payload: RelayPayload
    socket: RelayConnection
    reply: "asyncio.Future[PowerDriverReply]"


class RelayHub(PowerRelay):
    """`fresh_id` names questions, so that answers find them."""

    def __init__(self, fresh_id: Callable[[], str], now: Clock = utc_now) -> None:
        self._now = now
        self._new_id = fresh_id
        self._connections: list[RelayConnection] = []
        self._requests: dict[str, _RelayRequest] = {}

    def register(self, socket: RelayConnection) -> None:
        """From now on it is asked."""
        self._connections.append(socket)

    def unregister(self, socket: RelayConnection) -> None:
        """It is gone, with what it owes."""
        if socket in self._connections:
            self._connections.remove(socket)
        for asked in tuple(self._requests.values()):
            if asked.socket is socket and not asked.reply.done():
                asked.reply.set_exception(RelayUnavailable())

    async def request(self, kind: str, host: str, call_id: str) -> PowerDriverReply:
        """The first reply of a relay that knows the host. Raises RelayAway, SwitchFailed when all refuse."""
        asked = [self._send_request(socket, REQUEST_KINDS[kind], host, call_id) for socket in self._connections]
        waiting = {one.reply for one in asked}
        refused: Exception = RelayUnavailable()
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for answer in done:
                    error = answer.exception()
                    if error is None:
                        return answer.result()
                    refused = error if isinstance(error, PowerCallFailed) else refused
            raise refused
        finally:
            for one in asked:
                self._requests.pop(one.request_id, None)
                one.reply.cancel()

    def _send_request(self, socket: RelayConnection, kind: EnvelopeType, host: str, call_id: str) -> _RelayRequest:
        request_id = self._new_id()
        payload = RelayPayload(host=host, call_id=call_id or request_id)
        asked = _RelayRequest(kind, request_id, payload, socket, asyncio.get_running_loop().create_future())
        self._requests[request_id] = asked
        socket.send_text(
            encode_envelope(Envelope(type=kind, ts=unix_seconds(self._now()), request_id=request_id, payload=payload))
        )
        return asked

    def handle_reply(self, socket: RelayConnection, message: ClientMessage) -> None:
        """A relay's answer; one to a question that nobody waits for any more is dropped."""
        asked = self._find_request(socket, message)
        if asked is None or asked.reply.done():
            return
        if message.error:
            why = message.error_msg or "it failed and did not say why"
            asked.reply.set_exception(PowerCallFailed(f"the relay: {why[:500]}"))
            return
        try:
            asked.reply.set_result(msgspec.convert(message.result, PowerDriverReply))
        except msgspec.ValidationError as error:
            asked.reply.set_exception(PowerCallFailed(f'the relay answered what is no {{"state": …}}: {error}'))

    def _find_request(self, socket: RelayConnection, message: ClientMessage) -> _RelayRequest | None:
        """By its request_id or call_id; a relay that echoes neither answers in the order it was asked."""
        own = [one for one in self._requests.values() if one.socket is socket and one.kind == message.type]
        call_id = message.payload.get("call_id")
        for one in own:
            if message.request_id == one.request_id or (call_id and call_id == one.payload.call_id):
                return one
        anonymous = not message.request_id and not call_id
        return own[0] if own and anonymous else None
