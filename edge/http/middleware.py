"""The ASGI middleware around all routes, in the order in which `edge.app` nests it, innermost first.

- `DefaultHeaders`, `UnreadBodyDiscard`: headers of every response; the rest of a body that nobody read
- `WebSocketDenialResponse`: a response that refuses the handshake of a WebSocket
- `ProxiedRequests`: the address of the client behind a reverse proxy, and a mark on its requests: they are not local
- `RequestObserver`: one log line for each request. It has the template of the route, never the path or the query: both
  may contain an id, a token or a signature
- `RequestMetrics`: counts of requests, and the time to their answers

At the end are the CORS settings, and the filter of the server's log. The two ASGI extensions that connect the app with
`edge.server` are named here.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import anyio
import structlog
from litestar.config.cors import CORSConfig
from litestar.types import Scope as LitestarScope
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bus.spans import enter_trace
from edge.core.clients import ThrottledClientLog, TrustedProxies, client_network, read_hops, shows_proxy
from edge.core.metrics import EdgeMetrics
from edge.http.problems import PROBLEM_CODE_KEY, find_language, make_problem_response, note_problem
from edge.owners.signed_credentials import NO_KEY
from schemas.metrics import OTHER
from schemas.outbound_rules import is_loopback
from schemas.problems import ProblemError

LARGE_FRAMES_EXTENSION = "lamplighter.widen"  # call it to accept large frames, once the client is authenticated

_log = structlog.get_logger()

_ADDED_HEADERS = "lamplighter.headers"
_DEFAULT_HEADERS = (
    (b"x-content-type-options", b"nosniff"),  # browsers must not guess that a response is a page
    (b"cache-control", b"no-store"),  # responses contain keys, secrets and jobs
    (b"referrer-policy", b"no-referrer"),  # a URL may contain a key or a signature
)


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


BODY_DISCARD_LIMIT_BYTES = 64 * 1024 * 1024
BODY_DISCARD_TIMEOUT_S = 10.0


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


_DENIAL_EXTENSION = "websocket.http.response"  # the standard extension to answer a handshake with a response
_DENIAL_CAUSE = "lamplighter.refused"
WS_TRY_AGAIN_LATER_CODE = 1013


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


OPEN_REQUESTS_RETRY_AFTER_S = 10
_PROXIED_SCOPE_KEY = "lamplighter.proxied"
_WEBSOCKET_SCHEMES = {"http": "ws", "https": "wss"}


def is_proxied(scope: Any) -> bool:
    """Return whether the request came from a trusted proxy, or has a header that only proxies write."""
    return bool(cast("dict[str, Any]", scope).get(_PROXIED_SCOPE_KEY))


class ProxiedRequests:
    """Puts the client of a request in place of the trusted proxy that passed it on, and the scheme that it used.

    A proxy opens few connections for many clients, so the limit of connections per address counts the open requests
    of each client here: at most `requests_per_client` of `proxies`. What proxies that are not trusted write is ignored.
    """

    def __init__(self, app: ASGIApp, proxies: TrustedProxies, client_events: ThrottledClientLog) -> None:
        self._app, self._proxies, self._client_events = app, proxies, client_events
        self._open: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        peer = scope["client"][0] if scope.get("client") else ""
        is_trusted, has_header = peer in self._proxies, shows_proxy(scope["headers"])
        scope[_PROXIED_SCOPE_KEY] = is_trusted or has_header
        if not is_trusted:
            if has_header and is_loopback(peer):
                fix = "add its address to server.trusted_proxies if it is your reverse proxy"
                self._client_events.log("proxy_not_trusted", peer, fix=fix)
            await self._app(scope, receive, send)
            return
        client = self._proxies.find_client(peer, read_hops(scope["headers"]))
        scope["client"] = (client.address, 0)
        if client.scheme:
            scope["scheme"] = client.scheme if scope["type"] == "http" else _WEBSOCKET_SCHEMES[client.scheme]
        await self._run_counted(client.address, scope, receive, send)

    async def _run_counted(self, address: str, scope: Scope, receive: Receive, send: Send) -> None:
        if self._proxies.is_shared(address):  # the proxy named no client
            await self._app(scope, receive, send)
            return
        client = client_network(address)
        if self._open[client] >= self._proxies.requests_per_client:
            detail = f"{client} has {self._proxies.requests_per_client} open requests, which is the limit: let some end"
            error = ProblemError("too_many_connections", detail, retry_after_s=OPEN_REQUESTS_RETRY_AFTER_S)
            self._client_events.log("request_refused", address, code=error.code)
            await send_problem(error, scope, send)
            return
        self._open[client] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]


NO_ROUTE = "-"  # no route has this path
CLIENT_CLOSED_STATUS = 499  # the client left before the answer began, as nginx counts it
WEBSOCKET_METHOD = "WEBSOCKET"
SWITCHING_PROTOCOLS_STATUS = 101

# Asked every few seconds by load balancers, watchdogs and Prometheus.
PROBE_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})
_KEY_ID_SCOPE_KEY = "lamplighter.key_id"
_ANSWER_STATUS_MESSAGES = frozenset({"http.response.start", "websocket.http.response.start"})


class ServedRequest(NamedTuple):
    """A request that was answered. `key_id`: the API key that it was made with, empty if there was none.

    `duration_s` is the time until the end of the answer: for a stream and a WebSocket, how long it was open.
    """

    method: str
    route: str
    status: int
    duration_s: float
    key_id: str
    client: str


ObserveRequest = Callable[[ServedRequest], None]


def note_key_id(scope: Any, key_id: str) -> None:
    """Note the key that a request was made with, where a route authenticates by itself and sets no `request.auth`."""
    cast("dict[str, Any]", scope)[_KEY_ID_SCOPE_KEY] = key_id


def log_request(request: ServedRequest) -> None:
    """Log the request, at level debug if it is a probe that succeeded."""
    is_probe = request.route in PROBE_ROUTES and request.status < 400
    (_log.debug if is_probe else _log.info)(
        "request_served",
        method=request.method,
        route=request.route,
        status=request.status,
        ms=round(request.duration_s * 1000, 1),
        key_id=request.key_id,
        client=request.client,
    )


class RequestObserver:
    """Calls `observe` after each HTTP request and each WebSocket, also after one that was refused or failed."""

    def __init__(
        self, app: ASGIApp, observe: ObserveRequest, monotonic: Callable[[], float] = time.perf_counter
    ) -> None:
        self._app, self._observe, self._monotonic = app, observe, monotonic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        started, status = self._monotonic(), CLIENT_CLOSED_STATUS
        enter_trace(scope["headers"])

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            kind = message["type"]
            if kind in _ANSWER_STATUS_MESSAGES:
                status = message["status"]
            elif kind == "websocket.accept":
                status = SWITCHING_PROTOCOLS_STATUS
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            self._observe(_describe(scope, status, self._monotonic() - started))


def _describe(scope: Scope, status: int, duration_s: float) -> ServedRequest:
    key_id: str = scope.get(_KEY_ID_SCOPE_KEY) or getattr(scope.get("auth"), "id", None) or ""
    return ServedRequest(
        method=scope.get("method", WEBSOCKET_METHOD),
        route=scope.get("path_template", NO_ROUTE),
        status=status,
        duration_s=duration_s,
        key_id="" if key_id == NO_KEY else key_id,
        client=scope["client"][0] if scope.get("client") else "",
    )


_STATUS_CLASSES = {number: f"{number}xx" for number in range(2, 6)}
_EVENT_STREAM = b"text/event-stream"


class RequestMetrics:
    """Counts requests by the template of their route: a path that no route matches is `other`."""

    def __init__(self, app: ASGIApp, metrics: EdgeMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._run_request(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._run_stream("websocket", scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _run_stream(self, kind: str, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.open_streams.inc(kind)
        try:
            await self._app(scope, receive, send)
        finally:
            self._metrics.open_streams.inc(kind, amount=-1)
            self._count_refusal(scope)

    async def _run_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, is_stream = time.perf_counter(), False

        async def send_counted(message: Message) -> None:
            nonlocal is_stream
            if message["type"] == "http.response.start":
                self._count_response(scope, message["status"], time.perf_counter() - started)
                is_stream = _is_event_stream(message)
                if is_stream:
                    self._metrics.open_streams.inc("sse")
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        finally:
            if is_stream:
                self._metrics.open_streams.inc("sse", amount=-1)

    def _count_response(self, scope: Scope, status: int, took_s: float) -> None:
        route = scope.get("path_template") or OTHER
        self._metrics.requests.inc(scope["method"], route, _STATUS_CLASSES.get(status // 100, OTHER))
        self._metrics.request_durations.observe(took_s, route)
        self._count_refusal(scope)

    def _count_refusal(self, scope: Scope) -> None:
        code = scope.get(PROBLEM_CODE_KEY)
        if code is not None:
            self._metrics.refusals.inc(code)


def _is_event_stream(message: Message) -> bool:
    headers = message.get("headers", ())
    return any(value.startswith(_EVENT_STREAM) for name, value in headers if name.lower() == b"content-type")


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


# uvicorn reports a fault of the application for every denied handshake and every request that is not HTTP.
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
