"""A WebSocket that is refused, answered as the HTTP request that it still is."""

import logging
from typing import Any, cast

from litestar.types import Scope as LitestarScope
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.problems import explain

_CAUSE = "lamplighter.refused"
_ANSWERS = "websocket.http.response"  # the ASGI extension by which a server lets a handshake be answered

# uvicorn reports a fault of the application wherever a handshake was answered, and each request that is not HTTP.
_FALSE_ALARMS = frozenset(
    {
        "ASGI callable returned without completing handshake.",
        "Invalid HTTP request received.",
        "Unsupported upgrade request.",
    }
)


def no_false_alarm(record: logging.LogRecord) -> bool:
    """Return whether a line of the server's log is more than a stranger's mistake, which `StrangerLog` counts."""
    return record.getMessage() not in _FALSE_ALARMS


async def note_cause(error: Exception, scope: LitestarScope) -> None:
    """Litestar's after_exception hook: keeps for `Handshake` why a WebSocket was refused."""
    cast("dict[str, Any]", scope)[_CAUSE] = error


class Handshake:
    """Litestar closes what it refuses, and a server makes a bare 403 of that. The client is told why instead: 401, 403,
    404 or 422, with the problem document."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket" or _ANSWERS not in (scope.get("extensions") or {}):
            await self._app(scope, receive, send)
            return
        accepted = False

        async def answering(message: Message) -> None:
            nonlocal accepted
            accepted = accepted or message["type"] == "websocket.accept"
            error = scope.get(_CAUSE)
            if message["type"] == "websocket.close" and not accepted and error is not None:
                await _answer(error, scope["path"], send)
            else:
                await send(message)

        await self._app(scope, receive, answering)


async def _answer(error: Exception, path: str, send: Send) -> None:
    said = explain(error, path)
    headers = {**said.headers, "Content-Type": said.media_type, "Content-Length": str(len(said.body))}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": f"{_ANSWERS}.start", "status": said.status, "headers": raw})
    await send({"type": f"{_ANSWERS}.body", "body": said.body})
