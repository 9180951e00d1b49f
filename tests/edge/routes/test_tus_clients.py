"""Foreign clients: tuspy, and tus-js-client under Node, as published. Each runs in a process of its own."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from anyio import to_thread

from tests.support.node_packages import MODULES_DIR, require_node_packages
from tests.support.runpod_client import ensure_python
from tests.support.served_edge import ServedEdge
from tests.support.tcp_proxy import TcpProxy, run_proxy
from tests.support.wait import wait_for

NODE_PROGRAM = Path(__file__).with_name("tus_upload.cjs")
PYTHON_PROGRAM = Path(__file__).with_name("tus_upload.py")
BODY = bytes(range(251)) * 3000  # 753 kB
SHA = hashlib.sha256(BODY).hexdigest()
PIECE = 100_000
PATH = os.environ["PATH"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "face.mp4"
    path.write_bytes(BODY)
    return path


@pytest.fixture(scope="session")
def tus_js() -> None:
    require_node_packages()


def through(edge: ServedEdge, proxy: TcpProxy) -> str:
    assert urlsplit(edge.url).hostname == "127.0.0.1"
    return f"http://127.0.0.1:{proxy.port}/v1/uploads"


async def kept(edge: ServedEdge) -> tuple[str, bytes]:
    reply = await edge.ann.get(f"/v1/assets/{SHA}")
    (listed,) = (await edge.ann.get("/v1/assets")).json()["assets"]
    return listed["name"], reply.content


@pytest.fixture(scope="session")
def tuspy() -> Path:
    """Return the Python that has tuspy."""
    return ensure_python()


async def upload(tuspy: Path, endpoint: str, file: Path, key: str, **options: Any) -> dict[str, Any]:
    """Return the output of the Python program, which must exit with 0."""
    wanted = {"endpoint": endpoint, "file": str(file), "key": key, "chunk_size": PIECE, **options}
    argv = [tuspy, "-I", "-W", "ignore", str(PYTHON_PROGRAM), json.dumps(wanted)]
    with anyio.fail_after(90):
        done = await anyio.run_process(argv, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "with checksums"])
async def test_tuspy_uploads(edge: ServedEdge, file: Path, checked: bool, tuspy: Path):
    told = {"filename": "face.mp4", "sha256": SHA}
    answer = await upload(tuspy, f"{edge.url}/v1/uploads", file, edge.texts["ann"], metadata=told, checked=checked)
    assert answer["asset"] == f"sha256:{SHA}"
    assert await kept(edge) == ("face.mp4", BODY)


async def test_tuspy_goes_on_where_it_was_cut(edge: ServedEdge, file: Path, tuspy: Path):
    port = urlsplit(edge.url).port
    assert port is not None
    async with run_proxy("127.0.0.1", port) as proxy:
        endpoint, key, told = through(edge, proxy), edge.texts["ann"], {"filename": "face.mp4"}
        begun = await upload(tuspy, endpoint, file, key, metadata=told, stop=True)
        proxy.cut()
        proxy.heal()  # every connection there was is gone
        resumed = await upload(tuspy, endpoint, file, key, url=begun["url"])
    assert (begun["offset"], resumed["offset"]) == (0, PIECE)
    assert await kept(edge) == ("face.mp4", BODY)


async def test_tuspy_is_told_of_a_wrong_digest(edge: ServedEdge, file: Path, tuspy: Path):
    answer = await upload(tuspy, f"{edge.url}/v1/uploads", file, edge.texts["ann"], metadata={"sha256": "0" * 64})
    assert answer["status"] == 422
    assert "digest_mismatch" in answer["body"]


def node(url: str, file: Path, key: str, *how: str) -> dict[str, str]:
    """Return the output of the Node program, which must exit with 0."""
    argv = ["node", str(NODE_PROGRAM), url, str(file), key, str(PIECE), *how]
    environ = {"NODE_PATH": str(MODULES_DIR), "PATH": PATH}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


async def test_tus_js_client_uploads(edge: ServedEdge, file: Path, tus_js: None):
    answer = await to_thread.run_sync(node, f"{edge.url}/v1/uploads", file, edge.texts["ann"])
    assert answer["asset"] == f"sha256:{SHA}"
    assert await kept(edge) == ("face.mp4", BODY)


async def test_tus_js_client_goes_on_in_another_process(edge: ServedEdge, file: Path, tus_js: None):
    url, key = f"{edge.url}/v1/uploads", edge.texts["ann"]
    stopped = await to_thread.run_sync(node, url, file, key, "stop")
    (held,) = edge.world.uploads._uploads.values()
    assert 0 < held.upload.offset < len(BODY)
    answer = await to_thread.run_sync(node, url, file, key, stopped["url"])
    assert answer == {"asset": f"sha256:{SHA}", "url": stopped["url"]}
    assert await kept(edge) == ("face.mp4", BODY)


async def test_tus_js_client_goes_on_by_itself_over_a_cut(edge: ServedEdge, file: Path, tus_js: None):
    port = urlsplit(edge.url).port
    assert port is not None
    async with run_proxy("127.0.0.1", port) as proxy, anyio.create_task_group() as tasks:
        answers: list[dict[str, str]] = []

        async def send() -> None:
            answers.append(await to_thread.run_sync(node, through(edge, proxy), file, edge.texts["ann"]))

        async def first_piece() -> bool:
            return any(held.upload.offset for held in edge.world.uploads._uploads.values())

        tasks.start_soon(send)
        await wait_for(first_piece, timeout_s=60)
        proxy.cut()
        proxy.heal()
    assert answers[0]["asset"] == f"sha256:{SHA}"
