"""M1: no proxy that the environment names may see what goes to this machine itself, keys above all.

With HTTP_PROXY set, `lamplighter up` sent its admin key there 777 times and did not come up.
"""

import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from bus.nats.health import open_monitor_client
from lamplighter import AsyncClient
from lamplighter.cli.context import EdgeAddress
from lamplighter.cli.up import _wait_until_ready
from runner.assets.client import asset_client
from schemas.outbound_rules import bypass_proxies_for_loopback, is_loopback, is_loopback_url
from tests.attack.conftest import ServeFunction
from tests.e2e.test_up import lamplighter, up

NAMES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A proxy from the environment that must receive no connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        for name in NAMES:
            monkeypatch.setenv(name, f"http://127.0.0.1:{listening.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield listening
        with pytest.raises(BlockingIOError):
            listening.accept()


async def _client(url: str) -> None:
    async with AsyncClient(url, "lamp_x_0123456789abcdef") as client:
        await client._http.get("/")


async def _assets(url: str) -> None:
    async with asset_client(url, "lamp_x_0123456789abcdef") as client:
        await client._client.get("/")


async def _monitor(url: str) -> None:
    async with open_monitor_client(url) as client:
        await client.get("/varz")


async def _ready(url: str) -> None:
    await _wait_until_ready(EdgeAddress(url, "lamp_x_0123456789abcdef"), with_runner=False)


async def _hosts(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond to every request with the JSON of `GET /v1/hosts`."""
    body = b'{"hosts":[]}'
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("ask", [_client, _assets, _monitor, _ready])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_client_of_this_machine_goes_past_it(
    serve: ServeFunction, proxy: socket.socket, ask: Callable[[str], Awaitable[None]], host: str
):
    async with serve(app=_hosts) as target:
        await ask(f"http://{host}:{target.port}")


def test_up_comes_up_and_the_command_line_reaches_it(tmp_path: Path, proxy: socket.socket):
    data = tmp_path / "data"
    with up(data):
        done = lamplighter(data, "submit", "echo", "--text", "hi", "--wait")
        assert done.returncode == 0, done.stderr
        assert "127.0.0.1" in lamplighter(data, "doctor").stdout


async def test_what_is_elsewhere_still_takes_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with httpx2.AsyncClient(mounts=bypass_proxies_for_loopback("http://192.0.2.1"), timeout=5) as client:
        with pytest.raises(httpx2.ConnectError):  # the proxy's port is closed: it was asked
            await client.get("http://192.0.2.1/")


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.8.9.1", True),
        ("https://localhost:1", True),
        ("http://LOCALHOST", True),
        ("http://[::1]:80/x", True),
        ("http://localhost.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("http://user@192.0.2.1", False),
        ("http://127.0.0.1@192.0.2.1/", False),
        ("http://[::1", False),
        ("", False),
    ],
)
def test_which_urls_lead_here(url: str, *, here: bool):
    assert is_loopback_url(url) is here
    if here:
        client = httpx2.Client(mounts=bypass_proxies_for_loopback(url), timeout=60)
        assert any(pattern.matches(httpx2.URL(url)) for pattern in client._mounts)


def test_a_name_that_only_looks_like_it_is_not():
    assert not is_loopback("127.0.0.1.")
    assert not is_loopback("")
