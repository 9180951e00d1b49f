"""A uvicorn server with the limits of `[server]`, and its listener. A process runs one for each listening socket.

Each connection gets a slot before the server reads a byte or starts a TLS handshake.
"""

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from edge.core.clients import ThrottledClientLog
from edge.http.middleware import is_server_fault
from edge.server.certificate import ServedCertificate
from edge.server.connections import ConnectionLimiter, ConnectionSlot, ServerContext, ServerSettings
from edge.server.protocol import BoundedHttp, BoundedServerState, BoundedWebSocket, encode_problem_response
from schemas.problems import ProblemError

ACCEPT_BATCH_LIMIT = 16  # per turn of the event loop; they block it for about 2 ms
ACCEPT_RETRY_INTERVAL_S = 0.5  # without free descriptors, accept fails again at once

# TLS records (RFC 5246): the type, version and length of the record; then the type and length of the message, and the
# newest version that the client speaks. A client of TLS 1.3 writes 1.2 there.
HANDSHAKE_RECORD, CLIENT_HELLO, HELLO_VERSION_END, TLS_1_2 = 22, 1, 11, b"\x03\x03"
PROTOCOL_VERSION_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"

ProtocolFactory = Callable[[ConnectionSlot], BoundedHttp]


def _resolve(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)


class ConnectionListener:
    """One listening socket. uvicorn stops it like an asyncio.Server: `close`, then `wait_closed`."""

    def __init__(
        self,
        listening: socket.socket,
        make_protocol: ProtocolFactory,
        context: ServerContext,
        tls: ServedCertificate | None,
    ) -> None:
        self._socket, self._make_protocol, self._tls = listening, make_protocol, tls
        self._handshake_s = context.limits.handshake_s
        self._connections, self._client_events = context.connections, context.client_events
        self._handshakes: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        listening.setblocking(False)
        self._resume()

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH_LIMIT):
            try:
                connected, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._client_events.log("accept_failed", "", error=str(error))
                self._loop.remove_reader(self._socket.fileno())
                self._loop.call_later(ACCEPT_RETRY_INTERVAL_S, self._resume)
                return
            self._admit(connected, str(peer[0]))

    def _admit(self, connected: socket.socket, address: str) -> None:
        connected.setblocking(False)
        try:
            slot = self._connections.acquire_slot(address)
        except ProblemError as error:
            self._client_events.log("connection_refused", address, code=error.code, error=error.detail)
            self._reject(connected, error)
            return
        task = self._loop.create_task(self._open(connected, slot))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    def _reject(self, connected: socket.socket, problem: ProblemError) -> None:
        """Send the problem and close. The response fits into the socket's buffer, so the send does not block."""
        with connected, contextlib.suppress(OSError):
            if self._tls is None:
                connected.send(encode_problem_response(problem))
                connected.shutdown(socket.SHUT_WR)
                connected.recv(65536)  # unread bytes would make the close a reset

    async def _open(self, connected: socket.socket, slot: ConnectionSlot) -> None:
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                await self._refuse_outdated_tls(connected)
            await self._loop.connect_accepted_socket(
                lambda: self._make_protocol(slot),
                connected,
                ssl=self._tls.context if self._tls is not None else None,
                ssl_handshake_timeout=self._handshake_s if self._tls is not None else None,
            )
        except (OSError, TimeoutError) as error:  # OSError includes ssl.SSLError
            if self._tls is not None:
                self._client_events.log("tls_handshake_failed", slot.address, error=str(error) or type(error).__name__)
            slot.release()
            connected.close()
        except BaseException:
            slot.release()
            connected.close()
            raise

    async def _refuse_outdated_tls(self, connected: socket.socket) -> None:
        """Wait for the first bytes of the client. Answer a hello of TLS before 1.2 with an alert, and raise an OSError.

        OpenSSL would refuse it too, but asyncio closes the connection before the alert is sent. Raises TimeoutError.
        """
        readable = self._loop.create_future()
        self._loop.add_reader(connected.fileno(), _resolve, readable)
        try:
            async with asyncio.timeout(self._handshake_s):
                await readable
        finally:
            self._loop.remove_reader(connected.fileno())
        hello = connected.recv(HELLO_VERSION_END, socket.MSG_PEEK)
        is_hello = len(hello) == HELLO_VERSION_END and hello[0] == HANDSHAKE_RECORD and hello[5] == CLIENT_HELLO
        if is_hello and hello[HELLO_VERSION_END - 2 :] < TLS_1_2:
            connected.send(PROTOCOL_VERSION_ALERT)
            connected.shutdown(socket.SHUT_WR)
            connected.recv(65536)  # unread bytes would make the close a reset, and the alert would be lost
            raise ConnectionError("the client speaks no TLS newer than 1.1")

    def close(self) -> None:
        """Stop accepting, and cancel the handshakes in progress."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            for task in self._handshakes:
                task.cancel()

    async def wait_closed(self) -> None:
        """Wait until every handshake has ended."""
        await asyncio.gather(*self._handshakes, return_exceptions=True)


SHUTDOWN_TIMEOUT_S = 3  # open streams are closed after this; their clients resume
# Longer than clients and proxies keep an idle connection (httpx2 5 s, nginx and load balancers 60 s, Caddy 120 s). If
# the server closed first, a client could send a request into a connection that is being closed.
KEEP_ALIVE_TIMEOUT_S = 150
RESERVED_FILES = 256  # file descriptors for the broker, stored files, webhooks and downloads
SWEEP_INTERVAL_TICKS = 10  # uvicorn ticks ten times a second
SWEEP_CLOSE_LIMIT = 100  # per tick, so that many overdue connections do not block the event loop

FRAME_LIMIT_BYTES = 16 * 1024 * 1024  # of an authenticated client; the server closes with 1009 beyond it

# Without compression, which needs buffers for every open socket and compresses every push once per socket.
WEBSOCKET_OPTIONS: Mapping[str, Any] = {
    "ws": BoundedWebSocket,
    "ws_max_size": FRAME_LIMIT_BYTES,
    "ws_ping_interval": 20,
    "ws_per_message_deflate": False,
}


def make_server_context(limits: ServerSettings, client_events: ThrottledClientLog) -> ServerContext:
    """Return the state that all servers of a process share. The limit of open files lowers `connections`."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = limits.connections if files == resource.RLIM_INFINITY else max(1, files - RESERVED_FILES)
    return ServerContext(limits, ConnectionLimiter(limits, min(limits.connections, allowed)), client_events)


