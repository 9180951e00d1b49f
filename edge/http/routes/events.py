"""`/v1/jobs/{id}/events` and `/v1/events`: event streams, as server-sent events or over a WebSocket."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, TypeVar, cast

import anyio
import msgspec
from litestar import Response, get, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.params import FromPath, FromQuery, HeaderParameter
from litestar.response import Stream
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Send
from litestar.types import Scope as AsgiScope

from bus.interface import BusError
from edge.core.concurrency import translate_errors
from edge.http.auth import KEY_REVOKED_REASON, WS_UNAUTHORIZED_CODE, is_still_valid, read_credential, require_scope
from edge.http.dependencies import (
    AnyConnection,
    AnyRequest,
    AnySocket,
    AskerDep,
    EdgeServices,
    OwnerDep,
    ServicesDep,
    parse_job_key,
)
from edge.jobs.event_stream import StreamItem
from schemas.credentials import ApiKey, Scope
from schemas.job import FINAL_STATUSES

KEEPALIVE_INTERVAL_S = 15.0
WS_NORMAL_CODE = 1000
START_NOW = "now"  # instead of an event id: without what has happened before

T = TypeVar("T")


async def with_keepalive(items: AsyncIterator[T], every_s: float) -> AsyncIterator[T | None]:
    """Yield `items`, and None after every `every_s` seconds without an item. Proxies close silent streams."""
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
    """Return one event in the format of the stream. Encoded JSON contains no line break."""
    if item is None:
        return b": keep-alive\r\n\r\n"
    return f"id: {item.id}\r\nevent: {item.kind}\r\ndata: ".encode() + msgspec.json.encode(item.data) + b"\r\n\r\n"


class _StreamGuard:
    """Checks the key of an open stream repeatedly, because it may be revoked."""

    def __init__(self, connection: AnyConnection, services: EdgeServices) -> None:
        self._services = services
        self._key: ApiKey = connection.auth
        self._credential = read_credential(connection) or ""
        self._checked_at = anyio.current_time()

    async def is_revoked(self, *, idle: bool) -> bool:
        """Return whether the key was revoked. Checks at every idle interval, and else every KEEPALIVE_INTERVAL_S."""
        if not idle and anyio.current_time() - self._checked_at < KEEPALIVE_INTERVAL_S:
            return False
        self._checked_at = anyio.current_time()
        try:
            return not await is_still_valid(self._services, self._key, self._credential)
        except BusError:
            return False  # checked again when the broker is back


async def _read_last_id(services: EdgeServices) -> str:
    """Return the id of the last event of all owners.

    Raises ProblemError `unavailable` while the broker is unreachable: an open stream could only break off.
    """
    with translate_errors():
        return await services.bus.feed.last_id()


async def _format_events(
    items: AsyncIterator[StreamItem], guard: _StreamGuard, start_id: str | None = None
) -> AsyncIterator[bytes]:
    """Yield the texts of a stream. `start_id`: sent before the first event, so that a client can resume from there."""
    if start_id is not None:
        yield f"id: {start_id}\r\n\r\n".encode()
    async for item in with_keepalive(items, KEEPALIVE_INTERVAL_S):
        if await guard.is_revoked(idle=item is None):
            return
        yield _format_event(item)


class _LimitedStream(Stream):
    """A stream that counts towards the limits of its key, from before its headers are sent until it ends."""

    def __init__(self, texts: AsyncIterator[bytes], request: AnyRequest, services: EdgeServices) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(texts, media_type="text/event-stream", headers=headers)
        self._count_open = partial(services.stream_limits.count_stream, request.auth)

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> ASGIResponse:
        response = super().to_asgi_response(*args, **kwargs)

        async def respond(scope: AsgiScope, receive: Receive, send: Send) -> None:
            with self._count_open():
                await response(scope, receive, send)

        return cast("ASGIResponse", respond)  # Litestar only calls it


def _sse_response(
    items: AsyncIterator[StreamItem], request: AnyRequest, services: EdgeServices, start_id: str | None = None
) -> Stream:
    return _LimitedStream(_format_events(items, _StreamGuard(request, services), start_id), request, services)


# Without a length limit: an unknown id means the start of the stream, and must not end in an error.
LastEventId = Annotated[str | None, HeaderParameter(name="Last-Event-ID")]
AfterQuery = FromQuery[str | None]


@get("/v1/jobs/{job_id:str}/events", guards=[require_scope(Scope.JOBS_READ)], media_type="text/event-stream")
async def job_events(
    request: AnyRequest,
    services: ServicesDep,
    owner: OwnerDep,
    asker: AskerDep,
    job_id: FromPath[str],
    last_event_id: LastEventId = None,
    after: AfterQuery = None,
) -> Response[Any]:
    """Stream `state`, `progress` and `log` events of one job. The stream ends after the final `state`.

    `Last-Event-ID` or `?after=` resumes a stream after the event with that id. After the last event the answer is 204,
    which ends an `EventSource`.
    """
    key = parse_job_key(owner, job_id)
    resume_after = last_event_id or after
    entry = await services.jobs.read(key)
    if resume_after and entry.record.job.status in FINAL_STATUSES:
        with translate_errors():
            is_at_end = await services.event_streams.is_at_end(owner, key.id, resume_after)
        if is_at_end:
            return Response(None, status_code=204)
    return _sse_response(services.event_streams.follow(owner, key.id, resume_after, asker), request, services)


@get("/v1/events", guards=[require_scope(Scope.JOBS_READ)], media_type="text/event-stream")
async def owner_events(
    request: AnyRequest,
    services: ServicesDep,
    owner: OwnerDep,
    asker: AskerDep,
    last_event_id: LastEventId = None,
    after: AfterQuery = None,
) -> Stream:
    """Stream the events of all jobs of the owner, and host notices. The stream does not end.

    `Last-Event-ID` or `?after=` resumes a stream; without an id it starts with the oldest stored event, and with
    `now` at the present.
    """
    last_id = await _read_last_id(services)
    resume_after = last_event_id or after
    is_new = resume_after == START_NOW
    items = services.event_streams.follow(owner, None, last_id if is_new else resume_after, asker)
    return _sse_response(items, request, services, last_id if is_new else None)


async def _send_events(socket: AnySocket, items: AsyncIterator[StreamItem], guard: _StreamGuard) -> None:
    """Send `items` until they end, the client disconnects, or its key is revoked. Ignores frames of the client."""
    code, reason = WS_NORMAL_CODE, ""
    async with anyio.create_task_group() as tasks:

        async def wait_for_disconnect() -> None:
            try:
                while True:
                    await socket.receive_data(mode="text")
            except WebSocketDisconnect:
                tasks.cancel_scope.cancel()

        tasks.start_soon(wait_for_disconnect)
        async for item in with_keepalive(items, KEEPALIVE_INTERVAL_S):
            if await guard.is_revoked(idle=item is None):
                code, reason = WS_UNAUTHORIZED_CODE, KEY_REVOKED_REASON
                break
            if item is not None:
                event = {"id": item.id, "event": item.kind, "data": item.data}
                await socket.send_data(msgspec.json.encode(event), mode="text")
        tasks.cancel_scope.cancel()
    await socket.close(code=code, reason=reason)


@websocket("/v1/jobs/{job_id:str}/events", guards=[require_scope(Scope.JOBS_READ)])
async def job_socket(
    socket: AnySocket,
    services: ServicesDep,
    owner: OwnerDep,
    job_id: FromPath[str],
    asker: AskerDep,
    after: AfterQuery = None,
) -> None:
    """Send the events of one job over a WebSocket, one JSON object per message: `{"id", "event", "data"}`."""
    await services.jobs.read(parse_job_key(owner, job_id))
    with services.stream_limits.count_stream(socket.auth):
        await socket.accept()
        await _send_events(
            socket, services.event_streams.follow(owner, job_id, after, asker), _StreamGuard(socket, services)
        )


@websocket("/v1/events", guards=[require_scope(Scope.JOBS_READ)])
async def owner_socket(
    socket: AnySocket, services: ServicesDep, owner: OwnerDep, asker: AskerDep, after: AfterQuery = None
) -> None:
    """Send the events of all jobs of the owner over a WebSocket."""
    await _read_last_id(services)
    with services.stream_limits.count_stream(socket.auth):
        await socket.accept()
        await _send_events(
            socket, services.event_streams.follow(owner, None, after, asker), _StreamGuard(socket, services)
        )


ROUTES = (
    job_events,
    owner_events,
    job_socket,
    owner_socket,
)
