"""The frames of one socket: read them raw, and queue those to send.

The server accepts larger frames than the protocol allows, so that a frame over 1 MiB gets an error reply instead of
a closed connection. Before the client is authenticated, the server accepts only small frames. The send queue is
bounded, so that a client that does not read costs a known amount of memory.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from anyio import Event
from litestar.connection import WebSocket
from litestar.exceptions import WebSocketDisconnect

from edge.http.middleware import LARGE_FRAMES_EXTENSION

AnySocket = WebSocket[Any, Any, Any]
DISCONNECT_ERRORS = (WebSocketDisconnect, OSError)  # raised by a send after the client disconnected
QUEUE_MESSAGES_LIMIT = 1000
QUEUE_BYTES_LIMIT = 4 * 1024 * 1024


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


class SendQueue:
    """Replies go before pushes. Pushes wait while a request is handled, so that its reply comes first.

    No frame is dropped: a push that does not fit calls `overflow`, which must close the socket. The client then
    resumes after the last push that it received.
    """

    def __init__(
        self, overflow: Callable[[], object], messages: int = QUEUE_MESSAGES_LIMIT, size: int = QUEUE_BYTES_LIMIT
    ) -> None:
        self._overflow = overflow
        self._messages, self._size = messages, size
        self._replies: deque[str] = deque()
        self._pushes: deque[str] = deque()
        self._queued_characters = 0
        self._pushes_paused = False
        self._filled = Event()
        self._emptied = Event()

    @property
    def has_slack(self) -> bool:
        """Return whether the queue is less than half full."""
        return 2 * len(self._pushes) < self._messages and 2 * self._queued_characters < self._size

    def put_reply(self, text: str) -> None:
        """Add a reply, before all pushes. Callers wait for slack before they read a request: this bounds replies."""
        self._replies.append(text)
        self._count_added(text)

    def put_push(self, text: str) -> None:
        """Add a push at the end, or call `overflow` if the queue is full."""
        if self._pushes and (len(self._pushes) >= self._messages or self._queued_characters + len(text) > self._size):
            self._overflow()
            return
        self._pushes.append(text)
        self._count_added(text)

    def _count_added(self, text: str) -> None:
        self._queued_characters += len(text)
        self._filled.set()

    @contextmanager
    def pause_pushes(self) -> Iterator[None]:
        """Hold pushes back inside the block."""
        self._pushes_paused = True
        try:
            yield
        finally:
            self._pushes_paused = False
            self._filled.set()

    async def get(self) -> str:
        """Wait for the next frame and return it."""
        while True:
            if self._replies:
                return self._pop(self._replies)
            if self._pushes and not self._pushes_paused:
                return self._pop(self._pushes)
            self._filled = Event()
            await self._filled.wait()

    def _pop(self, queue: deque[str]) -> str:
        text = queue.popleft()
        self._queued_characters -= len(text)
        self._emptied.set()
        return text

    async def wait_for_slack(self) -> None:
        """Wait until the queue has slack and few replies wait."""
        while not self.has_slack or len(self._replies) > self._messages // 2:
            self._emptied = Event()
            await self._emptied.wait()
