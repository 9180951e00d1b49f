"""ASGI middleware that logs one line for each request: who asked for what, the answer, and how long it took.

The line has the template of the route, never the path or the query: both may contain an id, a token or a signature.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bus.spans import enter_trace
from edge.core.signed_urls import NO_KEY

NO_ROUTE = "-"  # no route has this path
CLIENT_CLOSED_STATUS = 499  # the client left before the answer began, as nginx counts it
WEBSOCKET_METHOD = "WEBSOCKET"
SWITCHING_PROTOCOLS_STATUS = 101
# Asked every few seconds by load balancers, watchdogs and Prometheus.
PROBE_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})
_KEY_ID_SCOPE_KEY = "lamplighter.key_id"
_ANSWER_STATUS_MESSAGES = frozenset({"http.response.start", "websocket.http.response.start"})

_log = structlog.get_logger()


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
