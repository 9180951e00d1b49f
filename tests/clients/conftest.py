"""An installation of real processes, and the same edge behind a proxy whose connections a test can break."""

import json
from collections.abc import AsyncIterator, Sequence

import pytest
from msgspec import Struct
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.http_server import serve_app
from tests.support.installation import ROOT, RunningInstallation, run_new_installation
from tests.support.tcp_proxy import TcpProxy, run_proxy


class ClientWorld(Struct, frozen=True):
    """A running installation with one host. `proxy_url`: its edge behind a proxy that `control_url` breaks.

    `page_url`: another origin with a page that may call the edge.
    """

    running: RunningInstallation
    proxy: TcpProxy
    proxy_url: str
    control_url: str
    page_url: str

    @property
    def url(self) -> str:
        return self.running.installation.url

    @property
    def key(self) -> str:
        return self.running.installation.keys["ann"]

    def environ(self) -> dict[str, str]:
        """What the programs of the tests read."""
        admin = self.running.installation.keys["admin"]
        return {"URL": self.url, "KEY": self.key, "ADMIN": admin, "PROXY": self.proxy_url, "CONTROL": self.control_url}


def make_control(proxy: TcpProxy) -> ASGIApp:
    """Return an app that breaks every connection of `proxy` when it is called."""

    async def control(scope: Scope, _: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        proxy.cut()
        proxy.heal()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    return control


PAGE = b"<!doctype html><title>page</title>"
SCRIPTS = ROOT / "clients" / "js" / "src"


def make_page(policy: Sequence[str] = ()) -> ASGIApp:
    """Return an app with an empty page, whose policy allows only its own scripts, and the client's modules."""
    files = StaticFiles(directory=SCRIPTS)

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/":
            await files(scope, receive, send)
            return
        headers = {"Content-Security-Policy": "; ".join(("default-src 'none'", "script-src 'self'", *policy))}
        await HTMLResponse(PAGE, headers=headers)(scope, receive, send)

    return page


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[ClientWorld]:
    """Run the edge, the runner and the proxy that the tests of a file share."""
    folder = tmp_path_factory.mktemp("clients")
    policy = ("connect-src http://127.0.0.1:*", "worker-src 'self'")
    async with serve_app(make_page(policy), lifespan="off") as page_url:
        settings = {
            "LAMPLIGHTER_CORS__ORIGINS": json.dumps([page_url]),
            "LAMPLIGHTER_OUTBOUND__ALLOW": json.dumps(["127.0.0.1"]),  # the receivers of webhooks
        }
        async with run_new_installation(folder, "process", None, **settings) as running:
            await running.installation.start_runner(LAMPLIGHTER_SLOTS="4")
            async with (
                run_proxy(*running.installation.edge_address) as proxy,
                serve_app(make_control(proxy), lifespan="off") as control_url,
            ):
                yield ClientWorld(running, proxy, f"http://127.0.0.1:{proxy.port}", control_url, page_url)
            print(running.installation.tail())  # noqa: T201 - shown by pytest when a test failed
