"""A TCP balancer over the edges that are ready; it cuts the connections of an edge that is not ready any more."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count

import anyio
import httpx2

from tests.support.tcp_proxy import Address, TcpProxy, serve_proxy

POLL_INTERVAL_S = 0.25
POLL_TIMEOUT_S = 1.0


class TcpBalancer:
    """`edges`: their addresses by name."""

    def __init__(self, edges: Mapping[str, Address]) -> None:
        self._edges = edges
        self._ready: set[str] = set()
        self._turn = count()
        self.proxy = TcpProxy(self._next_edge)

    @property
    def ready(self) -> frozenset[str]:
        """The edges that are ready."""
        return frozenset(self._ready)

    def _next_edge(self) -> Address | None:
        """Return the next ready edge in turn."""
        ready = sorted(self._ready)
        return self._edges[ready[next(self._turn) % len(ready)]] if ready else None

    async def watch(self, name: str) -> None:
        """Poll whether one edge is ready."""
        host, port = self._edges[name]
        async with httpx2.AsyncClient(base_url=f"http://{host}:{port}", timeout=POLL_TIMEOUT_S) as client:
            while True:
                if await _is_ready(client):
                    self._ready.add(name)
                else:
                    self._ready.discard(name)
                    self.proxy.drop_connections(self._edges[name])
                await anyio.sleep(POLL_INTERVAL_S)


async def _is_ready(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).is_success
    except httpx2.HTTPError:
        return False


@asynccontextmanager
async def run_balancer(host: str, port: int, edges: Mapping[str, Address]) -> AsyncIterator[TcpBalancer]:
    """Run a balancer at `host`:`port` while the block runs."""
    balancer = TcpBalancer(edges)
    async with serve_proxy(balancer.proxy, host, port), anyio.create_task_group() as tasks:
        for name in edges:
            tasks.start_soon(balancer.watch, name)
        yield balancer
        tasks.cancel_scope.cancel()
