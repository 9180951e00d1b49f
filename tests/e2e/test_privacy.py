"""An owner is deleted from a running installation, and every file of it is searched for the owner's data.

Broker, edge and host keep their files in one folder: streams and buckets, the index, assets, uploads, caches, logs.
Another owner's data lies in between, so that no block or page is freed as a whole. The edge is killed in the middle.
"""

import os
import signal
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lamplighter import AsyncClient
from schemas.job_view import JobView
from tests.support.byte_search import find_marks
from tests.support.installation import ENDPOINTS, HOST, RunningInstallation, run_new_installation, wait_until_ready
from tests.support.job_checks import LONG_TIMEOUTS, wait_until_running
from tests.support.wait import wait_for
from tests.support.webhook_receiver import run_receiver, statuses_in_order

QUICK = {"LAMPLIGHTER_OUTBOUND__ALLOW": '["127.0.0.1"]', "LAMPLIGHTER_TRASH_S": "1"}
CONTENT, TEXT, TAG, NAME = "m4rk-content", "m4rk-text", "m4rk-tag", "m4rk-name"
HOOK, PART, PART_NAME, KEY_NAME = "m4rk-hook", "m4rk-part", "m4rk-partname", "m4rk-keyname"
CACHED = "m4rk-cached"
MARKS = (CONTENT, TEXT, TAG, NAME, HOOK, PART, PART_NAME, KEY_NAME, CACHED)
SECRET = "hf_of-an-owner"
ENDPOINT = """
name = "keeper"
image = "none"
secrets = ["HF_TOKEN"]
[[caches]]
name = "kernels"
path = "/kernels"
max_mb = 8
[process]
command = ["python3", "main.py"]
"""
PROGRAM = """
import json, os
from pathlib import Path
folder = Path(os.environ["LAMPLIGHTER_JOB"])
text = json.loads((folder / "job.json").read_text())["input"]["text"]
(Path(os.environ["LAMPLIGHTER_CACHE_KERNELS"]) / "compiled").write_text(text)
(folder / "out" / "output.json").write_text("{}")
"""


@pytest.fixture
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an endpoint whose program writes its input into a cache, and gets a secret."""
    folder = tmp_path_factory.mktemp("images") / "keeper"
    folder.mkdir()
    folder.parent.chmod(0o755)
    (folder / "endpoint.toml").write_text(ENDPOINT)
    (folder / "main.py").write_text(PROGRAM)
    return folder


@pytest.fixture
async def home(tmp_path: Path, keeper: Path) -> AsyncIterator[RunningInstallation]:
    async with run_new_installation(tmp_path, "process", None, **QUICK) as running:
        endpoints = (*ENDPOINTS, keeper)
        await running.installation.start_runner(
            endpoints=endpoints, LAMPLIGHTER_SLOTS="2", LAMPLIGHTER_PACE__SWEEP_S="1"
        )

        async def is_offered() -> bool:
            return (await running.ann._http.get("/v1/endpoints/keeper")).is_success

        await wait_for(is_offered, timeout_s=60)
        yield running
        print(running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


async def submit_echo(client: AsyncClient, digest: str, text: str, *, seconds: float = 0, **more: Any) -> JobView:
    tags = {"project": TAG if text.startswith(TEXT) else "none"}
    options = {"options": {"tags": tags, "policy": LONG_TIMEOUTS}}
    return await client.submit("echo", text=text, file=digest, seconds=seconds, options=options, **more)


async def leave_data(client: AsyncClient, folder: Path, url: str, mark: str) -> str:
    """Create what an owner leaves who uploads, sets a secret, runs jobs and receives webhooks.

    Return the digest of a file.
    """
    file = folder / f"{NAME if mark else 'bob'}.bin"
    file.write_bytes((f"{CONTENT if mark else 'bob'} " * 5000).encode())
    asset = await client.upload(file)
    for _ in range(2):  # this updates its row
        named = {"X-Filename": file.name}
        await client._http.put(f"/v1/assets/{asset.sha256}", content=file.read_bytes(), headers=named)
    for number in range(2):
        await submit_echo(client, asset.digest, f"{mark}{number}", webhook=url, wait=True)
    await client.set_secret("HF_TOKEN", SECRET)
    await client.submit("keeper", text=CACHED if mark else "bob of the cache", wait=True)
    part = {"Upload-Length": "1000", "Tus-Resumable": "1.0.0"}
    named = {"Upload-Metadata": f"filename {b64encode(PART_NAME.encode()).decode()}"} if mark else {}
    begun = await client._http.post("/v1/uploads", headers=part | named)
    headers = {"Upload-Offset": "0", "Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
    await client._http.patch(begun.headers["location"], content=(PART if mark else "bobs").encode(), headers=headers)
    return asset.digest


def find_marks_of(running: RunningInstallation) -> dict[str, int]:
    """Return which marks are found in which files, except in the digest cache of ann's own client."""
    places = find_marks(running.installation.folder, MARKS)
    return {place: count for place, count in places.items() if not place.startswith("ann.json")}


