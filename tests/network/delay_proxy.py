"""A TCP proxy with latency: every byte arrives `delay_s` after it was sent."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

CHUNK_BYTES = 64 * 1024
BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)
Timed = tuple[float, bytes]


@asynccontextmanager
async def run_delay_proxy(host: str, port: int, delay_s: float) -> AsyncIterator[int]:
    """Yield a port of loopback that forwards to `host`:`port` with `delay_s` of latency in each direction."""

    async def serve(near: SocketStream) -> None:
        async with near:
            await anyio.sleep(2 * delay_s)  # the handshake
            try:
                async with await anyio.connect_tcp(host, port) as far, anyio.create_task_group() as both:
                    both.start_soon(_pump, near, far, delay_s)
                    both.start_soon(_pump, far, near, delay_s)
            except* BROKEN:
                pass  # either end closed the connection

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield listener.extra(SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


async def _pump(source: SocketStream, sink: SocketStream, delay_s: float) -> None:
    send, receive = anyio.create_memory_object_stream[Timed](inf)
    async with anyio.create_task_group() as both:
        both.start_soon(_receive, source, send, delay_s)
        both.start_soon(_send_delayed, receive, sink)


async def _receive(source: SocketStream, send: MemoryObjectSendStream[Timed], delay_s: float) -> None:
    async with send:
        while True:
            try:
                piece = await source.receive(CHUNK_BYTES)
            except anyio.EndOfStream:
                return
            await send.send((anyio.current_time() + delay_s, piece))


async def _send_delayed(receive: MemoryObjectReceiveStream[Timed], sink: SocketStream) -> None:
    async with receive:
        async for due, piece in receive:
            await anyio.sleep_until(due)
            await sink.send(piece)
    await sink.send_eof()
