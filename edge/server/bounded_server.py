"""A uvicorn server with the limits of `[server]`. A process runs one for each listening socket."""

import asyncio
import logging
import resource
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from edge.core.client_throttle import ThrottledClientLog
from edge.http.middleware import is_server_fault
from edge.server.certificate import ServedCertificate
from edge.server.connections import ConnectionLimiter, ConnectionSlot, ServerContext, ServerSettings
from edge.server.listener import ConnectionListener
from edge.server.protocol import BoundedHttp, BoundedServerState, BoundedWebSocket

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
