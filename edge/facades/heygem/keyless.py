"""A port of this machine on which `/easy/…` asks for no key. It has nothing else, and is closed unless asked for."""

from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send

from edge.problems import explain
from schemas.errors import Refused

_MARK = "lamplighter.keyless"
_PREFIX = "/easy/"


def came_in_keyless(scope: Any) -> bool:
    """Whether the request came in by the port that asks for no key."""
    return bool(cast("dict[str, Any]", scope).get(_MARK))


class KeylessPort:
    """The edge's app as the clients of that port see it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_PREFIX):
            scope[_MARK] = True
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _not_here(scope["path"], send)
        else:
            await send({"type": "websocket.close", "code": 1008})


async def _not_here(path: str, send: Send) -> None:
    said = explain(Refused("not_found", f"this port has {_PREFIX} alone: use the edge's own port, with a key"), path)
    headers = [(b"content-type", said.media_type.encode()), (b"content-length", str(len(said.body)).encode())]
    await send({"type": "http.response.start", "status": said.status, "headers": headers})
    await send({"type": "http.response.body", "body": said.body})