async def report(running: RunningInstallation) -> dict[str, Any]:
    return dict((await running.admin._http.get("/v1/owners/ann/deletion")).json())


async def kill_edge_in_the_middle(running: RunningInstallation) -> None:
    """Request the deletion of ann, and kill the edge while it waits for a job whose host does not answer.

    Uploads, keys and other jobs are deleted by then. Files, messages, secrets and caches are not.
    """
    runner = running.installation.runners[HOST]
    os.kill(runner.pid, signal.SIGSTOP)
    (begun := await running.admin._http.delete("/v1/owners/ann")).raise_for_status()
    assert (begun.status_code, begun.json()["state"]) == (202, "running")

    async def waits_for_the_host() -> bool:
        return (await report(running))["waiting_for"] == 1

    await wait_for(waits_for_the_host, timeout_s=60)
    await running.installation.edge.kill()
    os.kill(runner.pid, signal.SIGCONT)
    assert "owner.ann.HF_TOKEN" in await running.bus.secrets.keys()
    left = find_marks_of(running)
    assert all(any(place.endswith(mark) for place in left) for mark in (CONTENT, CACHED)), left


async def finished(running: RunningInstallation) -> dict[str, Any]:
    async def done() -> dict[str, Any] | None:
        try:
            told = await report(running)
        except httpx2.HTTPError:
            return None
        return told if told.get("state") == "done" else None

    return dict(await wait_for(done, timeout_s=90, interval_s=0.5))


@pytest.mark.long(24)
async def test_no_byte_of_a_deleted_owner_is_left_anywhere(
    home: RunningInstallation, tmp_path_factory: pytest.TempPathFactory
):
    running, folder = home, tmp_path_factory.mktemp("mine")
    made = await running.admin._http.post("/v1/keys", json={"owner": "bob"})
    await running.admin._http.post("/v1/keys", json={"owner": "ann", "name": KEY_NAME})
    async with (
        run_receiver(statuses_in_order(*[204] * 3, *[503] * 1000)) as receiver,
        AsyncClient(running.installation.url, made.json()["key"], cache=folder / "bob.json") as bob,
    ):
        url = receiver.url.replace("files.test", "127.0.0.1")
        anns, bobs = (
            await leave_data(running.ann, folder, f"{url}/{HOOK}", TEXT),
            await leave_data(bob, folder, url, ""),
        )
        runs = await submit_echo(running.ann, anns, f"{TEXT}runs", seconds=300)
        await wait_until_running(running, runs.id)
        for number in range(3):
            await submit_echo(bob, bobs, f"waits {number}", seconds=300)
            await submit_echo(running.ann, anns, f"{TEXT}waits {number}", seconds=300)
        before = find_marks_of(running)
        assert {mark for mark in MARKS if any(place.endswith(mark) for place in before)} == set(MARKS)
        await kill_edge_in_the_middle(running)
        await running.installation.start_edge(**QUICK)
        await wait_until_ready(bob)
        told = await finished(running)
    most = {
        "jobs": 7,
        "keys": 2,
        "uploads": 1,
        "secrets": 1,
    }  # what was deleted just before the kill may be missing from the count
    assert all(told["erased"][kind] <= count for kind, count in most.items()), told
    assert told["hosts_pending"] == ["gpu-1"]
    assert (await running.ann._http.get("/v1/jobs")).status_code == 401

    async def clean() -> bool:  # the host removes its copies by itself within sweep_s
        return not find_marks_of(running)

    try:
        await wait_for(clean, timeout_s=20, interval_s=1)
    except TimeoutError:
        raise AssertionError(find_marks_of(running)) from None
    assert find_marks(running.installation.folder, ["bob "])
    assert await running.bus.secrets.keys() == {"owner.bob.HF_TOKEN"}
    (cache,) = (running.installation.folder / HOST / "caches").glob("*.keeper.*")
    assert cache.name.startswith("bob.")
    assert (cache / "data" / "compiled").read_text() == "bob of the cache"
    async with AsyncClient(running.installation.url, made.json()["key"], cache=folder / "bob.json") as bob:
        mine = [job async for job in bob.jobs()]
        assert len(mine) == 6
        ended = next(job for job in mine if job.status == "succeeded" and job.endpoint == "echo")
        assert ended.output is not None
        saved = await bob.download(ended, ended.output.files[0].name, folder / "saved")
        assert saved.read_bytes().startswith(b"bob ")
