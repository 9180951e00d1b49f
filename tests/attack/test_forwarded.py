"""Who is behind a reverse proxy: nobody lies about an address, and nothing that a proxy passes on counts as local.

Failed keys, the audit trail and the limits for one address count the client that the trusted proxy names.
"""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from litestar.connection import ASGIConnection
from structlog.testing import capture_logs

from edge.core.clients import ForwardedClient, ThrottledClientLog, TrustedProxies, read_hops, shows_proxy
from edge.http.dependencies import read_client_address
from edge.http.middleware import ProxiedRequests
from edge.process import EdgeStartError, serve
from edge.server.connections import ServerSettings
from edge.settings import EdgeSettings
from schemas.settings_loader import SettingsInvalid, load_settings
from tests.attack.test_m6_trail import WRONG
from tests.edge.facades.heygem.conftest import parse_body, root, run_heygem_edge
from tests.support.served_edge import LOOPBACK_PROXY, NO_PROXY, ServedEdge, serve_edge
from tests.support.wait import wait_for

__all__ = ["root"]

PROXIES = TrustedProxies(("10.0.0.0/8", "2001:db8::/32"), requests_per_client=2)
FAULT = 9999


def raw(*headers: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("203.0.113.9", [("X-Forwarded-For", "198.51.100.1")], "203.0.113.9"),  # whoever is no proxy says nothing
        ("203.0.113.9", [("Forwarded", "for=198.51.100.1")], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        ("10.0.0.1", [("X-Forwarded-For", "192.0.2.66, 198.51.100.1, 10.0.0.2")], "198.51.100.1"),
        ("10.0.0.1", [("X-Forwarded-For", "192.0.2.66"), ("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        ("10.0.0.1", [("X-Forwarded-For", "not an address")], "10.0.0.1"),
        ("10.0.0.1", [("X-Forwarded-For", "198.51.100.1, not an address")], "10.0.0.1"),
        ("10.0.0.1", [("X-Forwarded-For", "10.0.0.2")], "10.0.0.1"),
        ("10.0.0.1", [("X-Forwarded-For", "198.51.100.1:4711")], "198.51.100.1"),
        ("10.0.0.1", [("X-Forwarded-For", "[2001:db9::1]:4711")], "2001:db9::1"),
        ("2001:db8::5", [("X-Forwarded-For", "2001:db9::1")], "2001:db9::1"),
        ("::ffff:10.0.0.1", [("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        ("10.0.0.1", [("Forwarded", "for=192.0.2.66, for=198.51.100.1;proto=https, for=10.0.0.2")], "198.51.100.1"),
        ("10.0.0.1", [("Forwarded", 'For="[2001:db9::17]:4711"; by=10.0.0.1')], "2001:db9::17"),
        ("10.0.0.1", [("Forwarded", "for=unknown, for=_hidden")], "10.0.0.1"),
        # A proxy that writes one of the two may pass on the other as the client sent it.
        ("10.0.0.1", [("Forwarded", "for=192.0.2.66"), ("X-Forwarded-For", "198.51.100.1")], "198.51.100.1"),
        ("", [("X-Forwarded-For", "198.51.100.1")], ""),  # a Unix socket
    ],
)
def test_the_client_is_the_last_hop_that_is_no_proxy(peer: str, headers: list[tuple[str, str]], client: str):
    assert PROXIES.find_client(peer, read_hops(raw(*headers))).address == client


@pytest.mark.parametrize(
    ("headers", "scheme"),
    [
        ([("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-Proto", "https")], "https"),
        ([("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-Proto", "http, https")], "https"),
        ([("X-Forwarded-Proto", "https")], "https"),
        ([("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-Proto", "javascript")], ""),
        ([("Forwarded", "for=192.0.2.66;proto=http, for=198.51.100.1;proto=https")], "https"),
        ([("X-Forwarded-For", "198.51.100.1")], ""),
    ],
)
def test_the_scheme_is_the_one_that_the_proxy_was_asked_with(headers: list[tuple[str, str]], scheme: str):
    assert PROXIES.find_client("10.0.0.1", read_hops(raw(*headers))).scheme == scheme
    assert PROXIES.find_client("203.0.113.9", read_hops(raw(*headers))) == ForwardedClient("203.0.113.9", "")


@pytest.mark.parametrize(
    "name", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "Via", "CF-Ray", "True-Client-IP"]
)
def test_each_header_of_a_proxy_shows_it(name: str):
    assert shows_proxy(raw(("Host", "a"), (name, "b")))
    assert not shows_proxy(raw(("Host", "a"), ("X-Forward", "b")))


SPOOFED = {"X-Forwarded-For": "198.51.100.7", "Forwarded": "for=198.51.100.7", "X-Real-IP": "198.51.100.7"}


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncIterator[ServedEdge]:
    """Serve an edge that trusts no proxy, as by default."""
    async with serve_edge(tmp_path, proxies=NO_PROXY) as edge:
        yield edge


async def test_headers_of_a_peer_that_is_not_trusted_change_nothing(bare: ServedEdge):
    with capture_logs() as logs:
        await bare.anyone.get("/v1/jobs", headers=SPOOFED | {"X-API-Key": WRONG})
        await bare.admin.post("/v1/keys", json={"owner": "carl"}, headers=SPOOFED)
    (failed,) = (line for line in logs if line["event"] == "authentication_failed")
    (event,) = (await bare.admin.get("/v1/audit")).json()["events"]
    assert (failed["client"], event["client"]) == ("127.0.0.1", "127.0.0.1")
    (hint,) = (line for line in logs if line["event"] == "proxy_not_trusted")
    assert "server.trusted_proxies" in hint["fix"]


async def test_a_trusted_proxy_names_the_client_in_the_trail_and_the_scheme_of_cookies(tmp_path: Path):
    async with serve_edge(tmp_path, proxies=LOOPBACK_PROXY) as edge:
        headers = {"Forwarded": 'for="[2001:db8::9]:99";proto=https'}
        await edge.admin.post("/v1/keys", json={"owner": "carl"}, headers=headers)
        (event,) = (await edge.admin.get("/v1/audit")).json()["events"]
        signed_in = await edge.anyone.post("/v1/session", json={"key": edge.texts["ann"]}, headers=headers)
        plain = await edge.anyone.post("/v1/session", json={"key": edge.texts["ann"]})
    assert event["client"] == "2001:db8::9"
    assert "secure" in signed_in.headers["set-cookie"].lower()
    assert "secure" not in plain.headers["set-cookie"].lower()


@pytest.mark.parametrize("headers", [{}, {"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}])
async def test_the_port_without_keys_is_closed_to_a_trusted_proxy(tmp_path: Path, root: Path, headers: dict[str, str]):
    async with run_heygem_edge(tmp_path / "edge", root, LOOPBACK_PROXY) as heygem:
        assert parse_body(await heygem.local.get("/easy/query?code=mine", headers=headers))["code"] == FAULT


@pytest.mark.parametrize("headers", [{"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}])
async def test_and_to_one_that_nobody_declared(tmp_path: Path, root: Path, headers: dict[str, str]):
    async with run_heygem_edge(tmp_path / "edge", root, NO_PROXY) as heygem:
        assert parse_body(await heygem.local.get("/easy/query?code=mine", headers=headers))["code"] == FAULT
        assert parse_body(await heygem.local.get("/easy/query?code=mine"))["code"] != FAULT


async def test_an_edge_does_not_start_with_a_port_without_keys_beside_a_trusted_loopback(tmp_path: Path):
    text = '[server]\ntrusted_proxies = ["127.0.0.0/8"]\n[heygem]\nenabled = true\nkeyless_port = 8383\n'
    settings = load_settings(EdgeSettings, text, {"LAMPLIGHTER_DATA": str(tmp_path), "LAMPLIGHTER_PORT": "0"})
    with pytest.raises(EdgeStartError, match=r"heygem\.keyless_port .* 127\.0\.0\.2"):
        await serve(settings)


def test_a_network_that_is_none_is_refused_and_the_old_name_still_read():
    with pytest.raises(SettingsInvalid, match=r"10\.0\.0\.300"):
        load_settings(EdgeSettings, '[server]\ntrusted_proxies = ["10.0.0.300"]', {})
    assert load_settings(EdgeSettings, '[server]\nproxies = ["10.0.0.3"]', {}).server.trusted_proxies == ("10.0.0.3",)
    assert ServerSettings().trusted_proxies == ()


async def test_a_request_without_a_peer_address_has_none():
    """Where uvicorn listens on a Unix socket, or the peer has gone, the scope's client is None."""
    clients: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        clients.append(read_client_address(ASGIConnection(scope)))

    scope = {"type": "http", "path": "/", "headers": raw(("X-Forwarded-For", "198.51.100.1")), "client": None}
    await ProxiedRequests(app, PROXIES, ThrottledClientLog())(scope, anyio.sleep_forever, anyio.sleep_forever)
    assert clients == [""]


class HeldApp:
    """An app that holds each request until `go`, and writes down its client."""

    def __init__(self) -> None:
        self.clients: list[str] = []
        self.go = anyio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.clients.append(scope["client"][0])
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})


class Asker:
    """Sends requests through ProxiedRequests and collects the statuses of the answers."""

    def __init__(self, app: HeldApp) -> None:
        self._app = ProxiedRequests(app, PROXIES, ThrottledClientLog())
        self.answers: list[tuple[str, int]] = []

    async def ask(self, client: str, peer: str = "10.0.0.1") -> None:
        headers = raw(("X-Forwarded-For", client)) if client else []
        scope = {"type": "http", "path": "/", "headers": headers, "client": (peer, 1), "scheme": "http"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.answers.append((client, message["status"]))

        await self._app(scope, anyio.sleep_forever, send)


async def test_one_client_behind_a_proxy_has_no_more_open_requests_than_its_share():
    app = HeldApp()
    asker = Asker(app)
    async with anyio.create_task_group() as tasks:
        for client in ("198.51.100.1", "198.51.100.1", "198.51.100.2", "", "", ""):
            tasks.start_soon(asker.ask, client)

        async def all_are_held() -> bool:
            return len(app.clients) == 6

        await wait_for(all_are_held)
        await asker.ask("192.0.2.66, 198.51.100.1")
        assert asker.answers == [("192.0.2.66, 198.51.100.1", 429)]
        tasks.start_soon(partial(asker.ask, "198.51.100.1", peer="203.0.113.9"))  # not a proxy: it is itself
        app.go.set()
    assert len(asker.answers) == 8
    await asker.ask("198.51.100.1")
    assert asker.answers[-1] == ("198.51.100.1", 200), "places are given back"