class BoundedServer(uvicorn.Server):
    """Serves on sockets that are already bound. `edge.process` handles the signals."""

    def __init__(self, config: uvicorn.Config, context: ServerContext, certificate: ServedCertificate | None) -> None:
        super().__init__(config)
        self._context = context
        self._certificate = certificate
        self._has_overdue = False
        self.server_state: BoundedServerState = BoundedServerState(context.limits, context.client_events)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        listeners = [self._make_listener(listening) for listening in sockets or ()]
        self.servers = cast("list[asyncio.base_events.Server]", listeners)  # uvicorn closes them and waits for them
        self.started = True

    def _make_listener(self, listening: socket.socket) -> ConnectionListener:
        return ConnectionListener(listening, self._make_protocol, self._context, self._certificate)

    def _make_protocol(self, slot: ConnectionSlot) -> BoundedHttp:
        return BoundedHttp(self.config, self.server_state, self.lifespan.state, slot)

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_INTERVAL_TICKS == 0 or self._has_overdue:
            self._has_overdue = self._sweep()
        return await super().on_tick(counter)

    def _sweep(self) -> bool:
        """Close overdue connections. Return whether there may be more."""
        now, closed = asyncio.get_running_loop().time(), 0
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, BoundedHttp):
                closed += connection.sweep(now)
            if closed == SWEEP_CLOSE_LIMIT:
                return True
        return False


def make_server(app: ASGIApp, context: ServerContext, certificate: ServedCertificate | None = None) -> BoundedServer:
    """Return a server of `app` that has not started."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        timeout_keep_alive=KEEP_ALIVE_TIMEOUT_S,
        **WEBSOCKET_OPTIONS,
        proxy_headers=False,  # the edge reads X-Forwarded-For itself, from trusted proxies only
        server_header=False,
        ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
    )
    logging.getLogger("uvicorn.error").addFilter(is_server_fault)
    return BoundedServer(config, context, certificate)
