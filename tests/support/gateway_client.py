"""A client of the gateway for tests: a real WebSocket that records all messages."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from socket import socket as Socket  # noqa: N812 - `socket` is the WebSocket here
from typing import Any

import anyio
import websockets
from websockets.asyncio.client import ClientConnection

MESSAGE_TIMEOUT_S = 15.0
FIELDS = {
    *("type", "version", "source", "target", "ts", "request_id", "trace_id", "task_type"),
    *("payload", "error", "error_msg", "result"),
}

GatewayMessage = dict[str, Any]


class GatewayClient:
    """A connected client. `messages`: all messages, in order. `close_reason`: the reason in the close frame."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.messages: list[GatewayMessage] = []
        self.close_reason = ""

    async def send(self, kind: str, payload: GatewayMessage | None = None, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, "payload": payload or {}, **fields}))

    async def next(self) -> GatewayMessage:
        with anyio.fail_after(MESSAGE_TIMEOUT_S):
            message: GatewayMessage = json.loads(await self.socket.recv())
        assert set(message) == FIELDS
        assert message["version"] == "1.0"
        self.messages.append(message)
        return message

    async def wait_for(self, wanted: Callable[[GatewayMessage], bool]) -> GatewayMessage:
        """Return the first message, received or future, for which `wanted` is true."""
        for message in self.messages:
            if wanted(message):
                return message
        with anyio.fail_after(MESSAGE_TIMEOUT_S):
            while not wanted(message := await self.next()):
                pass
        return message

    async def wait_for_type(self, kind: str, **payload: Any) -> GatewayMessage:
        """Return the first message of this type whose payload has these fields."""
        return await self.wait_for(lambda said: said["type"] == kind and payload.items() <= said["payload"].items())

    async def ask(self, kind: str, payload: GatewayMessage | None = None, **fields: Any) -> GatewayMessage:
        """Send a message and return the next message that is not a push."""
        await self.send(kind, payload, **fields)
        while "id" in (said := await self.next())["payload"] and said["payload"]["id"]:
            pass
        return said

    async def wait_until_closed(self) -> int | None:
        """Read all messages and return the close code."""
        try:
            while True:
                await self.next()
        except websockets.ConnectionClosed as closed:
            self.close_reason = closed.rcvd.reason if closed.rcvd else ""
            return closed.rcvd.code if closed.rcvd else None


@asynccontextmanager
async def connect_gateway(
    url: str, key: str | None, path: str = "/ws", max_queue: int = 16, sock: Socket | None = None, **headers: str
) -> AsyncIterator[GatewayClient]:
    """Connect with the key as a bearer, in English unless `headers` name another language."""
    sent = {"Accept-Language": "en", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    where = url.replace("http", "ws", 1) + path
    connecting = websockets.connect(where, additional_headers=sent, max_size=None, max_queue=max_queue, sock=sock)
    async with connecting as socket:
        yield GatewayClient(socket)
