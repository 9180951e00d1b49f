"""One socket's frames. The server is told to take larger ones than the protocol allows, so that a frame over 1 MiB can
be answered with an error instead of the end of the connection. Before the client is known it takes small ones only."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

import msgspec
from litestar.connection import WebSocket
from litestar.exceptions import WebSocketDisconnect

from schemas.envelope import Envelope

AnySocket = WebSocket[Any, Any, Any]
LARGEST_FRAME = 16 * 1024 * 1024  # beyond this the server itself closes, 1009: what is taken in must be bounded

WIDEN = "lamplighter.widen"  # the ASGI extension by which the server is told that the client is known

LOST = (WebSocketDisconnect, OSError)  # what a send raises when nobody is there any more


class Gone(Exception):
    """The client left."""


async def next_frame(socket: AnySocket) -> str | bytes:
    """What the client sends next, text or binary. Raises Gone."""
    event = await socket.receive()
    if event["type"] != "websocket.receive":
        raise Gone
    text = event.get("text")
    return text if text is not None else event.get("bytes") or b""


def widen(socket: AnySocket) -> None:
    """Take frames up to LARGEST_FRAME from here on. A server without the extension takes them from the start."""
    extensions = cast("dict[str, Callable[[], None]]", socket.scope.get("extensions") or {})
    if WIDEN in extensions:
        extensions[WIDEN]()


def text(envelope: Envelope) -> str:
    """As it is sent."""
    return msgspec.json.encode(envelope).decode()


def seconds(moment: datetime) -> int:
    """`ts` of an envelope."""
    return int(moment.timestamp())
