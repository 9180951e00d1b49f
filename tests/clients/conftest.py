"""An installation of real processes, and the same edge behind a proxy whose connections a test can break."""

from collections.abc import AsyncIterator

import pytest
from msgspec import Struct
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.http_server import serve_app
from tests.support.installation import RunningInstallation, run_new_installation
from tests.support.tcp_proxy import TcpProxy, run_proxy


class ClientWorld(Struct, frozen=True):
    """A running installation with one host. `proxy_url`: its edge behind a proxy that `control_url` breaks."""

    running: RunningInstallation
    proxy: TcpProxy
    proxy_url: str
    control_url: str

    @property
    def url(self) -> str:
        return self.running.installation.url

    @property
    def key(self) -> str:
        return self.running.installation.keys["ann"]

    def environ(self) -> dict[str, str]:
        """What the programs of the tests read."""
        return {"URL": self.url, "KEY": self.key, "PROXY": self.proxy_url, "CONTROL": self.control_url}


def make_control(proxy: TcpProxy) -> ASGIApp:
    """Return an app that breaks every connection of `proxy` when it is called."""

    async def control(scope: Scope, _: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        proxy.cut()
        proxy.heal()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    return control


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[ClientWorld]:
    """Run the edge, the runner and the proxy that the tests of a file share."""
    folder = tmp_path_factory.mktemp("clients")
    async with run_new_installation(folder, "process", None) as running:
        await running.installation.start_runner(LAMPLIGHTER_SLOTS="4")
        async with (
            run_proxy(*running.installation.edge_address) as proxy,
            serve_app(make_control(proxy), lifespan="off") as control_url,
        ):
            yield ClientWorld(running, proxy, f"http://127.0.0.1:{proxy.port}", control_url)
        print(running.installation.tail())  # noqa: T201 - shown by pytest when a test failed
