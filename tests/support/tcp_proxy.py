"""A TCP proxy on loopback that can be cut: a network that fails between two real processes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup

CHUNK_BYTES = 64 * 1024


class TcpProxy:
    """Forwards to `target` (host, port). While it is cut, connections stay open and nothing passes."""

    def __init__(self, target: tuple[str, int], tasks: TaskGroup) -> None:
        self._target = target
        self._tasks = tasks
        self._open = anyio.Event()
        self._open.set()
        self._scopes: set[anyio.CancelScope] = set()
        self.port = 0

    def cut(self) -> None:
        """Let nothing pass from now on, in either direction."""
        self._open = anyio.Event()

    def heal(self) -> None:
        """Drop the connections that were cut, as a router that forgot them would, and let new ones pass."""
        for scope in tuple(self._scopes):
            scope.cancel()
        self._open.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            self.port = listener.extra(SocketAttribute.local_port)
            task_status.started()
            await listener.serve(self._serve)

    async def _serve(self, near: SocketStream) -> None:
        async with near:
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    await self._open.wait()
                    async with await anyio.connect_tcp(*self._target) as far, anyio.create_task_group() as both:
                        both.start_soon(self._pump, near, far, scope)
                        both.start_soon(self._pump, far, near, scope)
                except OSError:
                    scope.cancel()
                finally:
                    self._scopes.discard(scope)

    async def _pump(self, source: SocketStream, sink: SocketStream, scope: anyio.CancelScope) -> None:
        try:
            while True:
                piece = await source.receive(CHUNK_BYTES)
                await self._open.wait()
                await sink.send(piece)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            scope.cancel()


@asynccontextmanager
async def run_proxy(host: str, port: int) -> AsyncIterator[TcpProxy]:
    """Run a proxy to `host`:`port` while the block runs."""
    async with anyio.create_task_group() as tasks:
        proxy = TcpProxy((host, port), tasks)
        await tasks.start(proxy.run)
        yield proxy
        tasks.cancel_scope.cancel()
