"""`/v1/jobs/{id}/events` and `/v1/events`: following, as server-sent events or over a WebSocket."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, TypeVar, cast

import anyio
import msgspec
from litestar import get, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.params import FromPath, FromQuery, HeaderParameter
from litestar.response import Stream
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Send
from litestar.types import Scope as AsgiScope

from bus.port import BusError
from edge.auth.keys import REVOKED, UNWELCOME, Connection, needs, presented, still_known
from edge.parts import Parts
from edge.routes.given import AnyRequest, AnySocket, Asking, Owner, Services
from edge.routes.jobs import job_key
from edge.services.refusals import refusing
from edge.services.stream import StreamItem
from schemas.access import ApiKey, Scope

COMMENT_EVERY_S = 15.0
NORMAL = 1000

T = TypeVar("T")


async def with_silences(items: AsyncIterator[T], every_s: float) -> AsyncIterator[T | None]:
    """`items`, and None for every `every_s` seconds in which none came: proxies close streams that say nothing."""
    upcoming: asyncio.Future[T] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(items))
            done, _ = await asyncio.wait({upcoming}, timeout=every_s)
            if not done:
                yield None
                continue
            finished, upcoming = upcoming, None
            try:
                yield finished.result()
            except StopAsyncIteration:
                return
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)


def _text(item: StreamItem | None) -> bytes:
    """One event as the stream has it; JSON holds no line break."""
    if item is None:
        return b": still here\r\n\r\n"
    return f"id: {item.id}\r\nevent: {item.kind}\r\ndata: ".encode() + msgspec.json.encode(item.data) + b"\r\n\r\n"


class _Opened:
    """Who opened a stream: looked at again and again, because a key may be revoked while its stream is open."""

    def __init__(self, connection: Connection, parts: Parts) -> None:
        self._parts = parts
        self._key: ApiKey = connection.auth
        self._text = presented(connection) or ""
        self._looked_at = anyio.current_time()

    async def revoked(self, *, idle: bool) -> bool:
        """Whether the key is none any more, asked when nothing comes and every COMMENT_EVERY_S while something does."""
        if not idle and anyio.current_time() - self._looked_at < COMMENT_EVERY_S:
            return False
        self._looked_at = anyio.current_time()
        try:
            return not await still_known(self._parts, self._key, self._text)
        except BusError:
            return False  # it is asked again once the broker is back


async def _reached(parts: Parts) -> None:
    """Refused `unavailable` while there is nothing to follow: an answer, where a stream would only break off."""
    with refusing():
        await parts.bus.feed.position()


async def _texts(items: AsyncIterator[StreamItem], opened: _Opened) -> AsyncIterator[bytes]:
    async for item in with_silences(items, COMMENT_EVERY_S):
        if await opened.revoked(idle=item is None):
            return
        yield _text(item)


class _CountedStream(Stream):
    """A stream that counts among those of its key from before its head is sent until it ends."""

    def __init__(self, texts: AsyncIterator[bytes], request: AnyRequest, parts: Parts) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(texts, media_type="text/event-stream", headers=headers)
        self._counted = partial(parts.streams.opened, request.auth)

    def to_asgi_response(self, *given: Any, **named: Any) -> ASGIResponse:
        response = super().to_asgi_response(*given, **named)

        async def respond(scope: AsgiScope, receive: Receive, send: Send) -> None:
            with self._counted():
                await response(scope, receive, send)

        return cast("ASGIResponse", respond)  # it is only ever called


def _sse(items: AsyncIterator[StreamItem], request: AnyRequest, parts: Parts) -> Stream:
    return _CountedStream(_texts(items, _Opened(request, parts)), request, parts)


# Of any length: what is no id of ours means the start, and a client that resumes must not be refused for it.
LastEventId = Annotated[str | None, HeaderParameter(name="Last-Event-ID")]
After = FromQuery[str | None]


@get("/v1/jobs/{job_id:str}/events", guards=[needs(Scope.JOBS_READ)], media_type="text/event-stream")
async def job_events(
    request: AnyRequest,
    parts: Services,
    owner: Owner,
    asker: Asking,
    job_id: FromPath[str],
    last_event_id: LastEventId = None,
    after: After = None,
) -> Stream:
    """`state`, `progress` and `log` of one job; ends after the final `state`. `Last-Event-ID` or `?after=` resumes."""
    key = job_key(owner, job_id)
    await parts.intake.read(key)
    return _sse(parts.follower.events(owner, key.id, last_event_id or after, asker), request, parts)


@get("/v1/events", guards=[needs(Scope.JOBS_READ)], media_type="text/event-stream")
async def owner_events(
    request: AnyRequest,
    parts: Services,
    owner: Owner,
    asker: Asking,
    last_event_id: LastEventId = None,
    after: After = None,
) -> Stream:
    """The same for all jobs of the owner, with host notices, and without an end; without an id from the start."""
    await _reached(parts)
    return _sse(parts.follower.events(owner, None, last_event_id or after, asker), request, parts)


async def _push(socket: AnySocket, items: AsyncIterator[StreamItem], opened: _Opened) -> None:
    """Send `items` until they end, the client goes or its key does; what the client says is read and ignored."""
    code, reason = NORMAL, ""
    async with anyio.create_task_group() as tasks:

        async def until_gone() -> None:
            try:
                while True:
                    await socket.receive_data(mode="text")
            except WebSocketDisconnect:
                tasks.cancel_scope.cancel()

        tasks.start_soon(until_gone)
        async for item in with_silences(items, COMMENT_EVERY_S):
            if await opened.revoked(idle=item is None):
                code, reason = UNWELCOME, REVOKED
                break
            if item is not None:
                said = {"id": item.id, "event": item.kind, "data": item.data}
                await socket.send_data(msgspec.json.encode(said), mode="text")
        tasks.cancel_scope.cancel()
    await socket.close(code=code, reason=reason)


@websocket("/v1/jobs/{job_id:str}/events", guards=[needs(Scope.JOBS_READ)])
async def job_socket(
    socket: AnySocket, parts: Services, owner: Owner, job_id: FromPath[str], asker: Asking, after: After = None
) -> None:
    """The same over a WebSocket, one JSON object a message: `{"id", "event", "data"}`."""
    await parts.intake.read(job_key(owner, job_id))
    with parts.streams.opened(socket.auth):
        await socket.accept()
        await _push(socket, parts.follower.events(owner, job_id, after, asker), _Opened(socket, parts))


@websocket("/v1/events", guards=[needs(Scope.JOBS_READ)])
async def owner_socket(socket: AnySocket, parts: Services, owner: Owner, asker: Asking, after: After = None) -> None:
    """All jobs of the owner over a WebSocket."""
    await _reached(parts)
    with parts.streams.opened(socket.auth):
        await socket.accept()
        await _push(socket, parts.follower.events(owner, None, after, asker), _Opened(socket, parts))


ROUTES = (
    job_events,
    owner_events,
    job_socket,
    owner_socket,
)
