"""uvicorn's protocols, with limits on the head of a request and on the frames of an unauthenticated WebSocket.

httptools has no limit of its own: it copies an unfinished header at each read, so one endless header costs the event
loop more and more time. This module counts bytes before they are parsed; a sweep of the server enforces the timeouts.
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

from edge.core.clients import ThrottledClientLog
from edge.http.middleware import LARGE_FRAMES_EXTENSION
from edge.http.problems import make_problem_response
from edge.server.connections import ConnectionSlot, ServerSettings
from schemas.problems import ProblemError

LINGER_LIMIT_BYTES = 1024 * 1024  # of a rejected request, read and dropped so that the response arrives
LINGER_TIMEOUT_S = 2.0
# With two of one of these headers, a proxy and the application might use different ones. httptools rejects a second
# Content-Length itself.
SINGLE_HEADERS = (b"host", b"origin")
UNAUTHENTICATED_FRAME_LIMIT_BYTES = 16 * 1024  # one WebSocket message of an unauthenticated client


class BoundedServerState(ServerState):
    """The state that all connections of one server share."""

    def __init__(self, limits: ServerSettings, client_events: ThrottledClientLog) -> None:
        super().__init__()
        self.limits = limits
        self.client_events = client_events


class _Expected(Enum):
    """The part of a request that the client must send next."""

    NOTHING = auto()
    HEAD = auto()
    BODY = auto()
    DROPPED = auto()  # the request was rejected; its rest is read and dropped


def encode_problem_response(error: Exception) -> bytes:
    """Return a complete HTTP/1.1 response with the problem document of `error`. It closes the connection."""
    response = make_problem_response(error, "")
    headers = {
        **response.headers,
        "Content-Type": response.media_type,
        "Content-Length": str(len(response.body)),
        "Connection": "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {response.status} {response.title}\r\n{lines}\r\n".encode("latin-1") + response.body


class BoundedHttp(HttpToolsProtocol):
    """One connection. `slot`: released when the connection closes."""

    server_state: BoundedServerState

    def __init__(
        self, config: Config, server_state: BoundedServerState, app_state: dict[str, Any], slot: ConnectionSlot
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._limits = server_state.limits
        self._slot = slot
        self._expected = _Expected.HEAD
        self._expected_since = self.loop.time()  # for a body: since the last progress
        self._has_progressed = False  # whether the body progressed since the last sweep
        self._unparsed_bytes = 0  # since the parser last completed an element
        self._discarded_bytes = 0
        self._fault = ""  # why this class, not the parser, rejected the head
        slot.occupant = self

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._expected_since = self.loop.time()  # the TLS handshake has a timeout of its own

    # ── receiving ────────────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Parse `data` in chunks that never extend an unfinished element beyond `head_bytes`."""
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
        """Return whether more bytes are parsed here: not rejected, not closed, not upgraded to a WebSocket."""
        return (
            self._expected is not _Expected.DROPPED and self._slot.occupant is self and not self.transport.is_closing()
        )

    def _feed(self, chunk: bytes) -> None:
        if self._expected is _Expected.NOTHING:
            self._expect(_Expected.HEAD)
        self._unparsed_bytes += len(chunk)
        super().data_received(chunk)
        if self._unparsed_bytes >= self._limits.head_bytes and not self.transport.is_closing():
            self._refuse(
                "head_too_large", f"the head of a request may have at most {self._limits.head_bytes} bytes: send less"
            )

    def _expect(self, expected: _Expected) -> None:
        self._expected, self._expected_since = expected, self.loop.time()

    def on_message_begin(self) -> None:
        self._expect(_Expected.HEAD)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        names = [name for name, _ in self.headers]
        for name in SINGLE_HEADERS:
            if names.count(name) > 1:
                self._fault = f"the header {name.decode().title()} occurs more than once"
                raise httptools.HttpParserError(self._fault)  # the application does not see the request
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

    # ── timeouts ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def sweep(self, now: float) -> bool:
        """Close the connection if the client is overdue. Return whether it was. Called about once a second."""
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
        if not self._unparsed_bytes:  # browsers open spare connections, and would show a response without a request
            self._log_event("connection_idle", seconds=self._limits.head_s)
            self._close_connection()
            return
        self._refuse(
            "head_timeout", f"the head of the request did not arrive within {self._limits.head_s:g} s: send it again"
        )

    def idle_since(self) -> float | None:
        busy = self.cycle is not None and not self.cycle.response_complete
        return None if busy or self._expected is _Expected.BODY else self._expected_since

    def evict(self) -> None:
        self._log_event("connection_evicted")
        self.transport.abort()

    # ── rejections ───────────────────────────────────────────────────────────────────────────────────────────────────

    def send_400_response(self, msg: str) -> None:
        """Send a problem document where uvicorn would send plain text for a malformed request."""
        self._refuse(
            "body_malformed", f"the request is not valid HTTP/1.1 ({self._fault or msg}): correct it (RFC 9112)"
        )

    def _refuse(self, code: str, detail: str) -> None:
        self._log_event("request_refused", code=code)
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self._close_connection()  # the client would take the previous response for this one
            return
        self.transport.write(encode_problem_response(ProblemError(code, detail)))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:  # TLS: closing now would lose the response
            self.flow.pause_reading()
        self._expect(_Expected.DROPPED)

    def _close_connection(self) -> None:
        """Close the connection. With TLS abort it: uvloop's `close` waits up to 30 s for the client."""
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

    # ── upgrade and close ────────────────────────────────────────────────────────────────────────────────────────────

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        socket = self.transport.get_protocol()
        if isinstance(socket, BoundedWebSocket):
            socket.slot = self._slot
        self._slot.occupant = None  # open WebSockets are not evicted

    def connection_lost(self, exc: Exception | None) -> None:
        self._slot.release()
        super().connection_lost(exc)


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """Limits messages to UNAUTHENTICATED_FRAME_LIMIT_BYTES until the app calls LARGE_FRAMES_EXTENSION."""

    slot: ConnectionSlot | None = None

    def handle_connect(self, event: Request) -> None:
        full_limit, self.conn.max_message_size = self.conn.max_message_size, UNAUTHENTICATED_FRAME_LIMIT_BYTES
        super().handle_connect(event)

        def allow_large_frames() -> None:
            self.conn.max_message_size = full_limit

        if not self.close_sent:
            cast("dict[str, Any]", self.scope["extensions"])[LARGE_FRAMES_EXTENSION] = allow_large_frames

    def connection_lost(self, exc: Exception | None) -> None:
        if self.slot is not None:
            self.slot.release()
        super().connection_lost(exc)
