"""H5: nobody is let into `/easy/…` without a key by default, and never as the owner of the installation's own key.

nginx's bare `proxy_pass` and a TCP tunnel made strangers look like programs of this machine: they read the jobs of
`local`, which is also whose admin key `up` makes.
"""

import httpx2
import pytest

from edge.facades.heygem.facade import HeygemSettings
from edge.settings import EdgeSettings
from lamplighter.cli.supervisor import LOCAL_OWNER as OF_UP
from schemas.settings_loader import load_settings
from tests.edge.facades.heygem.conftest import HeygemClient, heygem, parse_body, root

__all__ = ["heygem", "root"]

BODY = {"audio_url": "speech.wav", "video_url": "face.mp4", "code": "mine"}
FAULT = 9999


def test_no_port_without_keys_is_there_unless_asked_for():
    assert load_settings(EdgeSettings, "[heygem]\nenabled = true", {}).heygem.keyless_port == 0
    assert HeygemSettings().owner != OF_UP


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "localhost:8000", "[::1]:8000", "edge.example.com"])
async def test_what_a_bare_proxy_or_a_tunnel_sends_to_the_edge_needs_a_key(heygem: HeygemClient, host: str):
    port = str(httpx2.URL(heygem.url).port)
    async with httpx2.AsyncClient(
        base_url=heygem.url, headers={"Host": host.replace("8000", port)}, timeout=60
    ) as stranger:
        for reply in (
            await stranger.post("/easy/submit", json=BODY),
            await stranger.get("/easy/query?code=mine"),
            await stranger.get("/easy/download/mine-r.mp4"),
        ):
            assert parse_body(reply)["code"] == FAULT
    assert not await heygem.world.bus.job_store.keys()


async def test_the_port_without_keys_shows_nothing_of_other_owners(heygem: HeygemClient):
    async with httpx2.AsyncClient(base_url=heygem.url, headers={"X-API-Key": heygem.key}, timeout=60) as ann:
        assert parse_body(await ann.post("/easy/submit", json=BODY))["code"] == 10000
    assert (await heygem.query("mine"))["code"] == 10004


@pytest.mark.parametrize("path", ["/v1/jobs", "/v2/echo/health", "/livez", "/easy", "/easyx/query", "//easy/query"])
async def test_it_has_nothing_but_easy(heygem: HeygemClient, path: str):
    reply = await heygem.local.get(path, headers={"X-API-Key": heygem.key})
    assert reply.status_code == 404
    assert reply.json()["code"] == "not_found"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost"},  # a tunnel that ends at another port, as with ssh -L
        {"Host": "127.0.0.1:1"},
        {"Via": "1.1 proxy"},
        {"X-Forwarded-Host": "edge.example.com"},
        {"True-Client-IP": "192.0.2.1"},
        {"CF-Ray": "1"},
    ],
)
async def test_a_proxy_or_tunnel_that_shows_is_refused_there(heygem: HeygemClient, headers: dict[str, str]):
    assert parse_body(await heygem.local.get("/easy/query?code=mine", headers=headers))["code"] == FAULT
