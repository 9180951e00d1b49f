"""uvicorn's protocols, with bounds on the head of a request and on what a WebSocket takes from a stranger.

httptools has no limit of its own: it copies an unfinished header at each read, so that one endless header costs the
event loop ever more time. Here the bytes are counted before they are parsed, and a server-wide sweep looks at the time.
"""

import asyncio
from enum import Enum, auto
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.http11 import Request

from edge.facades.gateway.wire import WIDEN
from edge.problems import explain
from edge.server.connections import Slot
from edge.server.settings import ServerSettings
from edge.strangers import StrangerLog
from schemas.errors import Refused

LINGER_BYTES = 1024 * 1024  # of a refused request's rest that is read and dropped, so that the refusal arrives
LINGER_S = 2.0
# Of which the application would see one and a proxy before it perhaps the other. httptools refuses a second
# Content-Length itself.
ONCE = (b"host", b"origin")
STRANGER_FRAME_BYTES = 16 * 1024  # of one WebSocket message before the client is known


class BoundedState(ServerState):
    """What all connections of one server share."""

    def __init__(self, bounds: ServerSettings, strangers: StrangerLog) -> None:
        super().__init__()
        self.bounds = bounds
        self.strangers = strangers


class _Owed(Enum):
    """What of a request the client has still to send."""

    NOTHING = auto()
    HEAD = auto()
    BODY = auto()
    DROPPED = auto()  # the request was refused; its rest is read and dropped


def response(error: Exception) -> bytes:
    """A whole HTTP/1.1 response with the problem document of `error`, which closes the connection."""
    said = explain(error, "")
    headers = {
        **said.headers,
        "Content-Type": said.media_type,
        "Content-Length": str(len(said.body)),
        "Connection": "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {said.status} {said.title}\r\n{lines}\r\n".encode("latin-1") + said.body


class BoundedHttp(HttpToolsProtocol):
    """One connection. `slot`: its place among all, given back when it is closed."""

    server_state: BoundedState

    def __init__(self, config: Config, server_state: BoundedState, app_state: dict[str, Any], slot: Slot) -> None:
        super().__init__(config, server_state, app_state)
        self._bounds = server_state.bounds
        self._slot = slot
        self._owed = _Owed.HEAD
        self._since = self.loop.time()  # when what is owed began to be owed; when it last moved, of a body
        self._moved = False  # whether bytes of the body came since the last sweep
        self._pending = 0  # bytes since the parser last completed something
        self._dropped = 0
        self._fault = ""  # why the head was refused, where that is not the parser's doing
        slot.occupant = self

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._since = self.loop.time()  # a TLS handshake has a limit of its own

    # ── what comes ───────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Parse `data` in pieces, none of which takes what is unfinished beyond `head_bytes`."""
        if self._owed is _Owed.DROPPED:
            self._drop(len(data))
            return
        room = self._bounds.head_bytes - self._pending
        if len(data) <= room:
            self._feed(data)
            return
        rest = memoryview(data)
        while rest and self._takes():
            self._feed(cast("bytes", rest[:room]))  # httptools takes any buffer
            rest, room = rest[room:], self._bounds.head_bytes - self._pending

    def _takes(self) -> bool:
        """Whether bytes are parsed here still: not refused, not closed, not a WebSocket's by now."""
        return self._owed is not _Owed.DROPPED and self._slot.occupant is self and not self.transport.is_closing()

    def _feed(self, piece: bytes) -> None:
        if self._owed is _Owed.NOTHING:
            self._owe(_Owed.HEAD)
        self._pending += len(piece)
        super().data_received(piece)
        if self._pending >= self._bounds.head_bytes and not self.transport.is_closing():
            self._refuse("head_too_large", f"a request's head may have at most {self._bounds.head_bytes} bytes")

    def _owe(self, owed: _Owed) -> None:
        self._owed, self._since = owed, self.loop.time()

    def on_message_begin(self) -> None:
        self._owe(_Owed.HEAD)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        names = [name for name, _ in self.headers]
        for name in ONCE:
            if names.count(name) > 1:
                self._fault = f"the header {name.decode().title()} stands in it more than once"
                raise httptools.HttpParserError(self._fault)  # no application sees the request
        self._owed, self._pending, self._moved = _Owed.BODY, 0, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending, self._moved = 0, True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._owed, self._pending = _Owed.NOTHING, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._owed is _Owed.NOTHING:
            self._since = self.loop.time()
        super().on_response_complete()

    # ── what does not come ───────────────────────────────────────────────────────────────────────────────────────

    def sweep(self, now: float) -> bool:
        """Close the connection where what is owed is overdue; whether it was. Called about once a second."""
        if self.transport.is_closing():
            return False
        waited = now - self._since
        match self._owed:
            case _Owed.HEAD if waited > self._bounds.head_s:
                self._late()
            case _Owed.BODY if self._moved or self._waits_for_us():
                self._moved, self._since = False, now
                return False
            case _Owed.BODY if waited > self._bounds.stall_s:
                self._note("body_stalled", seconds=self._bounds.stall_s)
                self._end()
            case _Owed.DROPPED if waited > LINGER_S:
                self.transport.abort()
            case _:
                return False
        return True

    def _waits_for_us(self) -> bool:
        return self.flow.read_paused or (self.cycle is not None and self.cycle.waiting_for_100_continue)

    def _late(self) -> None:
        if not self._pending:  # a browser opens connections ahead of time, and shows an answer that it did not ask for
            self._note("connection_idle", seconds=self._bounds.head_s)
            self._end()
            return
        self._refuse("head_timeout", f"a request's head must come within {self._bounds.head_s:g} s: send it again")

    def waits_since(self) -> float | None:
        busy = self.cycle is not None and not self.cycle.response_complete
        return None if busy or self._owed is _Owed.BODY else self._since

    def evict(self) -> None:
        self._note("connection_evicted")
        self.transport.abort()

    # ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what cannot be parsed, as a problem document."""
        self._refuse("body_malformed", f"this is not HTTP/1.1 as RFC 9112 has it ({self._fault or msg})")

    def _refuse(self, code: str, detail: str) -> None:
        self._note("request_refused", code=code)
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self._end()  # the answer of the request before would be taken for this one's
            return
        self.transport.write(response(Refused(code, detail)))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:  # TLS: `_end` would lose the refusal
            self.flow.pause_reading()
        self._owe(_Owed.DROPPED)

    def _end(self) -> None:
        """Close the connection. With TLS, uvloop's `close` would read on for 30 s, until the client agrees to close."""
        if self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.abort()

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > LINGER_BYTES:
            self.transport.abort()

    def _note(self, event: str, **fields: object) -> None:
        self.server_state.strangers.note(event, self._slot.address, **fields)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        socket = self.transport.get_protocol()
        if isinstance(socket, BoundedWebSocket):
            socket.slot = self._slot
        self._slot.occupant = None  # an open WebSocket is not evicted

    def connection_lost(self, exc: Exception | None) -> None:
        self._slot.release()
        super().connection_lost(exc)


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """Takes messages of STRANGER_FRAME_BYTES until the application says with WIDEN that it knows the client."""

    slot: Slot | None = None

    def handle_connect(self, event: Request) -> None:
        whole, self.conn.max_message_size = self.conn.max_message_size, STRANGER_FRAME_BYTES
        super().handle_connect(event)

        def widen() -> None:
            self.conn.max_message_size = whole

        if not self.close_sent:
            cast("dict[str, Any]", self.scope["extensions"])[WIDEN] = widen

    def connection_lost(self, exc: Exception | None) -> None:
        if self.slot is not None:
            self.slot.release()
        super().connection_lost(exc)
