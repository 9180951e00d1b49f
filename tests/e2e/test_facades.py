"""Programs written for other servers, against real processes: HeyGem's desktop client, RunPod's client, docs pages."""

import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from anyio import to_thread
from msgspec import Struct

from tests.e2e.conftest import process_only
from tests.e2e.test_up import up
from tests.support import runpod_client
from tests.support.doc_pages import read_fences, run_block
from tests.support.installation import ROOT, RunningInstallation, run_new_installation
from tests.support.wait import wait_for, wait_for_sync

PAGE = ROOT / "docs" / "facades.md"
FLOW = ROOT / "docs" / "examples" / "ws_flow.py"
NAMES = ("face.mp4", "speech.wav")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


class FacadeInstallation(Struct, frozen=True):
    """An installation with the HeyGem facade on `root`. `local` sends no key, to the port that needs none."""

    running: RunningInstallation
    root: Path
    local: httpx2.AsyncClient

    async def easy(self, **fields: Any) -> dict[str, Any]:
        body = {"audio_url": "speech.wav", "video_url": "face.mp4", "chaofen": 0, "watermark_switch": 0, "pn": 1}
        return dict((await self.local.post("/easy/submit", json=body | fields)).json())

    async def query(self, code: str) -> dict[str, Any]:
        return dict((await self.local.get("/easy/query", params={"code": code})).json()["data"])

    async def done(self, code: str) -> dict[str, Any]:
        async def ended() -> dict[str, Any] | None:
            told = await self.query(code)
            return told if told["status"] != 1 else None

        return dict(await wait_for(ended, timeout_s=60))


def facade_settings(root: Path, keyless: int = 0) -> dict[str, str]:
    """Return the settings that enable the facades. `keyless`: the port that needs no key."""
    return {
        "LAMPLIGHTER_HEYGEM__KEYLESS_PORT": str(keyless),
        "LAMPLIGHTER_HEYGEM__ENABLED": "1",
        "LAMPLIGHTER_HEYGEM__ENDPOINT": "dub",
        "LAMPLIGHTER_HEYGEM__DATA_ROOT": str(root),
    }


@pytest.fixture(scope="module")
async def facade_installation(
    tmp_path_factory: pytest.TempPathFactory, anyio_backend: object, engine: str, engine_url: str | None
) -> AsyncIterator[FacadeInstallation]:
    root = tmp_path_factory.mktemp("shared")
    (root / "temp").mkdir()
    (root / "temp" / "speech.wav").write_bytes(b"speech")
    (root / "temp" / "face.mp4").write_bytes(b"face ")
    keyless = free_port()
    async with (
        run_new_installation(
            tmp_path_factory.mktemp("facades"), engine, engine_url, **facade_settings(root, keyless)
        ) as running,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{keyless}", timeout=20) as local,
    ):
        await running.installation.start_runner(LAMPLIGHTER_SLOTS="4")
        yield FacadeInstallation(running, root, local)


