"""Servers as they may be met outside, on loopback: each says bytes of the test's own, and counts who came."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.abc
from msgspec import Struct, field

ServerScript = Callable[[anyio.abc.ByteStream], Awaitable[None]]


class ScriptedServer(Struct):
    """One server. `requests` are the heads that came, in order."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def scripted_server(play: ServerScript) -> AsyncIterator[ScriptedServer]:
    """A server that reads a head and lets `play` answer."""
    made = ScriptedServer()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += await stream.receive()
                made.requests.append(head)
                await play(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return  # whoever asked has gone

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        made.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            yield made
            tasks.cancel_scope.cancel()


def send_bytes(*pieces: bytes) -> ServerScript:
    """Say these, then close."""

    async def play(stream: anyio.abc.ByteStream) -> None:
        for piece in pieces:
            await stream.send(piece)

    return play


def http_response(body: bytes = b"a film", status: str = "200 OK", **headers: str) -> ServerScript:
    """A proper answer."""
    lines = {"Content-Length": str(len(body)), "Content-Type": "video/mp4", "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return send_bytes(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)


def http_redirect(location: str) -> ServerScript:
    """Elsewhere."""
    return http_response(b"", "302 Found", Location=location)


async def send_endless_body(stream: anyio.abc.ByteStream) -> None:
    """A body that never ends."""
    await stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await stream.send(b"10000\r\n" + bytes(0x10000) + b"\r\n")


async def send_slow_body(stream: anyio.abc.ByteStream) -> None:
    """A body of a byte now and then, for ever; each arrives before any single wait runs out."""
    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        await stream.send(b"x")
        await anyio.sleep(0.01)


async def stay_silent(stream: anyio.abc.ByteStream) -> None:
    """Nothing at all, until the other side goes."""
    await stream.receive()


class FakeDns:
    """A DNS of the test's own. A name with several answers gives one after the other, the last for ever."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        answers = {"files_test": [["127.0.0.1"]]} | answers
        self._answers = {name.replace("_", "."): list(given) for name, given in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        left = self._answers.get(host)
        if left is None:
            raise OSError("no such name")
        return left.pop(0) if len(left) > 1 else left[0]
