"""One socket from its first frame to its last: requests are answered one after the other, pushes go in between."""

from collections.abc import Callable
from contextlib import aclosing

from anyio import CancelScope, create_task_group, move_on_after, sleep
from anyio.abc import TaskGroup

from bus.interface import BusError
from edge.core.validation import input_invalid_problem
from edge.facades.gateway.auth import SocketCaller
from edge.facades.gateway.broadcast import RETRY_DELAY_S, OwnerBroadcaster, PushSubscriber
from edge.facades.gateway.commands import COMMANDS
from edge.facades.gateway.context import CommandContext
from edge.facades.gateway.envelopes import Push, encode_host_notice, error_reply, is_final
from edge.facades.gateway.frames import DISCONNECT_ERRORS, AnySocket, ClientGone, receive_frame
from edge.facades.gateway.send_queue import SendQueue
from edge.hosts.registry import HostNotice
from edge.http.auth import KEY_REVOKED_REASON, WS_UNAUTHORIZED_CODE
from edge.http.problems import problem_for_error
from edge.jobs.event_stream import parse_resume_token
from edge.power.relay_hub import REQUEST_KINDS, RelayConnection
from schemas.auth import Scope
from schemas.gateway_protocol import ClientMessage, Envelope, EnvelopeType, FrameUnreadable, encode_envelope, read_frame
from schemas.job_view import JobView
from schemas.problems import FieldError

CLOSE_SLOW_CLIENT = 4408
CLOSE_REASONS = {
    WS_UNAUTHORIZED_CODE: KEY_REVOKED_REASON,
    CLOSE_SLOW_CLIENT: "too much waits unread here: come again, and resume",
}
CLOSE_TIMEOUT_S = (
    30.0  # a client that did not read gets this long to read what the kernel holds, and then why it was closed
)

MakeSendQueue = Callable[[Callable[[], object]], SendQueue]


class GatewaySession(PushSubscriber, RelayConnection):
    """`hub`: the owner's stream, None for a key that may not read jobs."""

    def __init__(
        self,
        socket: AnySocket,
        hall: CommandContext,
        caller: SocketCaller,
        hub: OwnerBroadcaster | None,
        make: MakeSendQueue,
    ) -> None:
        self.caller = caller
        self.broadcaster = hub
        self._socket = socket
        self._context = hall
        self._send_queue = make(lambda: self.end(CLOSE_SLOW_CLIENT))
        self._ended: int | None = None
        self._scope = CancelScope()
        self._replay_scope: CancelScope | None = None
        self._replay_position = ""  # behind which a replay is
        self._replayed_until = ""  # up to which the hub may say again what a replay gave

    async def run(self) -> None:
        """Until the client leaves, or `end` was called."""
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
        """Close with `code`."""
        self._ended = self._ended or code
        self._scope.cancel()

    # ── what is pushed ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _position(self) -> str:
        """The id behind which this socket is."""
        if self._replay_scope is not None:
            return self._replay_position
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
        """A host went on or off."""
        said = encode_host_notice(notice, self.caller.language, self._position)
        if said is not None:
            self._send_queue.put_push(said)

    def send_text(self, text: str) -> None:
        self._send_queue.put_reply(text)

    async def _write_frames(self) -> None:
        while True:
            said = await self._send_queue.get()
            try:
                await self._socket.send({"type": "websocket.send", "text": said, "bytes": None})
            except DISCONNECT_ERRORS:
                self._scope.cancel()
                return

    # ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────

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
        except FrameUnreadable as refused:
            return [
                error_reply(
                    self._context, refused, ClientMessage(type="", request_id=refused.request_id), self.caller.language
                )
            ]
        try:
            if not await self.caller.is_still_valid(self._context.services):
                self.end(WS_UNAUTHORIZED_CODE)
                return []
            return await self._dispatch(message, tasks)
        except Exception as error:  # the border: whatever one request meets, the connection stays
            return [error_reply(self._context, problem_for_error(error), message, self.caller.language)]

    async def _dispatch(self, message: ClientMessage, tasks: TaskGroup) -> list[Envelope]:
        if message.type in COMMANDS:
            return await COMMANDS[message.type](self._context, self.caller, message)
        if message.type in REQUEST_KINDS:
            self.caller.require_scope(Scope.RELAY)
            self._context.services.relay_hub.handle_reply(self, message)
        elif message.type == EnvelopeType.RESUME:
            self._start_replay(message, tasks)
        elif message.type != EnvelopeType.AUTH:  # who is in already need not come in again
            raise input_invalid_problem(FieldError("$.type", f"{message.type[:64]!r} is no type of this gateway"))
        return []

    async def _push_final_state(self, view: JobView) -> None:
        """A request that was sent anew after its job had ended: its result was pushed long ago."""
        if self.broadcaster is not None:
            self._send_queue.put_push((await self.broadcaster.push_builder.build_state_push(self._position, view)).text)

    # ── resume ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_replay(self, message: ClientMessage, tasks: TaskGroup) -> None:
        self.caller.require_scope(Scope.JOBS_READ)
        after = message.payload.get("after")
        if not isinstance(after, str) or self.broadcaster is None:
            raise input_invalid_problem(FieldError("$.payload.after", "must be the id of the last push"))
        if self._replay_scope is not None:
            self._replay_scope.cancel()
        self.broadcaster.subscribers.discard(self)
        self._replay_scope, self._replay_position = CancelScope(), after
        tasks.start_soon(self._replay, self.broadcaster, self._replay_scope)

    async def _replay(self, hub: OwnerBroadcaster, scope: CancelScope) -> None:
        """Give what is held behind the place, then share the owner's stream again, without a gap between the two."""
        with scope:
            while True:
                mark = hub.last_id
                try:
                    await self._replay_stored(hub)
                except BusError:
                    await sleep(RETRY_DELAY_S)
                    continue
                if hub.last_id == mark:
                    self._replay_scope, self._replayed_until = None, self._replay_position
                    hub.subscribers.add(self)
                    return

    async def _replay_stored(self, hub: OwnerBroadcaster) -> None:
        held = self._context.services.event_streams.replay(hub.owner, self._replay_position, self.caller.asker)
        async with aclosing(held) as items:
            async for item in items:
                await self._send_queue.wait_for_slack()
                push = await hub.push_builder.build_push(item)
                self._replay_position = item.id
                if push is not None:
                    self._send_queue.put_push(push.text)


def _is_at_or_before(place: str, push_id: str) -> bool:
    """Whether `push_id` is at or before `place`, of the same life of FEED."""
    one, other = parse_resume_token(place), parse_resume_token(push_id)
    if one is None or other is None or one.epoch != other.epoch:
        return False
    return other.sequence <= one.sequence


def _final_views(envelope: Envelope) -> list[JobView]:
    """The jobs in the answer to a submit that ended before it."""
    if envelope.type not in {EnvelopeType.ACK, EnvelopeType.OFFLINE}:
        return []
    views = [envelope.result] if isinstance(envelope.result, JobView) else envelope.result["jobs"]
    return [view for view in views if is_final(view)]