@pytest.fixture
def facade(facade_installation: FacadeInstallation) -> Any:
    yield facade_installation
    print(facade_installation.running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


@process_only
async def test_the_desktop_sequence_ends_with_the_file_on_disk(facade: FacadeInstallation):
    assert (await facade.easy(code="one"))["msg"] == 10000
    done = await facade.done("one")
    assert (done["status"], done["progress"], done["result"], done["video_duration"]) == (2, 100, "/one-r.mp4", 1500)
    assert (facade.root / "temp" / "one-r.mp4").read_bytes() == b"face speech"
    assert (await facade.easy(code="one"))["code"] == 10000
    assert (await facade.easy(code="one", video_url="speech.wav"))["code"] == 10000
    assert (await facade.done("one"))["status"] == 2
    assert (facade.root / "temp" / "one-r.mp4").read_bytes() == b"speechspeech"


@process_only
async def test_a_result_that_came_while_the_edge_was_away_is_placed_by_the_next_edge(facade: FacadeInstallation):
    installation = facade.running.installation

    async def idle() -> bool:  # the rejected submit of the previous test is read once more
        return not [note async for note in anyio.Path(installation.folder / "edge" / "placing").iterdir()]

    await wait_for(idle, timeout_s=60)
    (facade.root / "temp").rename(facade.root / "elsewhere")  # the disk is unmounted, then the edge is killed
    assert (await facade.easy(code="two", audio_url="../elsewhere/speech.wav", video_url="../elsewhere/face.mp4"))[
        "code"
    ] == 10000
    (facade.root / "temp").write_text("in the way")

    async def ran() -> bool:
        job = await facade.running.admin._http.get("/v1/jobs/two?owner=easy")
        return bool(job.json()["status"] == "succeeded")

    await wait_for(ran, timeout_s=60)
    await installation.edge.kill()
    (facade.root / "temp").unlink()
    (facade.root / "elsewhere").rename(facade.root / "temp")
    await installation.start_edge(**facade_settings(facade.root, facade.local.base_url.port or 0))

    async def there() -> bool:
        return await anyio.Path(facade.root / "temp" / "two-r.mp4").exists()

    await wait_for(there, timeout_s=60)
    assert (facade.root / "temp" / "two-r.mp4").read_bytes() == b"face speech"
    assert (await facade.query("two"))["status"] == 2


@process_only
async def test_a_stranger_behind_a_proxy_needs_a_key(facade: FacadeInstallation):
    reply = await facade.local.get("/easy/query?code=one", headers={"X-Forwarded-For": "192.0.2.7"})
    assert (reply.status_code, reply.json()["code"]) == (200, 9999)


@process_only
async def test_runpods_client_runs_streams_and_cancels(facade: FacadeInstallation):
    with runpod_client.run_clients() as clients:
        key = facade.running.ann._http.headers["authorization"].partition(" ")[2]
        endpoint = await to_thread.run_sync(clients.Endpoint, f"{facade.running.installation.url}/v2", key, "echo")
        output = await to_thread.run_sync(endpoint.run_sync, {"input": {"text": "hi", "steps": 1}}, 60)
        assert output == {"text": "hi"}
        handle = await to_thread.run_sync(endpoint.run, {"input": {"text": "streamed", "seconds": 2.5, "steps": 5}})
        pieces = await to_thread.run_sync(lambda: list(handle.stream()))
        fractions = [piece["fraction"] for piece in pieces if "fraction" in piece]
        assert fractions
        assert fractions == sorted(set(fractions))
        assert [piece["text"] for piece in pieces if "text" in piece] == ["streamed"]
        long = await to_thread.run_sync(endpoint.run, {"input": {"seconds": 50, "steps": 500}})

        async def started() -> bool:
            return bool(await to_thread.run_sync(long.status) == "IN_PROGRESS")

        await wait_for(started, timeout_s=60)
        assert (await to_thread.run_sync(long.cancel))["status"] == "CANCELLED"

        async def stopped() -> bool:
            return bool(await to_thread.run_sync(long.status) == "CANCELLED")

        await wait_for(stopped, timeout_s=60)
        health = await to_thread.run_sync(endpoint.health)
        assert health["workers"]["idle"] + health["workers"]["running"] == 1


SHOWN = [(kind, text) for kind, text in read_fences(PAGE) if kind in {"sh", "python"}]


@process_only
@pytest.mark.parametrize("block", SHOWN, ids=lambda block: f"{block[0]}: {block[1].strip()[:30]}")
async def test_what_the_page_shows_runs(facade: FacadeInstallation, block: tuple[str, str], tmp_path: Path):
    key = facade.running.ann._http.headers["authorization"].partition(" ")[2]
    easy = str(facade.local.base_url).rstrip("/")
    done = await to_thread.run_sync(
        partial(run_block, *block, tmp_path, URL=facade.running.installation.url, KEY=key, EASY=easy)
    )
    assert done.returncode == 0, done.stderr
    assert "9999" not in done.stdout
    assert "problem" not in done.stdout


@process_only
async def test_what_came_by_the_gateway_is_the_same_job_here(facade: FacadeInstallation, tmp_path: Path):
    """Submit a code through the gateway, and then the same code through the HeyGem facade."""
    key = facade.running.ann._http.headers["authorization"].partition(" ")[2]
    files = [f"video={facade.root}/temp/face.mp4", f"audio={facade.root}/temp/speech.wav"]
    argv = [sys.executable, str(FLOW), facade.running.installation.url, key, "heygem_submit", "talk", *files]

    def flow() -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=90, cwd=tmp_path)

    done = await to_thread.run_sync(flow)
    assert done.returncode == 0, done.stderr
    facade.local.headers["X-API-Key"] = key
    try:
        hashes = {name: f"sha256:{sha256((facade.root / 'temp' / name).read_bytes()).hexdigest()}" for name in NAMES}
        by_name = {"video_url": "face.mp4", "audio_url": "speech.wav"}
        by_hash = {"video_url": hashes["face.mp4"], "audio_url": hashes["speech.wav"]}
        for ways in (by_name, by_hash):
            assert (await facade.easy(code="talk", **ways))["code"] == 10000
        assert (await facade.query("talk"))["status"] == 2
        assert (facade.root / "temp" / "talk-r.mp4").read_bytes() == b"face speech"
        history = await facade.running.ann._http.get("/v1/jobs/talk/history")
        assert [row["event"]["type"] for row in history.json()].count("submitted") == 1
        assert (await facade.easy(code="talk", pn=0))["code"] == 10000
        assert (await facade.done("talk"))["status"] == 2
        history = await facade.running.ann._http.get("/v1/jobs/talk/history")
        assert [row["event"]["type"] for row in history.json()].count("submitted") == 2
    finally:
        del facade.local.headers["X-API-Key"]


def test_up_serves_both_facades(tmp_path: Path):
    with up(tmp_path / "data") as (_, told), httpx2.Client(base_url=told["url"], timeout=60) as local:
        asked = {"code": "__ping__"}
        assert local.get("/easy/query", params=asked | {"key": told["key"]}).json()["code"] == 10004
        assert local.get("/easy/query", params=asked).json()["code"] == 9999, "nobody is let in without a key"

        def has_idle_worker() -> bool:  # the edge may read the host's capabilities after its first heartbeat
            answer = local.get("/v2/echo/health", headers={"Authorization": told["key"]})
            return bool(answer.json()["workers"]["idle"] == 1)

        wait_for_sync(has_idle_worker)


def test_up_opens_a_port_without_keys_where_it_is_told_to_and_says_what_it_opens(tmp_path: Path):
    port = free_port()
    with up(tmp_path / "data", "--easy-port", str(port)) as (process, told):
        base = f"http://127.0.0.1:{port}"
        assert httpx2.get(f"{base}/easy/query?code=__ping__", timeout=60).json()["code"] == 10004
        assert httpx2.get(f"{base}/v1/jobs", timeout=60).status_code == 404
        assert httpx2.get(f"{told['url']}/easy/query?code=__ping__", timeout=60).json()["code"] == 9999
        process.send_signal(signal.SIGTERM)
        _, output = process.communicate(timeout=60)
    assert f"{base}/easy/ needs no key" in output
    assert "do not expose it through a proxy or tunnel" in output
