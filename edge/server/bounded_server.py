"""A uvicorn server with the bounds of `[server]`, one of several in a process."""

import asyncio
import logging
import resource
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import anyio
import uvicorn
from starlette.types import ASGIApp

from bus.server.config import TlsFiles
from edge.core.client_throttle import ThrottledClientLog
from edge.facades.gateway.frames import FRAME_LIMIT_BYTES
from edge.http.middleware import is_server_fault
from edge.server.certificate import ServedCertificate
from edge.server.connections import ConnectionLimiter, ConnectionSlot, ServerContext
from edge.server.listener import ConnectionListener
from edge.server.protocol import BoundedHttp, BoundedServerState, BoundedWebSocket
from edge.settings import ServerSettings

SHUTDOWN_TIMEOUT_S = 3  # open streams are cut after this: their clients resume
# Longer than clients and proxies keep an idle connection (httpx 5, aiohttp 15, load balancers 60): who closes first
# is never the one that may be spoken to at that moment.
KEEP_ALIVE_TIMEOUT_S = 75
RESERVED_FILES = 256  # descriptors for the broker, stored files, webhooks and fetches
SWEEP_INTERVAL_TICKS = 10  # uvicorn ticks ten times a second
RENEWAL_TICKS = 100  # between two looks at the certificate's files
SWEEP_CLOSE_LIMIT = 100  # overdue connections; the rest are closed at the next tick, so that a crowd holds up nobody

# Not compressed: it would cost each of a thousand open sockets its own buffers, and each push its own run.
WEBSOCKET_OPTIONS: Mapping[str, Any] = {
    "ws": BoundedWebSocket,
    "ws_max_size": FRAME_LIMIT_BYTES,
    "ws_ping_interval": 20,
    "ws_per_message_deflate": False,
}


def make_server_context(bounds: ServerSettings, strangers: ThrottledClientLog) -> ServerContext:
    """The connections of a process, as many as `bounds` and the limit of open files allow."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = bounds.connections if files == resource.RLIM_INFINITY else max(1, files - RESERVED_FILES)
    return ServerContext(bounds, ConnectionLimiter(bounds, min(bounds.connections, allowed)), strangers)


class BoundedServer(uvicorn.Server):
    """Serves on sockets that listen already. Signals are heard by whoever starts it."""

    def __init__(
        self, config: uvicorn.Config, shared: ServerContext, certificate: ServedCertificate | None, *, pinned: bool
    ) -> None:
        super().__init__(config)
        self._context = shared
        self._certificate = certificate
        self._renewing = None if pinned else certificate
        self._has_overdue = False
        self.server_state: BoundedServerState = BoundedServerState(shared.limits, shared.client_events)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        listeners = [self._make_listener(listening) for listening in sockets or ()]
        self.servers = cast("list[asyncio.base_events.Server]", listeners)  # uvicorn closes them, and waits for it
        self.started = True

    def _make_listener(self, listening: socket.socket) -> ConnectionListener:
        return ConnectionListener(listening, self._make_protocol, self._context, self._certificate)

    def _make_protocol(self, slot: ConnectionSlot) -> BoundedHttp:
        return BoundedHttp(self.config, self.server_state, self.lifespan.state, slot)

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_INTERVAL_TICKS == 0 or self._has_overdue:
            self._has_overdue = self._sweep()
        if self._renewing is not None and counter % RENEWAL_TICKS == 0:
            await anyio.to_thread.run_sync(self._renewing.look)
        return await super().on_tick(counter)

    def _sweep(self) -> bool:
        """Close what is overdue; whether there may be more of it."""
        now, closed = asyncio.get_running_loop().time(), 0
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, BoundedHttp):
                closed += connection.sweep(now)
            if closed == SWEEP_CLOSE_LIMIT:
                return True
        return False


def make_server(
    app: ASGIApp, shared: ServerContext, tls: TlsFiles | None = None, *, pinned: bool = False
) -> BoundedServer:
    """A server of `app` that has not started. `pinned`: clients trust this very certificate, so that another one in its
    place is served only after a restart. Blocking; raises OSError for a certificate that cannot be used."""
    certificate = None if tls is None else ServedCertificate(tls)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        timeout_keep_alive=KEEP_ALIVE_TIMEOUT_S,
        **WEBSOCKET_OPTIONS,
        proxy_headers=False,  # nothing here goes by what a proxy says of its client
        server_header=False,
        ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
    )
    logging.getLogger("uvicorn.error").addFilter(is_server_fault)
    return BoundedServer(config, shared, certificate, pinned=pinned)
