"""A TCP balancer over the edges that are ready; it cuts the connections of an edge that is not ready any more."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count

import anyio
import httpx
from anyio.abc import SocketStream

LOOK_S = 0.25
PATIENCE_S = 1.0
CHUNK_BYTES = 64 * 1024


class TcpBalancer:
    """`edges`: their addresses (host, port) by name."""

    def __init__(self, edges: Mapping[str, tuple[str, int]]) -> None:
        self._edges = edges
        self._ready: set[str] = set()
        self._open: dict[str, set[anyio.CancelScope]] = {name: set() for name in edges}
        self._turn = count()

    @property
    def ready(self) -> frozenset[str]:
        """The edges that are ready."""
        return frozenset(self._ready)

    async def watch(self, name: str) -> None:
        """Poll whether one edge is ready."""
        host, port = self._edges[name]
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=PATIENCE_S) as client:
            while True:
                if await _is_ready(client):
                    self._ready.add(name)
                else:
                    self._ready.discard(name)
                    for scope in tuple(self._open[name]):
                        scope.cancel()
                await anyio.sleep(LOOK_S)

    async def serve(self, near: SocketStream) -> None:
        """Serve one connection by the next edge in turn; close it at once where none is ready."""
        async with near:
            ready = sorted(self._ready)
            if not ready:
                return
            name = ready[next(self._turn) % len(ready)]
            with anyio.CancelScope() as scope:
                self._open[name].add(scope)
                try:
                    async with await anyio.connect_tcp(*self._edges[name]) as far, anyio.create_task_group() as both:
                        both.start_soon(_pump, near, far, scope)
                        both.start_soon(_pump, far, near, scope)
                except OSError:
                    scope.cancel()
                finally:
                    self._open[name].discard(scope)


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).is_success
    except httpx.HTTPError:
        return False


async def _pump(source: SocketStream, sink: SocketStream, scope: anyio.CancelScope) -> None:
    try:
        while True:
            await sink.send(await source.receive(CHUNK_BYTES))
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        scope.cancel()


@asynccontextmanager
async def run_balancer(host: str, port: int, edges: Mapping[str, tuple[str, int]]) -> AsyncIterator[TcpBalancer]:
    """Run a balancer at `host`:`port` while the block runs."""
    balancer = TcpBalancer(edges)
    async with (
        await anyio.create_tcp_listener(local_host=host, local_port=port) as listener,
        anyio.create_task_group() as tasks,
    ):
        for name in edges:
            tasks.start_soon(balancer.watch, name)
        tasks.start_soon(listener.serve, balancer.serve)
        yield balancer
        tasks.cancel_scope.cancel()
