"""ASGI middleware: discard unread bodies, deny WebSockets with a response, default headers; CORS settings.

The two ASGI extensions that connect the app with `edge.server` are named here.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, cast

import anyio
from litestar.config.cors import CORSConfig
from litestar.types import Scope as LitestarScope
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.http.problems import find_language, make_problem_response, note_problem

BODY_DISCARD_LIMIT_BYTES = 64 * 1024 * 1024
BODY_DISCARD_TIMEOUT_S = 10.0

LARGE_FRAMES_EXTENSION = "lamplighter.widen"  # call it to accept large frames, once the client is authenticated
_DENIAL_EXTENSION = "websocket.http.response"  # the standard extension to answer a handshake with a response
_DENIAL_CAUSE = "lamplighter.refused"
_ADDED_HEADERS = "lamplighter.headers"
WS_TRY_AGAIN_LATER_CODE = 1013

# uvicorn reports a fault of the application for every denied handshake and every request that is not HTTP.
_IGNORED_SERVER_MESSAGES = frozenset(
    {
        "ASGI callable returned without completing handshake.",
        "Invalid HTTP request received.",
        "Unsupported upgrade request.",
    }
)

_DEFAULT_HEADERS = (
    (b"x-content-type-options", b"nosniff"),  # browsers must not guess that a response is a page
    (b"cache-control", b"no-store"),  # responses contain keys, secrets and jobs
    (b"referrer-policy", b"no-referrer"),  # a URL may contain a key or a signature
)

# CORS (Fetch, section 3.3). The names are listed one by one, because `*` does not include Authorization.
CORS_REQUEST_HEADERS = (
    *("Authorization", "X-API-Key", "Accept", "Accept-Language", "Content-Type", "Range", "If-Range", "If-None-Match"),
    *("Idempotency-Key", "Prefer", "Last-Event-ID", "X-Filename", "X-Trace-Id", "traceparent"),
    *("Tus-Resumable", "Upload-Length", "Upload-Defer-Length", "Upload-Offset", "Upload-Metadata", "Upload-Checksum"),
    *("X-HTTP-Method-Override", "X-Requested-With", "X-Request-ID"),
)
CORS_EXPOSED_HEADERS = (
    *("Location", "ETag", "Content-Range", "Accept-Ranges", "Content-Disposition", "Content-Length", "Retry-After"),
    *("Idempotent-Replayed", "Lamplighter-Asset", "WWW-Authenticate"),
    *("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"),
    *("Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm"),
    *("Upload-Offset", "Upload-Length", "Upload-Defer-Length", "Upload-Metadata", "Upload-Expires"),
)
PREFLIGHT_MAX_AGE_S = 7200  # the longest time that browsers cache a preflight response


class UnreadBodyDiscard:
    """Reads and drops the rest of a request body before an early response (401, 413, 422) is sent.

    If the server closed while the client still sends, the kernel would reset the connection, and the client would
    never read the response. BODY_DISCARD_LIMIT_BYTES and BODY_DISCARD_TIMEOUT_S bound the work. A client that waits for
    "100 Continue" has sent no body and gets its response at once.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope["headers"]):
            await self._app(scope, receive, send)
            return
        more = True

        async def receive_tracked() -> Message:
            nonlocal more
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def send_after_discard(message: Message) -> None:
            if message["type"] == "http.response.start" and more:
                await discard_rest()
            await send(message)

        async def discard_rest() -> None:
            left = BODY_DISCARD_LIMIT_BYTES
            with anyio.move_on_after(BODY_DISCARD_TIMEOUT_S):
                while more and left > 0:
                    left -= len((await receive_tracked()).get("body", b""))

        await self._app(scope, receive_tracked, send_after_discard)


def _has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    names = {name for name, _ in headers}
    return bool(names & {b"content-length", b"transfer-encoding"}) and b"expect" not in names


def is_server_fault(record: logging.LogRecord) -> bool:
    """Return whether a record of the server's log reports more than a client's mistake.

    `ThrottledClientLog` counts the mistakes of clients.
    """
    return record.getMessage() not in _IGNORED_SERVER_MESSAGES


async def store_denial_cause(error: Exception, scope: LitestarScope) -> None:
    """Store for `WebSocketDenialResponse` why a WebSocket was denied. Litestar's after_exception hook."""
    cast("dict[str, Any]", scope)[_DENIAL_CAUSE] = error


class WebSocketDenialResponse:
    """Denies a WebSocket with a problem document and its status: 401, 403, 404 or 422.

    Without it, Litestar closes the socket and the server sends a 403 without a body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket" or _DENIAL_EXTENSION not in (scope.get("extensions") or {}):
            await self._app(scope, receive, send)
            return
        accepted = False

        async def send_denial_on_close(message: Message) -> None:
            nonlocal accepted
            accepted = accepted or message["type"] == "websocket.accept"
            error = scope.get(_DENIAL_CAUSE)
            if message["type"] == "websocket.close" and not accepted and error is not None:
                await send_problem(error, scope, send)
            else:
                await send(message)

        await self._app(scope, receive, send_denial_on_close)


async def send_problem(error: Exception, scope: Scope, send: Send) -> None:
    """Answer a request, or the handshake of a WebSocket, with the problem document of `error`."""
    is_socket = scope["type"] == "websocket"
    if is_socket and _DENIAL_EXTENSION not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": WS_TRY_AGAIN_LATER_CODE})
        return
    response = make_problem_response(error, scope["path"], language=find_language(scope))
    note_problem(scope, response.code)
    headers = {**response.headers, "Content-Type": response.media_type, "Content-Length": str(len(response.body))}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    prefix = _DENIAL_EXTENSION if is_socket else "http.response"
    await send({"type": f"{prefix}.start", "status": response.status, "headers": raw})
    await send({"type": f"{prefix}.body", "body": response.body})


def add_response_headers(scope: Any, headers: Iterable[tuple[str, str]]) -> None:
    """Add headers to whatever response this request gets, also to an error. Names in lower case."""
    added = cast("dict[str, Any]", scope).setdefault(_ADDED_HEADERS, [])
    added.extend((name.encode(), value.encode("latin-1")) for name, value in headers)


class DefaultHeaders:
    """Adds the headers of `add_response_headers`, and the default ones that a response lacks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_defaults(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                defaults = (pair for pair in _DEFAULT_HEADERS if pair[0] not in present)
                message["headers"] = [*headers, *scope.get(_ADDED_HEADERS, ()), *defaults]
            await send(message)

        await self._app(scope, receive, send_with_defaults)


def make_cors_config(origins: Sequence[str]) -> CORSConfig | None:
    """Return the CORS settings for pages of `origins`; None without origins, which disables CORS."""
    if not origins:
        return None
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=methods,  # type: ignore[arg-type] # mypy infers list[str], not a list of literals
        allow_headers=list(CORS_REQUEST_HEADERS),
        expose_headers=list(CORS_EXPOSED_HEADERS),
        max_age=PREFLIGHT_MAX_AGE_S,
    )
