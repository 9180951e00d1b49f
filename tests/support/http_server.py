"""A real uvicorn on a free port of 127.0.0.1, for tests that talk HTTP to an ASGI app."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    """A uvicorn server that stops at once. The original polls every 0.1 s."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready, self.over = anyio.Event(), anyio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        try:
            while not await self.on_tick(0):  # which writes down the date that answers carry
                with anyio.move_on_after(1):
                    await self.over.wait()
        finally:  # cancelled, uvicorn leaves them open
            for server in self.servers:
                server.close()


@asynccontextmanager
async def serve_app(app: ASGIApp, **config: Any) -> AsyncIterator[str]:
    """Serve the app for the duration of the block and yield its base URL. `config`: more options of uvicorn."""
    server = _Server(
        uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=5, proxy_headers=False, **config)
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listening])
            with anyio.fail_after(10):
                await server.ready.wait()
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            finally:
                server.should_exit = True
                server.over.set()


def open_client(url: str, **config: Any) -> httpx2.AsyncClient:
    """Return a client for plain HTTP. It skips the CA bundle, which takes 20 ms to load, and waits up to a minute."""
    return httpx2.AsyncClient(base_url=url, verify=False, **{"timeout": 60, **config})
