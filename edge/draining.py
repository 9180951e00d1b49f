"""Reading the rest of a request before it is answered early, so that the answer arrives."""

from collections.abc import Iterable

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_S = 10.0


class Draining:
    """An edge that answers (401, 413, 422) and closes while the client still sends makes its kernel reset the
    connection, and a client that first sends and then reads never sees why.

    So what is still coming is read and dropped, within DRAIN_BYTES and DRAIN_S. A client that waits for "100 Continue"
    has sent nothing yet and is answered at once.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope["headers"]):
            await self._app(scope, receive, send)
            return
        more = True

        async def reading() -> Message:
            nonlocal more
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start" and more:
                await drain()
            await send(message)

        async def drain() -> None:
            left = DRAIN_BYTES
            with anyio.move_on_after(DRAIN_S):
                while more and left > 0:
                    left -= len((await reading()).get("body", b""))

        await self._app(scope, reading, answering)


def _has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    names = {name for name, _ in headers}
    return bool(names & {b"content-length", b"transfer-encoding"}) and b"expect" not in names
