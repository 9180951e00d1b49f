"""Every socket of this edge, and what runs for all of them together."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

import structlog
from anyio import create_task_group, move_on_after, sleep
from anyio.abc import TaskGroup
from msgspec import Struct

from bus.port import BusError
from edge.auth.keys import UNWELCOME
from edge.facades.gateway.callers import AUTH_WITHIN_S, Caller, admit, carried, first_message
from edge.facades.gateway.hall import Hall
from edge.facades.gateway.hubs import Hub
from edge.facades.gateway.origins import Origins
from edge.facades.gateway.outbox import BYTES, MESSAGES, Outbox
from edge.facades.gateway.session import Session
from edge.facades.gateway.wire import LOST, AnySocket, Gone, widen
from edge.parts import Parts
from edge.services.clock import Clock, utc_now
from edge.services.hosts import HostNotice
from edge.services.view import Asker
from schemas.access import Scope
from schemas.errors import Refused
from schemas.words import WAITING

READY_S = 5.0  # how long a socket waits for its owner's stream; with a broker that is away it goes on without
AWAY = 1013  # RFC 6455's registry: try again later
LATER = frozenset({"unavailable", "too_many_connections"})  # refusals that pass by themselves

_log = structlog.get_logger()


class Limits(Struct, frozen=True):
    """Seconds, messages and bytes. `tell_every_s`: the line about every job that waits, and the look at every key."""

    tell_every_s: float = 10.0
    auth_within_s: float = AUTH_WITHIN_S
    outbox_messages: int = MESSAGES
    outbox_bytes: int = BYTES


class Gateway:
    """`run` must be running before the first socket is served."""

    def __init__(self, parts: Parts, limits: Limits | None = None, now: Clock = utc_now) -> None:
        self._parts = parts
        self._limits = limits or Limits()
        self._hall = Hall(parts, Origins(parts.bus.records), now)
        self._hubs: dict[tuple[str, Asker], Hub] = {}
        self._sessions: set[Session] = set()
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Hold the streams, and say every ten seconds what still waits, without end."""
        async with create_task_group() as tasks:
            self._tasks = tasks
            self._parts.hosts.listen(self._notice)
            while True:
                await sleep(self._limits.tell_every_s)
                try:
                    await self._tell()
                except (BusError, Refused) as error:
                    _log.warning("waiting_not_told", error=str(error))

    async def serve(self, socket: AnySocket) -> None:
        """One connection, to its end."""
        with ExitStack() as counted:
            try:
                caller = await self._admitted(socket)
                counted.enter_context(self._parts.sockets.opened(caller.key))
            except Refused as refused:
                await _close(socket, AWAY if refused.code in LATER else UNWELCOME, refused.detail)
                return
            except (Gone, *LOST):
                return
            await self._converse(socket, caller)

    async def _admitted(self, socket: AnySocket) -> Caller:
        """The caller on the accepted socket.

        A key in the handshake is looked at before the socket is accepted: from then on the client may send frames of
        any size, and the server takes large ones only where the client is known. Raises Refused, Gone.
        """
        text = carried(socket)
        caller = None
        try:
            if text:
                caller = await admit(socket, self._parts, text)
        finally:
            await socket.accept()  # also for a stranger: the close code tells why
        if caller is None:
            text = await first_message(socket, self._limits.auth_within_s)
            caller = await admit(socket, self._parts, text)
        widen(socket)
        return caller

    async def _converse(self, socket: AnySocket, caller: Caller) -> None:
        hub = self._hub(caller) if caller.key.allows(Scope.JOBS_READ) else None
        with self._joined(Session(socket, self._hall, caller, hub, self._outbox)) as session:
            if hub is not None:
                with move_on_after(READY_S):
                    await hub.ready.wait()
            await session.run()

    def _outbox(self, overflow: Callable[[], object]) -> Outbox:
        return Outbox(overflow, self._limits.outbox_messages, self._limits.outbox_bytes)

    @contextmanager
    def _joined(self, session: Session) -> Iterator[Session]:
        relay = session.caller.key.allows(Scope.RELAY)
        self._sessions.add(session)
        if relay:
            self._parts.relays.enter(session)
        try:
            yield session
        finally:
            self._sessions.discard(session)
            self._parts.relays.leave(session)
            if session.hub is not None:
                self._left(session.hub, session.caller)

    def _hub(self, caller: Caller) -> Hub:
        """The owner's stream, opened for its first socket."""
        if self._tasks is None:
            raise RuntimeError("Gateway.run must be running before a socket is served")
        name = (caller.owner, caller.asker)
        hub = self._hubs.get(name)
        if hub is None:
            hub = self._hubs[name] = Hub(self._hall, *name)
            self._tasks.start_soon(hub.run)
        hub.users += 1
        return hub

    def _left(self, hub: Hub, caller: Caller) -> None:
        """Close the stream behind its last socket."""
        hub.users -= 1
        if not hub.users:
            del self._hubs[caller.owner, caller.asker]
            hub.scope.cancel()

    def _notice(self, notice: HostNotice) -> None:
        for session in tuple(self._sessions):
            session.notice(notice)

    async def _tell(self) -> None:
        for session in tuple(self._sessions):
            if not await session.caller.still_known(self._parts):
                session.end(UNWELCOME)
        counts = self._parts.index.counts().items()
        waiting = {count.owner for count, jobs in counts if jobs and count.status in WAITING}
        for hub in tuple(self._hubs.values()):
            if hub.owner in waiting:
                await hub.tell_waiting()


@asynccontextmanager
async def running_gateway(parts: Parts, limits: Limits | None = None, now: Clock = utc_now) -> AsyncIterator[Gateway]:
    """A gateway for as long as the block runs."""
    gateway = Gateway(parts, limits, now)
    async with create_task_group() as tasks:
        tasks.start_soon(gateway.run)
        yield gateway
        tasks.cancel_scope.cancel()


async def _close(socket: AnySocket, code: int, why: str) -> None:
    """A close frame's reason has at most 123 bytes."""
    try:
        await socket.close(code=code, reason=why.encode()[:120].decode(errors="ignore"))
    except LOST:
        return
