"""One socket from its first frame to its last: requests are answered one after the other, pushes go in between."""

from collections.abc import Callable
from contextlib import aclosing

from anyio import CancelScope, create_task_group, move_on_after, sleep
from anyio.abc import TaskGroup

from bus.port import BusError
from edge.auth.keys import REVOKED, UNWELCOME
from edge.facades.gateway.callers import Caller
from edge.facades.gateway.commands import COMMANDS
from edge.facades.gateway.envelopes import is_final, refusal
from edge.facades.gateway.hall import Hall
from edge.facades.gateway.hubs import AGAIN_S, Hub, Listener
from edge.facades.gateway.outbox import Outbox
from edge.facades.gateway.pushes import Push, broadcast
from edge.facades.gateway.relays import KINDS, RelaySocket
from edge.facades.gateway.wire import LOST, AnySocket, Gone, next_frame, text
from edge.problems import refusal_for
from edge.services.hosts import HostNotice
from edge.services.inputs import invalid
from edge.services.stream import read_bookmark
from schemas.access import Scope
from schemas.envelope import Envelope, Kind, Message, Unreadable, read
from schemas.errors import FieldError
from schemas.view import JobView

SLOW = 4408
WHY = {
    UNWELCOME: REVOKED,
    SLOW: "too much waits unread here: come again, and resume",
}
CLOSE_S = 30.0  # a client that did not read gets this long to read what the kernel holds, and then why it was closed

MakeOutbox = Callable[[Callable[[], object]], Outbox]


class Session(Listener, RelaySocket):
    """`hub`: the owner's stream, None for a key that may not read jobs."""

    def __init__(self, socket: AnySocket, hall: Hall, caller: Caller, hub: Hub | None, make: MakeOutbox) -> None:
        self.caller = caller
        self.hub = hub
        self._socket = socket
        self._hall = hall
        self._outbox = make(lambda: self.end(SLOW))
        self._ended: int | None = None
        self._scope = CancelScope()
        self._replaying: CancelScope | None = None
        self._place = ""  # behind which a replay is
        self._given = ""  # up to which the hub may say again what a replay gave

    async def run(self) -> None:
        """Until the client leaves, or `end` was called."""
        if self.hub is not None:
            self.hub.listeners.add(self)
        try:
            with self._scope:
                async with create_task_group() as tasks:
                    tasks.start_soon(self._write)
                    await self._read(tasks)
                    tasks.cancel_scope.cancel()
        finally:
            if self.hub is not None:
                self.hub.listeners.discard(self)
        if self._ended is not None:
            with move_on_after(CLOSE_S):
                await self._socket.close(code=self._ended, reason=WHY[self._ended])

    def end(self, code: int) -> None:
        """Close with `code`."""
        self._ended = self._ended or code
        self._scope.cancel()

    # ── what is pushed ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _behind(self) -> str:
        """The id behind which this socket is."""
        if self._replaying is not None:
            return self._place
        return self.hub.last if self.hub is not None else ""

    def hear(self, push: Push) -> None:
        if self._given:
            if _not_behind(self._given, push.id):
                return
            self._given = ""
        self._outbox.push(push.text)

    def hear_if_relaxed(self, push: Push) -> None:
        if self._outbox.relaxed:
            self._outbox.push(push.text)

    def notice(self, notice: HostNotice) -> None:
        """A host went on or off."""
        said = broadcast(notice, self.caller.language, self._behind)
        if said is not None:
            self._outbox.push(said)

    def say(self, text: str) -> None:
        self._outbox.answer(text)

    async def _write(self) -> None:
        while True:
            said = await self._outbox.take()
            try:
                await self._socket.send({"type": "websocket.send", "text": said, "bytes": None})
            except LOST:
                self._scope.cancel()
                return

    # ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self, tasks: TaskGroup) -> None:
        while True:
            await self._outbox.room()
            try:
                frame = await next_frame(self._socket)
            except (Gone, *LOST):
                return
            with self._outbox.holding():
                for envelope in await self._answers(frame, tasks):
                    self._outbox.answer(text(envelope))
                    for view in _already_ended(envelope):
                        await self._say_again(view)

    async def _answers(self, frame: str | bytes, tasks: TaskGroup) -> list[Envelope]:
        try:
            message = read(frame)
        except Unreadable as refused:
            return [refusal(self._hall, refused, Message(type="", request_id=refused.request_id), self.caller.language)]
        try:
            if not await self.caller.still_known(self._hall.parts):
                self.end(UNWELCOME)
                return []
            return await self._act(message, tasks)
        except Exception as error:  # the border: whatever one request meets, the connection stays
            return [refusal(self._hall, refusal_for(error), message, self.caller.language)]

    async def _act(self, message: Message, tasks: TaskGroup) -> list[Envelope]:
        if message.type in COMMANDS:
            return await COMMANDS[message.type](self._hall, self.caller, message)
        if message.type in KINDS:
            self.caller.needs(Scope.RELAY)
            self._hall.parts.relays.answered(self, message)
        elif message.type == Kind.RESUME:
            self._resume(message, tasks)
        elif message.type != Kind.AUTH:  # who is in already need not come in again
            raise invalid(FieldError("$.type", f"{message.type[:64]!r} is no type of this gateway"))
        return []

    async def _say_again(self, view: JobView) -> None:
        """A request that was sent anew after its job had ended: its result was pushed long ago."""
        if self.hub is not None:
            self._outbox.push((await self.hub.pushes.state(self._behind, view)).text)

    # ── resume ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _resume(self, message: Message, tasks: TaskGroup) -> None:
        self.caller.needs(Scope.JOBS_READ)
        after = message.payload.get("after")
        if not isinstance(after, str) or self.hub is None:
            raise invalid(FieldError("$.payload.after", "must be the id of the last push"))
        if self._replaying is not None:
            self._replaying.cancel()
        self.hub.listeners.discard(self)
        self._replaying, self._place = CancelScope(), after
        tasks.start_soon(self._replay, self.hub, self._replaying)

    async def _replay(self, hub: Hub, scope: CancelScope) -> None:
        """Give what is held behind the place, then share the owner's stream again, without a gap between the two."""
        with scope:
            while True:
                mark = hub.last
                try:
                    await self._replay_held(hub)
                except BusError:
                    await sleep(AGAIN_S)
                    continue
                if hub.last == mark:
                    self._replaying, self._given = None, self._place
                    hub.listeners.add(self)
                    return

    async def _replay_held(self, hub: Hub) -> None:
        held = self._hall.parts.follower.held(hub.owner, self._place, self.caller.asker)
        async with aclosing(held) as items:
            async for item in items:
                await self._outbox.room()
                push = await hub.pushes.push(item)
                self._place = item.id
                if push is not None:
                    self._outbox.push(push.text)


def _not_behind(place: str, push_id: str) -> bool:
    """Whether `push_id` is at or before `place`, of the same life of FEED."""
    one, other = read_bookmark(place), read_bookmark(push_id)
    if one is None or other is None or one.epoch != other.epoch:
        return False
    return other.sequence <= one.sequence


def _already_ended(envelope: Envelope) -> list[JobView]:
    """The jobs in the answer to a submit that ended before it."""
    if envelope.type not in {Kind.ACK, Kind.OFFLINE}:
        return []
    views = [envelope.result] if isinstance(envelope.result, JobView) else envelope.result["jobs"]
    return [view for view in views if is_final(view)]
