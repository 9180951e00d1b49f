"""The connected relays: sockets whose key has the scope `relay`, asked to press a host's switch on their own network.

Every relay of this edge is asked and the first that knows the host answers for it. A relay that is connected to another
edge is not asked by this one: connect it to each (`lamplighter relay` takes several URLs).
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
from msgspec import Struct

from edge.facades.gateway.wire import seconds, text
from edge.power.drivers.port import SwitchFailed
from edge.power.drivers.relay import Relay, RelayAway
from edge.power.drivers.reply import SwitchReply
from edge.services.clock import Clock, utc_now
from schemas.envelope import Envelope, Kind, Message, RelayPayload

KINDS: Mapping[str, Kind] = {kind.value: kind for kind in (Kind.START, Kind.STOP, Kind.STATE)}


class RelaySocket(Protocol):
    """A relay's socket."""

    def say(self, text: str) -> None:
        """Send, if it still can be sent."""
        ...


class _Asked(Struct, eq=False):
    """One question to one relay. `eq=False`: it is itself, and may lie in a set."""

    kind: str
    request_id: str
    payload: RelayPayload
    socket: RelaySocket
    answer: "asyncio.Future[SwitchReply]"


class Relays(Relay):
    """`fresh_id` names questions, so that answers find them."""

    def __init__(self, fresh_id: Callable[[], str], now: Clock = utc_now) -> None:
        self._now = now
        self._fresh_id = fresh_id
        self._sockets: list[RelaySocket] = []
        self._asked: dict[str, _Asked] = {}

    def enter(self, socket: RelaySocket) -> None:
        """From now on it is asked."""
        self._sockets.append(socket)

    def leave(self, socket: RelaySocket) -> None:
        """It is gone, with what it owes."""
        if socket in self._sockets:
            self._sockets.remove(socket)
        for asked in tuple(self._asked.values()):
            if asked.socket is socket and not asked.answer.done():
                asked.answer.set_exception(RelayAway())

    async def ask(self, kind: str, host: str, call_id: str) -> SwitchReply:
        """The first reply of a relay that knows the host. Raises RelayAway, SwitchFailed when all refuse."""
        asked = [self._ask(socket, KINDS[kind], host, call_id) for socket in self._sockets]
        waiting = {one.answer for one in asked}
        refused: Exception = RelayAway()
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for answer in done:
                    error = answer.exception()
                    if error is None:
                        return answer.result()
                    refused = error if isinstance(error, SwitchFailed) else refused
            raise refused
        finally:
            for one in asked:
                self._asked.pop(one.request_id, None)
                one.answer.cancel()

    def _ask(self, socket: RelaySocket, kind: Kind, host: str, call_id: str) -> _Asked:
        request_id = self._fresh_id()
        payload = RelayPayload(host=host, call_id=call_id or request_id)
        asked = _Asked(kind, request_id, payload, socket, asyncio.get_running_loop().create_future())
        self._asked[request_id] = asked
        socket.say(text(Envelope(type=kind, ts=seconds(self._now()), request_id=request_id, payload=payload)))
        return asked

    def answered(self, socket: RelaySocket, message: Message) -> None:
        """A relay's answer; one to a question that nobody waits for any more is dropped."""
        asked = self._question(socket, message)
        if asked is None or asked.answer.done():
            return
        if message.error:
            why = message.error_msg or "it failed and did not say why"
            asked.answer.set_exception(SwitchFailed(f"the relay: {why[:500]}"))
            return
        try:
            asked.answer.set_result(msgspec.convert(message.result, SwitchReply))
        except msgspec.ValidationError as error:
            asked.answer.set_exception(SwitchFailed(f'the relay answered what is no {{"state": …}}: {error}'))

    def _question(self, socket: RelaySocket, message: Message) -> _Asked | None:
        """By its request_id or call_id; a relay that echoes neither answers in the order it was asked."""
        own = [one for one in self._asked.values() if one.socket is socket and one.kind == message.type]
        call_id = message.payload.get("call_id")
        for one in own:
            if message.request_id == one.request_id or (call_id and call_id == one.payload.call_id):
                return one
        anonymous = not message.request_id and not call_id
        return own[0] if own and anonymous else None
