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

from edge.core.client_throttle import ThrottledClientLog
from edge.facades.gateway.frames import LARGE_FRAMES_EXTENSION
from edge.http.problems import make_problem_response
from edge.server.connections import ConnectionSlot
from edge.settings import ServerSettings
from schemas.problems import ProblemError

LINGER_LIMIT_BYTES = 1024 * 1024  # of a refused request's rest that is read and dropped, so that the refusal arrives
LINGER_TIMEOUT_S = 2.0
# Of which the application would see one and a proxy before it perhaps the other. httptools refuses a second
# Content-Length itself.
ONCE = (b"host", b"origin")
UNAUTHENTICATED_FRAME_LIMIT_BYTES = 16 * 1024  # of one WebSocket message before the client is known


class BoundedServerState(ServerState):
    """What all connections of one server share."""

    def __init__(self, bounds: ServerSettings, strangers: ThrottledClientLog) -> None:
        super().__init__()
        self.limits = bounds
        self.client_events = strangers


class _Expected(Enum):
    """What of a request the client has still to send."""

    NOTHING = auto()
    HEAD = auto()
    BODY = auto()
    DROPPED = auto()  # the request was refused; its rest is read and dropped


def encode_problem_response(error: Exception) -> bytes:
    """A whole HTTP/1.1 response with the problem document of `error`, which closes the connection."""
    said = make_problem_response(error, "")
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

    server_state: BoundedServerState

    def __init__(
        self, config: Config, server_state: BoundedServerState, app_state: dict[str, Any], slot: ConnectionSlot
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._limits = server_state.limits
        self._slot = slot
        self._expected = _Expected.HEAD
        self._expected_since = self.loop.time()  # when what is owed began to be owed; when it last moved, of a body
        self._has_progressed = False  # whether bytes of the body came since the last sweep
        self._unparsed_bytes = 0  # bytes since the parser last completed something
        self._discarded_bytes = 0
        self._fault = ""  # why the head was refused, where that is not the parser's doing
        slot.occupant = self

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._expected_since = self.loop.time()  # a TLS handshake has a limit of its own

    # ── what comes ───────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Parse `data` in pieces, none of which takes what is unfinished beyond `head_bytes`."""
        if self._expected is _Expected.DROPPED:
            self._discard(len(data))
            return
        room = self._limits.head_bytes - self._unparsed_bytes
        if len(data) <= room:
            self._feed(data)
            return
        rest = memoryview(data)
        while rest and self._accepts_bytes():
            self._feed(cast("bytes", rest[:room]))  # httptools takes any buffer
            rest, room = rest[room:], self._limits.head_bytes - self._unparsed_bytes

    def _accepts_bytes(self) -> bool:
        """Whether bytes are parsed here still: not refused, not closed, not a WebSocket's by now."""
        return (
            self._expected is not _Expected.DROPPED and self._slot.occupant is self and not self.transport.is_closing()
        )

    def _feed(self, piece: bytes) -> None:
        if self._expected is _Expected.NOTHING:
            self._expect(_Expected.HEAD)
        self._unparsed_bytes += len(piece)
        super().data_received(piece)
        if self._unparsed_bytes >= self._limits.head_bytes and not self.transport.is_closing():
            self._refuse("head_too_large", f"a request's head may have at most {self._limits.head_bytes} bytes")

    def _expect(self, owed: _Expected) -> None:
        self._expected, self._expected_since = owed, self.loop.time()

    def on_message_begin(self) -> None:
        self._expect(_Expected.HEAD)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        names = [name for name, _ in self.headers]
        for name in ONCE:
            if names.count(name) > 1:
                self._fault = f"the header {name.decode().title()} stands in it more than once"
                raise httptools.HttpParserError(self._fault)  # no application sees the request
        self._expected, self._unparsed_bytes, self._has_progressed = _Expected.BODY, 0, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes, self._has_progressed = 0, True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._expected, self._unparsed_bytes = _Expected.NOTHING, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._expected is _Expected.NOTHING:
            self._expected_since = self.loop.time()
        super().on_response_complete()

    # ── what does not come ───────────────────────────────────────────────────────────────────────────────────────

    def sweep(self, now: float) -> bool:
        """Close the connection where what is owed is overdue; whether it was. Called about once a second."""
        if self.transport.is_closing():
            return False
        waited = now - self._expected_since
        match self._expected:
            case _Expected.HEAD if waited > self._limits.head_s:
                self._handle_head_timeout()
            case _Expected.BODY if self._has_progressed or self._is_paused_by_server():
                self._has_progressed, self._expected_since = False, now
                return False
            case _Expected.BODY if waited > self._limits.stall_s:
                self._log_event("body_stalled", seconds=self._limits.stall_s)
                self._close_connection()
            case _Expected.DROPPED if waited > LINGER_TIMEOUT_S:
                self.transport.abort()
            case _:
                return False
        return True

    def _is_paused_by_server(self) -> bool:
        return self.flow.read_paused or (self.cycle is not None and self.cycle.waiting_for_100_continue)

    def _handle_head_timeout(self) -> None:
        if (
            not self._unparsed_bytes
        ):  # a browser opens connections ahead of time, and shows an answer that it did not ask for
            self._log_event("connection_idle", seconds=self._limits.head_s)
            self._close_connection()
            return
        self._refuse("head_timeout", f"a request's head must come within {self._limits.head_s:g} s: send it again")

    def idle_since(self) -> float | None:
        busy = self.cycle is not None and not self.cycle.response_complete
        return None if busy or self._expected is _Expected.BODY else self._expected_since

    def evict(self) -> None:
        self._log_event("connection_evicted")
        self.transport.abort()

    # ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what cannot be parsed, as a problem document."""
        self._refuse("body_malformed", f"this is not HTTP/1.1 as RFC 9112 has it ({self._fault or msg})")

    def _refuse(self, code: str, detail: str) -> None:
        self._log_event("request_refused", code=code)
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self._close_connection()  # the answer of the request before would be taken for this one's
            return
        self.transport.write(encode_problem_response(ProblemError(code, detail)))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:  # TLS: `_end` would lose the refusal
            self.flow.pause_reading()
        self._expect(_Expected.DROPPED)

    def _close_connection(self) -> None:
        """Close the connection. With TLS, uvloop's `close` would read on for 30 s, until the client agrees to close."""
        if self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.abort()

    def _discard(self, size: int) -> None:
        self._discarded_bytes += size
        if self._discarded_bytes > LINGER_LIMIT_BYTES:
            self.transport.abort()

    def _log_event(self, event: str, **fields: object) -> None:
        self.server_state.client_events.log(event, self._slot.address, **fields)

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

    slot: ConnectionSlot | None = None

    def handle_connect(self, event: Request) -> None:
        whole, self.conn.max_message_size = self.conn.max_message_size, UNAUTHENTICATED_FRAME_LIMIT_BYTES
        super().handle_connect(event)

        def widen() -> None:
            self.conn.max_message_size = whole

        if not self.close_sent:
            cast("dict[str, Any]", self.scope["extensions"])[LARGE_FRAMES_EXTENSION] = widen

    def connection_lost(self, exc: Exception | None) -> None:
        if self.slot is not None:
            self.slot.release()
        super().connection_lost(exc)
