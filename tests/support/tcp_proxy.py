"""A TCP proxy between two real processes: it can cut the network, add latency, and choose a target per connection."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskStatus
from anyio.streams.memory import MemoryObjectSendStream

CHUNK_BYTES = 64 * 1024
BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)

Address = tuple[str, int]
TimedChunk = tuple[float, bytes]  # when it is due, by anyio.current_time


class TcpProxy:
    """Forwards each connection to the address that `choose_target` returns; None closes the connection.

    `delay_s`: how much later every byte arrives. While the proxy is cut, connections stay open and nothing passes.
    `cut_after_bytes`: cut it by itself once so many bytes have passed.
    """

    def __init__(
        self,
        choose_target: Callable[[], Address | None],
        *,
        delay_s: float = 0.0,
        cut_after_bytes: float = inf,
    ) -> None:
        self._choose_target = choose_target
        self._delay_s = delay_s
        self._left_bytes = cut_after_bytes
        self._open = anyio.Event()
        self._open.set()
        self._connections: dict[anyio.CancelScope, Address] = {}
        self.port = 0

    def cut(self) -> None:
        """Let nothing pass from now on, in either direction."""
        self._open = anyio.Event()

    def heal(self) -> None:
        """Drop the connections that were cut, as a router that forgot them would, and let new ones pass."""
        self._left_bytes = inf
        for scope in tuple(self._connections):
            scope.cancel()
        self._open.set()

    def drop_connections(self, target: Address) -> None:
        """Close the connections to `target`."""
        for scope, address in tuple(self._connections.items()):
            if address == target:
                scope.cancel()

    async def run(self, host: str, port: int, *, task_status: TaskStatus[None]) -> None:
        """Serve at `host`:`port`; port 0 takes any, and `port` then says which."""
        async with await anyio.create_tcp_listener(local_host=host, local_port=port) as listener:
            self.port = listener.extra(SocketAttribute.local_port)
            task_status.started()
            await listener.serve(self._serve)

    async def _serve(self, near: SocketStream) -> None:
        async with near:
            target = self._choose_target()
            if target is None:
                return
            with anyio.CancelScope() as scope:
                self._connections[scope] = target
                try:
                    await self._open.wait()
                    await anyio.sleep(2 * self._delay_s)  # the handshake
                    async with await anyio.connect_tcp(*target) as far, anyio.create_task_group() as both:
                        both.start_soon(self._forward, near, far, scope)
                        both.start_soon(self._forward, far, near, scope)
                except OSError:
                    scope.cancel()
                finally:
                    del self._connections[scope]

    async def _forward(self, source: SocketStream, sink: SocketStream, scope: anyio.CancelScope) -> None:
        """Copy `source` to `sink` until either end closes the connection."""
        if self._delay_s:
            await self._copy_delayed(source, sink)
        else:
            await self._copy(source, sink)
        scope.cancel()

    async def _copy(self, source: SocketStream, sink: SocketStream) -> None:
        try:
            while True:
                chunk = await source.receive(CHUNK_BYTES)
                self._left_bytes -= len(chunk)
                if self._left_bytes < 0:
                    self.cut()
                await self._open.wait()
                await sink.send(chunk)
        except BROKEN:
            return

    async def _copy_delayed(self, source: SocketStream, sink: SocketStream) -> None:
        send, receive = anyio.create_memory_object_stream[TimedChunk](inf)
        async with anyio.create_task_group() as tasks, receive:
            tasks.start_soon(self._receive, source, send)
            try:
                async for due, chunk in receive:
                    await anyio.sleep_until(due)
                    await self._open.wait()
                    await sink.send(chunk)
            except BROKEN:
                tasks.cancel_scope.cancel()

    async def _receive(self, source: SocketStream, send: MemoryObjectSendStream[TimedChunk]) -> None:
        async with send:
            try:
                while True:
                    chunk = await source.receive(CHUNK_BYTES)
                    await send.send((anyio.current_time() + self._delay_s, chunk))
            except BROKEN:
                return


@asynccontextmanager
async def serve_proxy(proxy: TcpProxy, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[TcpProxy]:
    """Run `proxy` at `host`:`port` while the block runs."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(proxy.run, host, port)
        yield proxy
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def run_proxy(host: str, port: int, *, delay_s: float = 0.0) -> AsyncIterator[TcpProxy]:
    """Run a proxy to `host`:`port` on a port of loopback while the block runs."""
    async with serve_proxy(TcpProxy(lambda: (host, port), delay_s=delay_s)) as proxy:
        yield proxy
