"""One connection: authenticate its client, read raw frames, and queue those to send.

The client authenticates by the handshake or by its first message. The server accepts larger frames than the protocol
allows, so that a frame over 1 MiB gets an error reply instead of a closed connection. Before the client is
authenticated, the server accepts only small frames. The send queue is bounded, so that a client that does not read
costs a known amount of memory.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from anyio import Event, fail_after
from litestar.connection import WebSocket
from litestar.exceptions import WebSocketDisconnect
from msgspec import Struct

from edge.core.concurrency import translate_errors
from edge.core.messages import choose_language
from edge.http.auth import authenticate_throttled, is_still_valid, read_credential, resolve_owner
from edge.http.dependencies import EdgeServices, read_client_address
from edge.http.middleware import LARGE_FRAMES_EXTENSION
from edge.jobs.view import Asker
from schemas.credentials import ApiKey, Scope
from schemas.gateway_protocol import EnvelopeType, read_frame
from schemas.installation import AuditAction
from schemas.problems import ProblemError
from schemas.texts import Language

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


AUTH_TIMEOUT_S = 10.0


class SocketCaller(Struct, frozen=True):
    """An authenticated client. `credential`: its key or token as sent. `address`: for the audit log."""

    credential: str
    key: ApiKey
    owner: str
    language: Language
    address: str = ""

    @property
    def asker(self) -> Asker:
        """Return the language and key that job views are built for."""
        return Asker(self.language, self.key.id)

    def require_scope(self, scope: Scope) -> None:
        """Raise ProblemError `forbidden` if the key lacks `scope`."""
        if not self.key.allows(scope):
            raise ProblemError("forbidden", f"the key lacks the scope {scope}: use a key that has it")

    async def record(self, services: EdgeServices, action: AuditAction, subject: str) -> None:
        """Record in the audit log what the client did to `subject`, a job or an asset of its owner."""
        await services.audit.record(action, subject, by=self.key.id, client=self.address, owner=self.owner)

    async def is_still_valid(self, services: EdgeServices) -> bool:
        """Return whether the key is still valid. It may have been revoked."""
        return await is_still_valid(services, self.key, self.credential)


def credential_from_handshake(socket: AnySocket) -> str | None:
    """Return the key or token of the handshake."""
    return read_credential(socket) or socket.query_params.get("key")


async def authenticate_socket(socket: AnySocket, services: EdgeServices, text: str) -> SocketCaller:
    """Return the caller with the key or token `text`. Raises ProblemError `unauthorized` or `unavailable`."""
    with translate_errors():
        key = await authenticate_throttled(socket, services, text)
    if key is None:
        raise ProblemError(
            "unauthorized",
            "the key is missing or not valid: send one as a bearer header, as ?key=, or in a first message `auth`",
        )
    owner = resolve_owner(key, socket.query_params.get("owner"))
    # Existing clients of this envelope compare the Chinese texts and send no Accept-Language.
    language = choose_language(socket.headers.get("accept-language"), key.language or Language.ZH)
    return SocketCaller(text, key, owner, language, read_client_address(socket))


async def read_auth_message(socket: AnySocket, within_s: float) -> str:
    """Return the key of `{"type": "auth", "payload": {"license_key": …}}`.

    Raises ProblemError `unauthorized`, also when no message arrives in time, and ClientGone.
    """
    try:
        with fail_after(within_s):
            message = read_frame(await receive_frame(socket))
    except TimeoutError as error:
        raise ProblemError(
            "unauthorized", f"no key arrived within {within_s:.0f} s: send the message `auth` first"
        ) from error
    text = message.payload.get("license_key")
    if message.type != EnvelopeType.AUTH or not isinstance(text, str):
        raise ProblemError("unauthorized", "the first message must be `auth` with payload.license_key")
    return text
