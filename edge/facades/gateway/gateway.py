"""Every socket of this edge, and what runs for all of them together."""

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
from edge.facades.gateway.frames import DISCONNECT_ERRORS, AnySocket, ClientGone, allow_large_frames
from edge.facades.gateway.send_queue import QUEUE_BYTES_LIMIT, QUEUE_MESSAGES_LIMIT, SendQueue
from edge.facades.gateway.session import GatewaySession
from edge.hosts.registry import HostNotice
from edge.http.auth import NO_AUTH, WS_UNAUTHORIZED_CODE
from edge.http.dependencies import EdgeServices
from edge.jobs.view import Asker
from schemas.auth import Scope
from schemas.problems import ProblemError
from schemas.status import WAITING_STATUSES

STREAM_READY_TIMEOUT_S = (
    5.0  # how long a socket waits for its owner's stream; with a broker that is away it goes on without
)
CLOSE_TRY_AGAIN_LATER = 1013  # RFC 6455's registry: try again later
TRANSIENT_REFUSALS = frozenset({"unavailable", "too_many_connections"})  # refusals that pass by themselves

_log = structlog.get_logger()


class GatewayLimits(Struct, frozen=True):
    """Seconds, messages and bytes. `tell_every_s`: the line about every job that waits, and the look at every key."""

    waiting_interval_s: float = 10.0
    auth_timeout_s: float = AUTH_TIMEOUT_S
    queue_messages_limit: int = QUEUE_MESSAGES_LIMIT
    queue_bytes_limit: int = QUEUE_BYTES_LIMIT


class Gateway:
    """`run` must be running before the first socket is served."""

    def __init__(self, parts: EdgeServices, limits: GatewayLimits | None = None, now: Clock = utc_now) -> None:
        self._services = parts
        self._limits = limits or GatewayLimits()
        self._context = CommandContext(parts, SubmitMetadataCache(parts.bus.job_store), now)
        self._broadcasters: dict[tuple[str, Asker], OwnerBroadcaster] = {}
        self._sessions: set[GatewaySession] = set()
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Hold the streams, and say every ten seconds what still waits, without end."""
        async with create_task_group() as tasks:
            self._tasks = tasks
            self._services.hosts.subscribe(self._on_host_notice)
            while True:
                await sleep(self._limits.waiting_interval_s)
                try:
                    await self._check_keys_and_send_waiting()
                except (BusError, ProblemError) as error:
                    _log.warning("waiting_not_told", error=str(error))

    async def serve(self, socket: AnySocket) -> None:
        """One connection, to its end."""
        with ExitStack() as counted:
            try:
                caller = await self._authenticate(socket)
                counted.enter_context(self._services.socket_limits.count_stream(caller.key))
            except ProblemError as refused:
                await _close_socket(
                    socket,
                    CLOSE_TRY_AGAIN_LATER if refused.code in TRANSIENT_REFUSALS else WS_UNAUTHORIZED_CODE,
                    refused.detail,
                )
                return
            except (ClientGone, *DISCONNECT_ERRORS):
                return
            await self._run_session(socket, caller)

    async def _authenticate(self, socket: AnySocket) -> SocketCaller:
        """The caller on the accepted socket.

        A key in the handshake is looked at before the socket is accepted: from then on the client may send frames of
        any size, and the server takes large ones only where the client is known. Raises Refused, Gone.
        """
        text = credential_from_handshake(socket)
        caller = None
        try:
            if text:
                caller = await authenticate_socket(socket, self._services, text)
        finally:
            await socket.accept()  # also for a stranger: the close code tells why
        if caller is None:
            text = await read_auth_message(socket, self._limits.auth_timeout_s)
            caller = await authenticate_socket(socket, self._services, text)
        allow_large_frames(socket)
        return caller

    async def _run_session(self, socket: AnySocket, caller: SocketCaller) -> None:
        hub = self._join_broadcaster(caller) if caller.key.allows(Scope.JOBS_READ) else None
        with self._registered(GatewaySession(socket, self._context, caller, hub, self._make_send_queue)) as session:
            if hub is not None:
                with move_on_after(STREAM_READY_TIMEOUT_S):
                    await hub.ready.wait()
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
        """The owner's stream, opened for its first socket."""
        if self._tasks is None:
            raise RuntimeError("Gateway.run must be running before a socket is served")
        name = (caller.owner, caller.asker)
        hub = self._broadcasters.get(name)
        if hub is None:
            hub = self._broadcasters[name] = OwnerBroadcaster(self._context, *name)
            self._tasks.start_soon(hub.run)
        hub.session_count += 1
        return hub

    def _leave_broadcaster(self, hub: OwnerBroadcaster, caller: SocketCaller) -> None:
        """Close the stream behind its last socket."""
        hub.session_count -= 1
        if not hub.session_count:
            del self._broadcasters[caller.owner, caller.asker]
            hub.scope.cancel()

    def _on_host_notice(self, notice: HostNotice) -> None:
        for session in tuple(self._sessions):
            session.send_host_notice(notice)

    async def _check_keys_and_send_waiting(self) -> None:
        for session in tuple(self._sessions):
            if not await session.caller.is_still_valid(self._services):
                session.end(WS_UNAUTHORIZED_CODE)
        counts = self._services.index.count_jobs().items()
        waiting = {count.owner for count, jobs in counts if jobs and count.status in WAITING_STATUSES}
        for hub in tuple(self._broadcasters.values()):
            if hub.owner in waiting:
                await hub.send_waiting_states()


@asynccontextmanager
async def run_gateway(
    parts: EdgeServices, limits: GatewayLimits | None = None, now: Clock = utc_now
) -> AsyncIterator[Gateway]:
    """A gateway for as long as the block runs."""
    gateway = Gateway(parts, limits, now)
    async with create_task_group() as tasks:
        tasks.start_soon(gateway.run)
        yield gateway
        tasks.cancel_scope.cancel()


async def _close_socket(socket: AnySocket, code: int, why: str) -> None:
    """A close frame's reason has at most 123 bytes."""
    try:
        await socket.close(code=code, reason=why.encode()[:120].decode(errors="ignore"))
    except DISCONNECT_ERRORS:
        return


# MERGED edge/facades/gateway/route.py: `/ws` and `/dsp`: the same gateway under two names.


@websocket(["/ws", "/dsp"], opt={NO_AUTH: True})
async def gateway_socket(socket: AnySocket, gateway: NamedDependency[Gateway]) -> None:
    """Envelope v1.0. The key comes with the handshake or in the first message."""
    await gateway.serve(socket)


ROUTES = (gateway_socket,)
