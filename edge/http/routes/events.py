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

from bus.interface import BusError
from edge.core.error_handling import translate_errors
from edge.http.auth import (
    KEY_REVOKED_REASON,
    WS_UNAUTHORIZED_CODE,
    AnyConnection,
    is_still_valid,
    read_credential,
    require_scope,
)
from edge.http.dependencies import AnyRequest, AnySocket, Asking, EdgeServices, OwnerDep, ServicesDep, parse_job_key
from edge.jobs.event_stream import StreamItem
from schemas.auth import ApiKey, Scope

KEEPALIVE_INTERVAL_S = 15.0
WS_NORMAL_CODE = 1000

T = TypeVar("T")


async def with_keepalive(items: AsyncIterator[T], every_s: float) -> AsyncIterator[T | None]:
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


def _format_event(item: StreamItem | None) -> bytes:
    """One event as the stream has it; JSON holds no line break."""
    if item is None:
        return b": still here\r\n\r\n"
    return f"id: {item.id}\r\nevent: {item.kind}\r\ndata: ".encode() + msgspec.json.encode(item.data) + b"\r\n\r\n"


class _StreamGuard:
    """Who opened a stream: looked at again and again, because a key may be revoked while its stream is open."""

    def __init__(self, connection: AnyConnection, parts: EdgeServices) -> None:
        self._parts = parts
        self._key: ApiKey = connection.auth
        self._credential = read_credential(connection) or ""
        self._checked_at = anyio.current_time()

    async def is_revoked(self, *, idle: bool) -> bool:
        """Whether the key is none any more, asked when nothing comes and every COMMENT_EVERY_S while something does."""
        if not idle and anyio.current_time() - self._checked_at < KEEPALIVE_INTERVAL_S:
            return False
        self._checked_at = anyio.current_time()
        try:
            return not await is_still_valid(self._parts, self._key, self._credential)
        except BusError:
            return False  # it is asked again once the broker is back


async def _ensure_broker(parts: EdgeServices) -> None:
    """Refused `unavailable` while there is nothing to follow: an answer, where a stream would only break off."""
    with translate_errors():
        await parts.bus.feed.last_id()


async def _format_events(items: AsyncIterator[StreamItem], opened: _StreamGuard) -> AsyncIterator[bytes]:
    async for item in with_keepalive(items, KEEPALIVE_INTERVAL_S):
        if await opened.is_revoked(idle=item is None):
            return
        yield _format_event(item)


class _LimitedStream(Stream):
    """A stream that counts among those of its key from before its head is sent until it ends."""

    def __init__(self, texts: AsyncIterator[bytes], request: AnyRequest, parts: EdgeServices) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(texts, media_type="text/event-stream", headers=headers)
        self._count_open = partial(parts.stream_limits.count_stream, request.auth)

    def to_asgi_response(self, *given: Any, **named: Any) -> ASGIResponse:
        response = super().to_asgi_response(*given, **named)

        async def respond(scope: AsgiScope, receive: Receive, send: Send) -> None:
            with self._count_open():
                await response(scope, receive, send)

        return cast("ASGIResponse", respond)  # it is only ever called


def _sse_response(items: AsyncIterator[StreamItem], request: AnyRequest, parts: EdgeServices) -> Stream:
    return _LimitedStream(_format_events(items, _StreamGuard(request, parts)), request, parts)


# Of any length: what is no id of ours means the start, and a client that resumes must not be refused for it.
LastEventId = Annotated[str | None, HeaderParameter(name="Last-Event-ID")]
AfterQuery = FromQuery[str | None]


@get("/v1/jobs/{job_id:str}/events", guards=[require_scope(Scope.JOBS_READ)], media_type="text/event-stream")
async def job_events(
    request: AnyRequest,
    parts: ServicesDep,
    owner: OwnerDep,
    asker: Asking,
    job_id: FromPath[str],
    last_event_id: LastEventId = None,
    after: AfterQuery = None,
) -> Stream:
    """`state`, `progress` and `log` of one job; ends after the final `state`. `Last-Event-ID` or `?after=` resumes."""
    key = parse_job_key(owner, job_id)
    await parts.jobs.read(key)
    return _sse_response(parts.event_streams.follow(owner, key.id, last_event_id or after, asker), request, parts)


@get("/v1/events", guards=[require_scope(Scope.JOBS_READ)], media_type="text/event-stream")
async def owner_events(
    request: AnyRequest,
    parts: ServicesDep,
    owner: OwnerDep,
    asker: Asking,
    last_event_id: LastEventId = None,
    after: AfterQuery = None,
) -> Stream:
    """The same for all jobs of the owner, with host notices, and without an end; without an id from the start."""
    await _ensure_broker(parts)
    return _sse_response(parts.event_streams.follow(owner, None, last_event_id or after, asker), request, parts)


async def _send_events(socket: AnySocket, items: AsyncIterator[StreamItem], opened: _StreamGuard) -> None:
    """Send `items` until they end, the client goes or its key does; what the client says is read and ignored."""
    code, reason = WS_NORMAL_CODE, ""
    async with anyio.create_task_group() as tasks:

        async def until_gone() -> None:
            try:
                while True:
                    await socket.receive_data(mode="text")
            except WebSocketDisconnect:
                tasks.cancel_scope.cancel()

        tasks.start_soon(until_gone)
        async for item in with_keepalive(items, KEEPALIVE_INTERVAL_S):
            if await opened.is_revoked(idle=item is None):
                code, reason = WS_UNAUTHORIZED_CODE, KEY_REVOKED_REASON
                break
            if item is not None:
                said = {"id": item.id, "event": item.kind, "data": item.data}
                await socket.send_data(msgspec.json.encode(said), mode="text")
        tasks.cancel_scope.cancel()
    await socket.close(code=code, reason=reason)


@websocket("/v1/jobs/{job_id:str}/events", guards=[require_scope(Scope.JOBS_READ)])
async def job_socket(
    socket: AnySocket,
    parts: ServicesDep,
    owner: OwnerDep,
    job_id: FromPath[str],
    asker: Asking,
    after: AfterQuery = None,
) -> None:
    """The same over a WebSocket, one JSON object a message: `{"id", "event", "data"}`."""
    await parts.jobs.read(parse_job_key(owner, job_id))
    with parts.stream_limits.count_stream(socket.auth):
        await socket.accept()
        await _send_events(socket, parts.event_streams.follow(owner, job_id, after, asker), _StreamGuard(socket, parts))


@websocket("/v1/events", guards=[require_scope(Scope.JOBS_READ)])
async def owner_socket(
    socket: AnySocket, parts: ServicesDep, owner: OwnerDep, asker: Asking, after: AfterQuery = None
) -> None:
    """All jobs of the owner over a WebSocket."""
    await _ensure_broker(parts)
    with parts.stream_limits.count_stream(socket.auth):
        await socket.accept()
        await _send_events(socket, parts.event_streams.follow(owner, None, after, asker), _StreamGuard(socket, parts))


ROUTES = (
    job_events,
    owner_events,
    job_socket,
    owner_socket,
)
