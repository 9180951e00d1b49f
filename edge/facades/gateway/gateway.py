"""The gateway: one WebSocket per client, `/ws` or `/dsp`, that speaks envelope v1.0.

Start at `Gateway.serve`, which follows one connection from its handshake to its end. A `GatewaySession` is one socket:
it answers requests one after the other, and sends pushes in between.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager

import structlog
from anyio import CancelScope, create_task_group, move_on_after, sleep
from anyio.abc import TaskGroup
from litestar import websocket
from litestar.di import NamedDependency
from msgspec import Struct

from bus.interface import BusError
from edge.core.clock import Clock, utc_now
from edge.core.validation import input_invalid_problem
from edge.facades.gateway.commands import COMMANDS
from edge.facades.gateway.connection import (
    AUTH_TIMEOUT_S,
    DISCONNECT_ERRORS,
    QUEUE_BYTES_LIMIT,
    QUEUE_MESSAGES_LIMIT,
    AnySocket,
    ClientGone,
    SendQueue,
    SocketCaller,
    allow_large_frames,
    authenticate_socket,
    credential_from_handshake,
    read_auth_message,
    receive_frame,
)
from edge.facades.gateway.envelopes import (
    STREAM_RETRY_DELAY_S,
    CommandContext,
    OwnerBroadcaster,
    Push,
    PushSubscriber,
    SubmitMetadataCache,
    encode_host_notice,
    error_reply,
    is_final,
)
from edge.hosts.registry import HostNotice
from edge.http.auth import KEY_REVOKED_REASON, NO_AUTH, WS_UNAUTHORIZED_CODE
from edge.http.dependencies import EdgeServices
from edge.http.problems import problem_for_error
from edge.http.request_input import ANY_PARAMETER
from edge.jobs.event_stream import parse_resume_token
from edge.jobs.view import Asker
from edge.owners.quotas import StreamLimiter, rate_limited
from edge.power.drivers.generic import REQUEST_KINDS, RelayConnection
from schemas.credentials import Scope
from schemas.gateway_protocol import ClientMessage, Envelope, EnvelopeType, FrameUnreadable, encode_envelope, read_frame
from schemas.job import WAITING_STATUSES, Token
from schemas.job_view import JobView
from schemas.problems import FieldError, ProblemError

CLOSE_SLOW_CLIENT = 4408
CLOSE_REASONS = {
    WS_UNAUTHORIZED_CODE: KEY_REVOKED_REASON,
    CLOSE_SLOW_CLIENT: "too many unread messages: reconnect and resume",
}
CLOSE_TIMEOUT_S = 30.0  # time for a slow client to read the buffers of the kernel and then the close frame

MakeSendQueue = Callable[[Callable[[], object]], SendQueue]

_log = structlog.get_logger()


class _Replay:
    """A replay in progress. `position`: the last id that it sent."""

    def __init__(self, position: str) -> None:
        self.position = position
        self.scope = CancelScope()


class GatewaySession(PushSubscriber, RelayConnection):
    """One socket. `broadcaster`: the owner's stream; None for a key without the scope to read jobs."""

    def __init__(
        self,
        socket: AnySocket,
        context: CommandContext,
        caller: SocketCaller,
        broadcaster: OwnerBroadcaster | None,
        make_send_queue: MakeSendQueue,
    ) -> None:
        self.caller = caller
        self.broadcaster = broadcaster
        self._socket = socket
        self._context = context
        self._send_queue = make_send_queue(lambda: self.end(CLOSE_SLOW_CLIENT))
        self._ended: int | None = None
        self._scope = CancelScope()
        self._replay: _Replay | None = None
        self._replayed_until = ""  # the broadcaster may repeat pushes up to this id

    async def run(self) -> None:
        """Serve until the client disconnects or `end` is called."""
        if self.broadcaster is not None:
            self.broadcaster.subscribers.add(self)
        try:
            with self._scope:
                async with create_task_group() as tasks:
                    tasks.start_soon(self._write_frames)
                    await self._read_frames(tasks)
                    tasks.cancel_scope.cancel()
        finally:
            if self.broadcaster is not None:
                self.broadcaster.subscribers.discard(self)
        if self._ended is not None:
            with move_on_after(CLOSE_TIMEOUT_S):
                await self._socket.close(code=self._ended, reason=CLOSE_REASONS[self._ended])

    def end(self, code: int) -> None:
        """Stop serving and close the socket with `code`, a key of CLOSE_REASONS."""
        self._ended = self._ended or code
        self._scope.cancel()

    # ── pushes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _position(self) -> str:
        """The id of the last push to this socket."""
        if self._replay is not None:
            return self._replay.position
        return self.broadcaster.last_id if self.broadcaster is not None else ""

    def receive_push(self, push: Push) -> None:
        if self._replayed_until:
            if _is_at_or_before(self._replayed_until, push.id):
                return
            self._replayed_until = ""
        self._send_queue.put_push(push.text)

    def receive_push_if_slack(self, push: Push) -> None:
        if self._send_queue.has_slack:
            self._send_queue.put_push(push.text)

    def send_host_notice(self, notice: HostNotice) -> None:
        """Push that a host went on or off."""
        frame = encode_host_notice(notice, self.caller.language, self._position)
        if frame is not None:
            self._send_queue.put_push(frame)

    def send_text(self, text: str) -> None:
        self._send_queue.put_reply(text)

    async def _write_frames(self) -> None:
        while True:
            frame = await self._send_queue.get()
            try:
                await self._socket.send({"type": "websocket.send", "text": frame, "bytes": None})
            except DISCONNECT_ERRORS:
                self._scope.cancel()
                return

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read_frames(self, tasks: TaskGroup) -> None:
        while True:
            await self._send_queue.wait_for_slack()
            try:
                frame = await receive_frame(self._socket)
            except (ClientGone, *DISCONNECT_ERRORS):
                return
            with self._send_queue.pause_pushes():
                for envelope in await self._handle_frame(frame, tasks):
                    self._send_queue.put_reply(encode_envelope(envelope))
                    for view in _final_views(envelope):
                        await self._push_final_state(view)

    async def _handle_frame(self, frame: str | bytes, tasks: TaskGroup) -> list[Envelope]:
        try:
            message = read_frame(frame)
        except FrameUnreadable as error:
            unreadable = ClientMessage(type="", request_id=error.request_id)
            return [error_reply(self._context, error, unreadable, self.caller.language)]
        try:
            if not await self.caller.is_still_valid(self._context.services):
                self.end(WS_UNAUTHORIZED_CODE)
                return []
            self._count_request()
            return await self._dispatch(message, tasks)
        except Exception as error:  # an error of one request must not end the connection
            return [error_reply(self._context, problem_for_error(error), message, self.caller.language)]

    def _count_request(self) -> None:
        """Count a message as a request of the caller's key. Raises ProblemError `rate_limited`."""
        state = self._context.services.request_limits.count(self.caller.key)
        if state is not None and state.retry_after_s:
            raise rate_limited(self.caller.key, state)

    async def _dispatch(self, message: ClientMessage, tasks: TaskGroup) -> list[Envelope]:
        if message.type in COMMANDS:
            return await COMMANDS[message.type](self._context, self.caller, message)
        if message.type in REQUEST_KINDS:
            self.caller.require_scope(Scope.RELAY)
            self._context.services.relay_hub.handle_reply(self, message)
        elif message.type == EnvelopeType.RESUME:
            self._start_replay(message, tasks)
        elif message.type != EnvelopeType.AUTH:  # a client that is already authenticated may send `auth` again
            raise input_invalid_problem(
                FieldError("$.type", f"{message.type[:64]!r} is not a message type of this gateway")
            )
        return []

    async def _push_final_state(self, view: JobView) -> None:
        """Push the result again for a request that was repeated after its job had ended."""
        if self.broadcaster is not None:
            self._send_queue.put_push((await self.broadcaster.push_builder.build_state_push(self._position, view)).text)

    # ── resume ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_replay(self, message: ClientMessage, tasks: TaskGroup) -> None:
        self.caller.require_scope(Scope.JOBS_READ)
        after = message.payload.get("after")
        if not isinstance(after, str) or self.broadcaster is None:
            raise input_invalid_problem(
                FieldError("$.payload.after", "must be the id of the last push that was received")
            )
        if self._replay is not None:
            self._replay.scope.cancel()
        self.broadcaster.subscribers.discard(self)
        self._replay = _Replay(after)
        tasks.start_soon(self._run_replay, self.broadcaster, self._replay)

    async def _run_replay(self, broadcaster: OwnerBroadcaster, replay: _Replay) -> None:
        """Replay the stored pushes after the resume position, then rejoin the owner's stream without a gap."""
        with replay.scope:
            while True:
                mark = broadcaster.last_id
                try:
                    await self._replay_stored(broadcaster, replay)
                except BusError:
                    await sleep(STREAM_RETRY_DELAY_S)
                    continue
                if broadcaster.last_id == mark:
                    self._replay, self._replayed_until = None, replay.position
                    broadcaster.subscribers.add(self)
                    return

    async def _replay_stored(self, broadcaster: OwnerBroadcaster, replay: _Replay) -> None:
        stored = self._context.services.event_streams.replay(broadcaster.owner, replay.position, self.caller.asker)
        async with aclosing(stored) as items:
            async for item in items:
                await self._send_queue.wait_for_slack()
                push = await broadcaster.push_builder.build_push(item)
                replay.position = item.id
                if push is not None:
                    self._send_queue.put_push(push.text)


def _is_at_or_before(position: str, push_id: str) -> bool:
    """Return whether `push_id` is at or before `position` in the same epoch of FEED."""
    limit, token = parse_resume_token(position), parse_resume_token(push_id)
    if limit is None or token is None or limit.epoch != token.epoch:
        return False
    return token.sequence <= limit.sequence


def _final_views(envelope: Envelope) -> list[JobView]:
    """Return the jobs in a reply to a submit that have already ended."""
    if envelope.type not in {EnvelopeType.ACK, EnvelopeType.OFFLINE}:
        return []
    views = [envelope.result] if isinstance(envelope.result, JobView) else envelope.result["jobs"]
    return [view for view in views if is_final(view)]


STREAM_READY_TIMEOUT_S = 5.0  # without a broker a socket starts without its owner's stream
CLOSE_TRY_AGAIN_LATER = 1013  # from the registry of RFC 6455
TRANSIENT_CODES = frozenset({"unavailable", "too_many_connections"})  # problems that a later attempt may not meet


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
