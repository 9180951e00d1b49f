"""ASGI middleware that counts requests and measures the time to their answers."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.core.metrics import EdgeMetrics
from edge.http.problems import PROBLEM_CODE_KEY
from schemas.metrics import OTHER

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
