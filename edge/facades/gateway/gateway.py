"""The gateway: one WebSocket per client, `/ws` or `/dsp`, that speaks envelope v1.0.

Start here: `Gateway.serve` follows one connection from its handshake to its end.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

import structlog
from anyio import create_task_group, move_on_after, sleep
from anyio.abc import TaskGroup
from litestar import websocket
from litestar.di import NamedDependency
from msgspec import Struct

from bus.interface import BusError
from edge.core.clock import Clock, utc_now
from edge.facades.gateway.auth import (
    AUTH_TIMEOUT_S,
    SocketCaller,
    authenticate_socket,
    credential_from_handshake,
    read_auth_message,
)
from edge.facades.gateway.broadcast import OwnerBroadcaster
from edge.facades.gateway.context import CommandContext, SubmitMetadataCache
from edge.facades.gateway.frames import (
    DISCONNECT_ERRORS,
    QUEUE_BYTES_LIMIT,
    QUEUE_MESSAGES_LIMIT,
    AnySocket,
    ClientGone,
    SendQueue,
    allow_large_frames,
)
from edge.facades.gateway.session import GatewaySession
from edge.hosts.registry import HostNotice
from edge.http.auth import NO_AUTH, WS_UNAUTHORIZED_CODE
from edge.http.dependencies import EdgeServices
from edge.http.query_parameters import ANY_PARAMETER
from edge.jobs.view import Asker
from edge.owners.quotas import StreamLimiter
from schemas.auth import Scope
from schemas.ids import Token
from schemas.problems import ProblemError
from schemas.status import WAITING_STATUSES

STREAM_READY_TIMEOUT_S = 5.0  # without a broker a socket starts without its owner's stream
CLOSE_TRY_AGAIN_LATER = 1013  # from the registry of RFC 6455
TRANSIENT_CODES = frozenset({"unavailable", "too_many_connections"})  # problems that a later attempt may not meet

_log = structlog.get_logger()


class GatewayLimits(Struct, frozen=True):
    """Limits of the gateway; the names carry the units.

    `waiting_interval_s`: how often the gateway sends the state of waiting jobs and checks the keys of open sockets.
    """

    waiting_interval_s: float = 10.0
    auth_timeout_s: float = AUTH_TIMEOUT_S
    queue_messages_limit: int = QUEUE_MESSAGES_LIMIT
    queue_bytes_limit: int = QUEUE_BYTES_LIMIT
    sockets_per_key: int = 1000
    sockets_per_owner: int = 2000


class Gateway:
    """All gateway sockets of one edge. `run` must run before `serve` is called."""

    def __init__(
        self,
        services: EdgeServices,
        limits: GatewayLimits | None = None,
        now: Clock = utc_now,
        *,
        heygem_endpoint: Token,
    ) -> None:
        self._services = services
        self._limits = limits or GatewayLimits()
        self._socket_limits = StreamLimiter(
            "gateway sockets", self._limits.sockets_per_key, self._limits.sockets_per_owner
        )
        metadata = SubmitMetadataCache(services.bus.job_store)
        self._context = CommandContext(services, heygem_endpoint, metadata, now)
        self._broadcasters: dict[tuple[str, Asker], OwnerBroadcaster] = {}
        self._sessions: set[GatewaySession] = set()
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Run the owners' streams, and send the state of waiting jobs every `waiting_interval_s`. Never returns."""
        async with create_task_group() as tasks:
            self._tasks = tasks
            self._services.hosts.subscribe(self._on_host_notice)
            while True:
                await sleep(self._limits.waiting_interval_s)
                try:
                    await self._check_keys_and_send_waiting()
                except (BusError, ProblemError) as error:
                    _log.warning("waiting_states_failed", error=str(error))

    async def serve(self, socket: AnySocket) -> None:
        """Serve one connection until it ends."""
        with ExitStack() as slot:
            try:
                caller = await self._authenticate(socket)
                slot.enter_context(self._socket_limits.count_stream(caller.key))
            except ProblemError as refused:
                await _close_socket(
                    socket,
                    CLOSE_TRY_AGAIN_LATER if refused.code in TRANSIENT_CODES else WS_UNAUTHORIZED_CODE,
                    refused.detail,
                )
                return
            except (ClientGone, *DISCONNECT_ERRORS):
                return
            await self._run_session(socket, caller)

    async def _authenticate(self, socket: AnySocket) -> SocketCaller:
        """Accept the socket and return its caller.

        A key in the handshake is checked before the socket is accepted: an accepted client may send frames, and the
        server takes large frames only from known clients. Raises ProblemError, ClientGone.
        """
        text = credential_from_handshake(socket)
        caller = None
        try:
            if text:
                caller = await authenticate_socket(socket, self._services, text)
        finally:
            await socket.accept()  # a client without a valid key as well: it reads the close code
        if caller is None:
            text = await read_auth_message(socket, self._limits.auth_timeout_s)
            caller = await authenticate_socket(socket, self._services, text)
        allow_large_frames(socket)
        return caller

    async def _run_session(self, socket: AnySocket, caller: SocketCaller) -> None:
        broadcaster = self._join_broadcaster(caller) if caller.key.allows(Scope.JOBS_READ) else None
        with self._registered(
            GatewaySession(socket, self._context, caller, broadcaster, self._make_send_queue)
        ) as session:
            if broadcaster is not None:
                with move_on_after(STREAM_READY_TIMEOUT_S):
                    await broadcaster.ready.wait()
            await session.run()

    def _make_send_queue(self, overflow: Callable[[], object]) -> SendQueue:
        return SendQueue(overflow, self._limits.queue_messages_limit, self._limits.queue_bytes_limit)

    @contextmanager
    def _registered(self, session: GatewaySession) -> Iterator[GatewaySession]:
        relay = session.caller.key.allows(Scope.RELAY)
        self._sessions.add(session)
        if relay:
            self._services.relay_hub.register(session)
        try:
            yield session
        finally:
            self._sessions.discard(session)
            self._services.relay_hub.unregister(session)
            if session.broadcaster is not None:
                self._leave_broadcaster(session.broadcaster, session.caller)

    def _join_broadcaster(self, caller: SocketCaller) -> OwnerBroadcaster:
        """Return the owner's stream, and open it for the first socket."""
        if self._tasks is None:
            raise RuntimeError("Gateway.run must be running before a socket is served")
        name = (caller.owner, caller.asker)
        broadcaster = self._broadcasters.get(name)
        if broadcaster is None:
            broadcaster = self._broadcasters[name] = OwnerBroadcaster(self._context, *name)
            self._tasks.start_soon(broadcaster.run)
        broadcaster.session_count += 1
        return broadcaster

    def _leave_broadcaster(self, broadcaster: OwnerBroadcaster, caller: SocketCaller) -> None:
        """Close the stream after its last socket."""
        broadcaster.session_count -= 1
        if not broadcaster.session_count:
            del self._broadcasters[caller.owner, caller.asker]
            broadcaster.scope.cancel()

    def _on_host_notice(self, notice: HostNotice) -> None:
        for session in tuple(self._sessions):
            session.send_host_notice(notice)

    async def _check_keys_and_send_waiting(self) -> None:
        for session in tuple(self._sessions):
            if not await session.caller.is_still_valid(self._services):
                session.end(WS_UNAUTHORIZED_CODE)
        counts = self._services.index.count_jobs().items()
        waiting = {count.owner for count, jobs in counts if jobs and count.status in WAITING_STATUSES}
        for broadcaster in tuple(self._broadcasters.values()):
            if broadcaster.owner in waiting:
                await broadcaster.send_waiting_states()


@asynccontextmanager
async def run_gateway(
    services: EdgeServices, limits: GatewayLimits | None = None, now: Clock = utc_now, *, heygem_endpoint: Token
) -> AsyncIterator[Gateway]:
    """Run a gateway for the duration of the block."""
    gateway = Gateway(services, limits, now, heygem_endpoint=heygem_endpoint)
    async with create_task_group() as tasks:
        tasks.start_soon(gateway.run)
        yield gateway
        tasks.cancel_scope.cancel()


async def _close_socket(socket: AnySocket, code: int, why: str) -> None:
    """Close with `why` as the reason, cut because a close frame carries at most 123 bytes of it."""
    try:
        await socket.close(code=code, reason=why.encode()[:120].decode(errors="ignore"))
    except DISCONNECT_ERRORS:
        return


@websocket(["/ws", "/dsp"], opt={NO_AUTH: True, ANY_PARAMETER: True})
async def gateway_socket(socket: AnySocket, gateway: NamedDependency[Gateway]) -> None:
    """Serve envelope v1.0. The client sends its key in the handshake or in its first message."""
    await gateway.serve(socket)


ROUTES = (gateway_socket,)
