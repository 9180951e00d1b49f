"""One socket's frames. The server is told to take larger ones than the protocol allows, so that a frame over 1 MiB can
be answered with an error instead of the end of the connection. Before the client is known it takes small ones only."""

from collections.abc import Callable
from typing import Any, cast

from litestar.connection import WebSocket
from litestar.exceptions import WebSocketDisconnect

AnySocket = WebSocket[Any, Any, Any]
FRAME_LIMIT_BYTES = 16 * 1024 * 1024  # beyond this the server itself closes, 1009: what is taken in must be bounded

LARGE_FRAMES_EXTENSION = "lamplighter.widen"  # the ASGI extension by which the server is told that the client is known

DISCONNECT_ERRORS = (WebSocketDisconnect, OSError)  # what a send raises when nobody is there any more


class ClientGone(Exception):
    """The client left."""


async def receive_frame(socket: AnySocket) -> str | bytes:
    """What the client sends next, text or binary. Raises Gone."""
    event = await socket.receive()
    if event["type"] != "websocket.receive":
        raise ClientGone
    text = event.get("text")
    return text if text is not None else event.get("bytes") or b""


def allow_large_frames(socket: AnySocket) -> None:
    """Take frames up to LARGEST_FRAME from here on. A server without the extension takes them from the start."""
    extensions = cast("dict[str, Callable[[], None]]", socket.scope.get("extensions") or {})
    if LARGE_FRAMES_EXTENSION in extensions:
        extensions[LARGE_FRAMES_EXTENSION]()
