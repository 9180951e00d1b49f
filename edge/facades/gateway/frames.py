"""Read raw frames of one socket.

The server accepts larger frames than the protocol allows, so that a frame over 1 MiB gets an error reply instead of
a closed connection. Before the client is authenticated, the server accepts only small frames.
"""

from collections.abc import Callable
from typing import Any, cast

from litestar.connection import WebSocket
from litestar.exceptions import WebSocketDisconnect

from edge.http.middleware import LARGE_FRAMES_EXTENSION

AnySocket = WebSocket[Any, Any, Any]
DISCONNECT_ERRORS = (WebSocketDisconnect, OSError)  # raised by a send after the client disconnected


class ClientGone(Exception):
    """Raised by `receive_frame` after the client disconnected."""


async def receive_frame(socket: AnySocket) -> str | bytes:
    """Return the next frame, text or binary. Raises ClientGone."""
    event = await socket.receive()
    if event["type"] != "websocket.receive":
        raise ClientGone
    text = event.get("text")
    return text if text is not None else event.get("bytes") or b""


def allow_large_frames(socket: AnySocket) -> None:
    """Accept large frames from now on. A server without the extension accepts them from the start."""
    extensions = cast("dict[str, Callable[[], None]]", socket.scope.get("extensions") or {})
    if LARGE_FRAMES_EXTENSION in extensions:
        extensions[LARGE_FRAMES_EXTENSION]()
