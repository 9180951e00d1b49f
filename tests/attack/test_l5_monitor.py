"""L5: neither another user of the machine nor a web page in its browser may read the broker's monitor.

It asks for no password, and `Access-Control-Allow-Origin: *` let every page that guessed the port read connections,
subjects and streams.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import httpx2
import pytest

from bus.interface import BrokerUnreachable
from bus.nats.health import MonitorClients, open_monitor_client
from bus.open import open_edge
from bus.server.process import NatsServer, run_server
from bus.settings import BrokerSettings

# All that nats-server 2.15 serves there.
PATHS = (
    *("", "/", "/varz", "/connz", "/connz?auth=1", "/connz?subs=1", "/routez", "/gatewayz", "/leafz", "/subsz", "/jsz"),
    *("/accountz", "/accstatz", "/healthz", "/healthz?details=true", "/ipqueuesz", "/raftz", "/stacksz", "/expvarz"),
    *("/debug/vars", "/debug/pprof/"),
)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with run_server(NatsServer(tmp_path / "broker")) as started:
        yield started


async def test_without_its_path_the_monitor_tells_nothing(server: NatsServer):
    place = urlsplit(server.monitor_url)
    async with httpx2.AsyncClient(base_url=f"{place.scheme}://{place.netloc}", trust_env=False, timeout=60) as stranger:
        for path in PATHS:
            reply = await stranger.get(path, headers={"Origin": "https://evil.example"})
            assert (reply.status_code, reply.text) == (404, "404 page not found\n"), path
            assert "access-control-allow-origin" not in reply.headers, path
    async with open_monitor_client(server.monitor_url) as ours:
        assert (await ours.get("/varz")).json()["jetstream"]["config"]["sync_interval"]


async def test_the_path_is_another_one_for_each_broker_and_stands_where_nobody_else_reads(tmp_path: Path):
    one, two = (NatsServer(tmp_path / name) for name in ("one", "two"))
    async with run_server(one):
        assert len(urlsplit(one.monitor_url).path) > 32
        assert urlsplit(one.monitor_url).path != urlsplit(two.monitor_url).path
        arguments = await anyio.Path(f"/proc/{one.pid}/cmdline").read_text()  # which every user may read
    path = urlsplit(one.monitor_url).path
    assert path not in arguments
    for file in (tmp_path / "one").iterdir():
        if file.is_file() and path in file.read_text(errors="replace"):
            assert file.stat().st_mode & 0o077 == 0, file
    assert (tmp_path / "one").stat().st_mode & 0o077 == 0


async def test_an_edge_that_does_not_reach_the_monitor_does_not_tell_its_path(server: NatsServer):
    password = server.passwords["edge"]
    place = urlsplit(server.monitor_url)
    wrong = f"http://{place.netloc}/s3cret"
    async with open_edge(BrokerSettings(server.url, "edge", password, wrong)) as bus:
        with pytest.raises(BrokerUnreachable, match=place.netloc) as told:
            await bus.health.status()
    assert "s3cret" not in str(told.value)
    async with open_monitor_client("http://127.0.0.1:9/s3cret") as client:
        with pytest.raises(BrokerUnreachable) as told:
            await MonitorClients((client,), lambda: 0.0).fetch_all()
    assert "s3cret" not in str(told.value)
