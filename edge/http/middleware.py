"""Reading the rest of a request before it is answered early, so that the answer arrives."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, cast

import anyio
from litestar.config.cors import CORSConfig
from litestar.types import Scope as LitestarScope
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.http.problems import make_problem_response

BODY_DRAIN_LIMIT_BYTES = 64 * 1024 * 1024
BODY_DRAIN_TIMEOUT_S = 10.0


class RequestBodyDrain:
    """An edge that answers (401, 413, 422) and closes while the client still sends makes its kernel reset the
    connection, and a client that first sends and then reads never sees why.

    So what is still coming is read and dropped, within DRAIN_BYTES and DRAIN_S. A client that waits for "100 Continue"
    has sent nothing yet and is answered at once.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope["headers"]):
            await self._app(scope, receive, send)
            return
        more = True

        async def reading() -> Message:
            nonlocal more
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start" and more:
                await drain()
            await send(message)

        async def drain() -> None:
            left = BODY_DRAIN_LIMIT_BYTES
            with anyio.move_on_after(BODY_DRAIN_TIMEOUT_S):
                while more and left > 0:
                    left -= len((await reading()).get("body", b""))

        await self._app(scope, reading, answering)


def _has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    names = {name for name, _ in headers}
    return bool(names & {b"content-length", b"transfer-encoding"}) and b"expect" not in names


# MERGED edge/handshake.py: A WebSocket that is refused, answered as the HTTP request that it still is.


_DENIAL_CAUSE = "lamplighter.refused"
_DENIAL_EXTENSION = "websocket.http.response"  # the ASGI extension by which a server lets a handshake be answered

# uvicorn reports a fault of the application wherever a handshake was answered, and each request that is not HTTP.
_IGNORED_SERVER_MESSAGES = frozenset(
    {
        "ASGI callable returned without completing handshake.",
        "Invalid HTTP request received.",
        "Unsupported upgrade request.",
    }
)


def is_server_fault(record: logging.LogRecord) -> bool:
    """Return whether a record of the server's log reports more than a client's mistake.

    `ThrottledClientLog` counts the mistakes of clients.
    """
    return record.getMessage() not in _IGNORED_SERVER_MESSAGES


async def store_denial_cause(error: Exception, scope: LitestarScope) -> None:
    """Litestar's after_exception hook: keeps for `WebSocketDenialResponse` why a WebSocket was refused."""
    cast("dict[str, Any]", scope)[_DENIAL_CAUSE] = error


class WebSocketDenialResponse:
    """Litestar closes what it refuses, and a server makes a bare 403 of that. The client is told why instead: 401, 403,
    404 or 422, with the problem document."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket" or _DENIAL_EXTENSION not in (scope.get("extensions") or {}):
            await self._app(scope, receive, send)
            return
        accepted = False

        async def answering(message: Message) -> None:
            nonlocal accepted
            accepted = accepted or message["type"] == "websocket.accept"
            error = scope.get(_DENIAL_CAUSE)
            if message["type"] == "websocket.close" and not accepted and error is not None:
                await _send_denial(error, scope["path"], send)
            else:
                await send(message)

        await self._app(scope, receive, answering)


async def _send_denial(error: Exception, path: str, send: Send) -> None:
    said = make_problem_response(error, path)
    headers = {**said.headers, "Content-Type": said.media_type, "Content-Length": str(len(said.body))}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": f"{_DENIAL_EXTENSION}.start", "status": said.status, "headers": raw})
    await send({"type": f"{_DENIAL_EXTENSION}.body", "body": said.body})


# MERGED edge/headers.py: What every answer says to browsers and caches where its route says nothing else.


_DEFAULT_HEADERS = (
    (b"x-content-type-options", b"nosniff"),  # what is not a page is not taken for one
    (b"cache-control", b"no-store"),  # keys, secrets and jobs lie in no cache
    (b"referrer-policy", b"no-referrer"),  # a URL may hold a key or a signature: no page names it to another site
)


class DefaultHeaders:
    """Adds to a response the headers that it lacks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                said = {name.lower() for name, _ in headers}
                message["headers"] = [*headers, *(pair for pair in _DEFAULT_HEADERS if pair[0] not in said)]
            await send(message)

        await self._app(scope, receive, answering)


# MERGED edge/auth/cors.py: What other origins' pages may send, and may see of the answers (Fetch, section 3.3).


# Named one by one: `*` does not stand for Authorization.
CORS_REQUEST_HEADERS = (
    *("Authorization", "X-API-Key", "Accept", "Accept-Language", "Content-Type", "Range", "If-Range", "If-None-Match"),
    *("Idempotency-Key", "Prefer", "Last-Event-ID", "X-Filename", "X-Trace-Id"),
    *("Tus-Resumable", "Upload-Length", "Upload-Defer-Length", "Upload-Offset", "Upload-Metadata", "Upload-Checksum"),
    *("X-HTTP-Method-Override", "X-Requested-With", "X-Request-ID"),
)
CORS_EXPOSED_HEADERS = (
    *("Location", "ETag", "Content-Range", "Accept-Ranges", "Content-Disposition", "Content-Length", "Retry-After"),
    *("Idempotent-Replayed", "Lamplighter-Asset", "WWW-Authenticate"),
    *("Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm"),
    *("Upload-Offset", "Upload-Length", "Upload-Defer-Length", "Upload-Metadata", "Upload-Expires"),
)
PREFLIGHT_MAX_AGE_S = 7200  # the longest that browsers keep a preflight's answer


def make_cors_config(origins: Sequence[str]) -> CORSConfig | None:
    """For pages of `origins`; None: other origins see nothing."""
    if not origins:
        return None
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=methods,  # type: ignore[arg-type] # a list of literals, which the checker takes for one of str
        allow_headers=list(CORS_REQUEST_HEADERS),
        expose_headers=list(CORS_EXPOSED_HEADERS),
        max_age=PREFLIGHT_MAX_AGE_S,
    )
