"""The reverse proxies of docs/proxy.md in front of a real edge: everything that clients do works through them.

The upload has 256 MiB; LAMPLIGHTER_PROXY_UPLOAD_MB=2048 makes it larger.
"""

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import httpx2
import pytest
import websockets

from lamplighter import AsyncClient
from schemas.certificates import authority_context
from tests.support.gateway_client import GatewayClient
from tests.support.installation import Installation, RunningInstallation, run_installation
from tests.support.reserved_ports import reserve_ports
from tests.support.reverse_proxies import Caddy, Nginx, ReverseProxy, running_proxy

pytestmark = [pytest.mark.timeout(300), pytest.mark.long(40)]
UPLOAD_BYTES = int(os.environ.get("LAMPLIGHTER_PROXY_UPLOAD_MB", "256")) * 1024**2
IN_FLIGHT_LIMIT_BYTES = 96 * 1024**2  # what may be on its way in buffers when the proxy is killed
CLIENT = "127.0.0.2"  # an address of loopback that is not the proxy's
SPOOFED = {"X-Forwarded-For": "192.0.2.66", "Forwarded": "for=192.0.2.66"}


@pytest.fixture(scope="module")
async def behind(tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[RunningInstallation]:
    """Run an edge that trusts the proxies of 127.0.0.1, and a runner."""
    installation = Installation(tmp_path_factory.mktemp("behind"), "process")
    async with run_installation(installation, LAMPLIGHTER_SERVER__TRUSTED_PROXIES='["127.0.0.1"]') as running:
        await installation.start_runner()
        yield running
        print(installation.tail())  # noqa: T201 - shown by pytest when a test failed


@pytest.fixture(scope="module", params=[Caddy, Nginx], ids=["caddy", "nginx"])
def proxy(
    behind: RunningInstallation, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ReverseProxy]:
    folder = tmp_path_factory.mktemp("proxy") / "proxy"
    edge = "{}:{}".format(*behind.installation.edge_address)
    with reserve_ports(1) as (port,), running_proxy(request.param, folder, port, edge) as made:
        yield made


@pytest.fixture
async def ann(behind: RunningInstallation, proxy: ReverseProxy, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    key = behind.installation.keys["ann"]
    async with AsyncClient(proxy.url, key, ca=proxy.ca, cache=tmp_path / "cache.json") as client:
        yield client


async def test_http_2_is_spoken(proxy: ReverseProxy):
    argv = ["curl", "--silent", "--http2", "--cacert", proxy.ca, "--output", os.devnull]
    form = ["--write-out", "%{http_version} %{http_code}", f"{proxy.url}/livez"]
    said = await anyio.run_process([*argv, *form])
    assert said.stdout.decode() == "2 200"


async def test_events_arrive_one_by_one_while_the_job_runs(ann: AsyncClient):
    """The job hangs until it is cancelled: buffered events would not come before that."""
    job = await ann.submit("echo", behave="hang")
    seen: list[str] = []
    async for event in ann.follow(job.id):
        seen.append(event.kind)
        if event.kind == "log" and "job" not in seen:
            assert (await ann.job(job.id)).status == "running"
            seen.append("job")
            await ann.cancel(job.id)
    assert "job" in seen
    assert (await ann.job(job.id)).status == "cancelled"


async def test_a_socket_of_the_gateway_stays_open(ann: AsyncClient, behind: RunningInstallation, proxy: ReverseProxy):
    key = behind.installation.keys["ann"]
    where, headers = proxy.url.replace("https", "wss") + "/ws", {"Authorization": f"Bearer {key}"}
    async with websockets.connect(where, additional_headers=headers, ssl=authority_context(proxy.ca)) as socket:
        gateway = GatewayClient(socket)
        assert (await gateway.ask("ping"))["type"] == "pong"
        job = await ann.submit("echo", text="pushed", wait=True)
        pushed = await gateway.wait_for(lambda message: message.get("result", {}).get("id") == job.id)
        assert pushed


async def test_a_part_of_a_file_is_downloaded(ann: AsyncClient, tmp_path: Path):
    file = tmp_path / "file.bin"
    file.write_bytes(os.urandom(100_000))
    asset = await ann.upload(file)
    part = await ann._http.get(asset.url, headers={"Range": "bytes=1000-1999"})
    assert (part.status_code, part.headers["content-range"]) == (206, "bytes 1000-1999/100000")
    assert part.content == file.read_bytes()[1000:2000]


async def test_the_trail_has_the_address_of_the_client_whatever_it_claims(
    behind: RunningInstallation, proxy: ReverseProxy
):
    admin = {"Authorization": f"Bearer {behind.installation.keys['admin']}"}
    transport = httpx2.AsyncHTTPTransport(verify=authority_context(proxy.ca), local_address=CLIENT)
    async with httpx2.AsyncClient(base_url=proxy.url, transport=transport, headers=admin, timeout=60) as client:
        made = await client.post("/v1/keys", json={"owner": "carl"}, headers=SPOOFED)
        assert made.status_code == 201
        trail = (await client.get("/v1/audit")).json()["events"]
    (event,) = (event for event in trail if event["subject"] == made.json()["id"])
    assert event["client"] == CLIENT


async def test_a_large_upload_goes_on_after_the_proxy_was_killed(
    ann: AsyncClient, behind: RunningInstallation, proxy: ReverseProxy, tmp_path: Path
):
    file = tmp_path / "large.bin"
    file.write_bytes(os.urandom(1024))
    os.truncate(file, UPLOAD_BYTES)
    sent = 0
    killed = anyio.Event()

    def advance(size: int) -> None:
        nonlocal sent
        sent += max(size, 0)
        if sent > UPLOAD_BYTES // 4 and not killed.is_set():
            proxy.kill()
            killed.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ann.upload, file, advance)
        await killed.wait()
        await anyio.to_thread.run_sync(proxy.start)
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    kept = await behind.ann._http.head(f"/v1/assets/{digest}")
    assert (kept.status_code, kept.headers["content-length"]) == (200, str(UPLOAD_BYTES))
    assert sent < UPLOAD_BYTES + IN_FLIGHT_LIMIT_BYTES, "it was resumed, not begun again"
