"""The HeyGem facade over the fake bus, served by a real uvicorn, with a folder that it shares with clients."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from msgspec import Struct

from edge.app import create_app
from edge.core.clients import TrustedProxies
from edge.facades.gateway.gateway import run_gateway
from edge.facades.heygem.facade import HeygemFacade, HeygemSettings, ResultExporter
from edge.facades.heygem.protocol import EASY_PREFIX, KeylessPort
from edge.owners.api_keys import ApiKeyStore
from schemas import events as e
from schemas.credentials import CLIENT_SCOPES
from schemas.endpoint import Endpoint, parse_endpoint
from schemas.host import HostCapabilities
from schemas.job import Job, JobKey, Output, OutputFile
from tests.support.edge_services import FakeBusServicesRig, FixedEntropy, fake_bus_services
from tests.support.http_server import open_client, serve_app
from tests.support.served_edge import NO_PROXY, lend_routes, make_services

HEYGEM = parse_endpoint((Path(__file__).parents[4] / "images/heygem/endpoint.toml").read_text())
OWNER = "easy"
AUDIO, VIDEO = b"speech" * 100, b"a face" * 1000


class HeygemClient(Struct, frozen=True):
    """A client of the facade. `root`: the shared folder. `local`: sends no key. `key`: a key of `ann`."""

    world: FakeBusServicesRig
    placing: ResultExporter
    url: str
    root: Path
    local: httpx2.AsyncClient
    key: str

    async def submit(self, **fields: Any) -> dict[str, Any]:
        """Submit as the vendor's desktop client does (its src/main/service/video.js)."""
        body = {
            "audio_url": "speech.wav",
            "video_url": "face.mp4",
            "code": "code-1",
            "chaofen": 0,
            "watermark_switch": 0,
            "pn": 1,
        }
        return parse_body(await self.local.post("/easy/submit", json=body | fields))

    async def query(self, code: str = "code-1") -> dict[str, Any]:
        return parse_body(await self.local.get("/easy/query", params={"code": code}))

    async def job(self, code: str = "code-1", owner: str = OWNER) -> Job:
        return (await self.world.jobs.read(JobKey(owner, code))).record.job

    async def finish(self, code: str = "code-1", body: bytes = b"the video") -> Job:
        """Finish the job as a runner does: store the result and write the final event."""
        job = await self.world.start(await self.job(code))
        sha256 = await self.world.put(job.owner, body, "result.mp4")
        data = {"width": 1280, "height": 720, "seconds": 9.92, "cost_s": 27.1}
        output = Output((OutputFile("result.mp4", sha256, len(body), "video/mp4"),), data)
        return await self.world.write_event(job.key, e.Succeeded(output))


def parse_body(reply: httpx2.Response) -> dict[str, Any]:
    """Return the body of a response, which must have status 200 and a text type."""
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    told = reply.json()
    assert set(told) == {"code", "data", "msg", "success"}
    assert isinstance(told["data"], dict)
    return dict(told)


@asynccontextmanager
async def run_facade(
    folder: Path,
    settings: HeygemSettings,
    endpoint: Endpoint,
    *,
    prefix: str = EASY_PREFIX,
    mount: str = EASY_PREFIX,
    proxies: TrustedProxies = NO_PROXY,
) -> AsyncIterator[HeygemClient]:
    """Serve the facade with one endpoint that a host offers. `prefix`, `mount`: what the keyless port serves."""
    async with fake_bus_services(folder) as made:
        await made.bus.capabilities.put(
            "gpu-1", HostCapabilities(host="gpu-1", incarnation="i1", at=made.time(), endpoints=(endpoint,))
        )
        await made.endpoints.refresh()
        keys = ApiKeyStore(made.bus.api_keys, made.time, FixedEntropy(), made.time.seconds)
        key = (await keys.create("ann", CLIENT_SCOPES)).text
        placing = ResultExporter(settings.data_root, folder / "placing", made.bus.job_store, made.store, made.index)
        heygem = HeygemFacade(settings, placing)
        services = make_services(made, keys, proxies=proxies)
        async with (
            lend_routes(heygem=True) as routes,
            run_gateway(services, heygem_endpoint="heygem") as gateway,
            serve_app(app := create_app(routes, services, gateway, heygem=heygem)) as url,
            serve_app(KeylessPort(app, prefix, mount)) as keyless,
            open_client(keyless, timeout=20) as local,
            anyio.create_task_group() as tasks,  # the innermost: what serves is stopped, not cancelled
        ):
            tasks.start_soon(placing.run)
            yield HeygemClient(made, placing, url, settings.data_root or folder, local, key)
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def run_heygem_edge(
    folder: Path, root: Path | None, proxies: TrustedProxies = NO_PROXY
) -> AsyncIterator[HeygemClient]:
    async with run_facade(folder, HeygemSettings(enabled=True, data_root=root), HEYGEM, proxies=proxies) as made:
        yield made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    (folder / "temp").mkdir(parents=True)
    (folder / "temp" / "speech.wav").write_bytes(AUDIO)
    (folder / "temp" / "face.mp4").write_bytes(VIDEO)
    return folder


@pytest.fixture
async def heygem(tmp_path: Path, root: Path) -> AsyncIterator[HeygemClient]:
    async with run_heygem_edge(tmp_path / "edge", root) as made:
        yield made
