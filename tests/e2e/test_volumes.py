"""Weights from a server: the job waits for them, a crash goes on where it was, a second endpoint copies nothing."""

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from schemas.endpoint_parts import VOLUMES_OWNER
from schemas.host import VolumeStatus
from tests.support.asset_server import sha256_of
from tests.support.docker_images import BASE_IMAGE, build_image
from tests.support.installation import IMAGES, RunningInstallation
from tests.support.job_checks import submit_job, wait_for_reason, wait_until_ended
from tests.support.wait import wait_for
from tests.support.weights_server import WeightsServer, serve_weights

UNET = bytes(range(241)) * 20_000  # 4.8 MB
PLAN = b"plan of the model"
IMAGE = "lamplighter-test-weights"
PROGRAM = """
import hashlib
import os

import jobkit


def work(job):
    job.progress(1.0)
    weights = jobkit.volume("weights")
    unet = weights / "model" / "unet.pth"
    try:
        (weights / "new").touch()
    except OSError:
        return {"sha256": hashlib.sha256(unet.read_bytes()).hexdigest(), "inode": unet.stat().st_ino}
    return {"sha256": "the volume can be written to"}


jobkit.run(work)
"""
DOCKERFILE = f'FROM {BASE_IMAGE}\nCOPY --chmod=755 . /app\nWORKDIR /app\nCMD ["python3", "main.py"]\n'


@pytest.fixture
async def server() -> AsyncIterator[WeightsServer]:
    async with serve_weights() as made:
        made.files = {"/unet.pth": UNET}
        yield made


def write_endpoint(folder: Path, server: WeightsServer, *, path: str = "/weights", image: str = IMAGE) -> Path:
    """Write an endpoint whose volume has one file by URL and one asset."""
    folder.parent.chmod(0o755)
    folder.mkdir()
    (folder / "main.py").write_text(PROGRAM)
    (folder / "endpoint.toml").write_text(f"""
name = "{folder.name}"
image = "{image}"
[process]
command = ["python3", "main.py"]
[[volumes]]
name = "weights"
path = "{path}"
[[volumes.files]]
path = "model/unet.pth"
url = "{server.url}/unet.pth"
sha256 = "{sha256_of(UNET)}"
[[volumes.files]]
path = "plan.txt"
sha256 = "{sha256_of(PLAN)}"
""")
    return folder


async def upload_plan(running: RunningInstallation) -> None:
    reply = await running.admin._http.post(f"/v1/assets?owner={VOLUMES_OWNER}&name=plan.txt", content=PLAN)
    assert reply.status_code in {200, 201}, reply.text


def build(docker_url: str | None, folder: Path) -> None:
    """Build the image of the program, if Docker runs it."""
    if docker_url is not None:
        scratch = folder.with_name("image")
        scratch.mkdir()
        shutil.copytree(IMAGES / "jobkit" / "jobkit", scratch / "jobkit")
        (scratch / "main.py").write_text(PROGRAM)
        (scratch / "Dockerfile").write_text(DOCKERFILE.replace("--chmod=755 ", ""))
        for path in (scratch, *scratch.rglob("*")):
            path.chmod(0o755)
        build_image(docker_url, IMAGE, str(scratch))


async def volume_when(running: RunningInstallation, is_wanted: Callable[[VolumeStatus], bool]) -> VolumeStatus:
    async def found() -> VolumeStatus | None:
        row = await running.bus.heartbeats.get("gpu-1")
        volumes = row.value.volumes if row else ()
        return next((volume for volume in volumes if is_wanted(volume)), None)

    return await wait_for(found, timeout_s=60)


async def wait_until_offered(running: RunningInstallation, name: str) -> None:
    async def offered() -> bool:
        return f'"{name}"' in (await running.ann._http.get("/v1/endpoints")).text

    await wait_for(offered, timeout_s=60)


@pytest.mark.long(20)
async def test_a_runner_that_is_killed_in_the_middle_goes_on_and_a_second_endpoint_copies_nothing(
    shared_idle: RunningInstallation, server: WeightsServer, tmp_path: Path, engine_url: str | None
):
    installation = shared_idle.installation
    first = write_endpoint(tmp_path / "lips", server)
    build(engine_url, first)
    await upload_plan(shared_idle)
    server.holds_at = len(UNET) // 2
    runner = await installation.start_runner(endpoints=(first,), LAMPLIGHTER_PACE__IMAGE_S="0.5")
    filling = await volume_when(shared_idle, lambda volume: (volume.done_bytes or 0) > 1_000_000)
    assert (filling.state, filling.total_bytes, filling.names) == ("filling", len(UNET) + len(PLAN), ("weights",))
    await wait_until_offered(shared_idle, "lips")
    job = await submit_job(shared_idle, endpoint="lips")
    await wait_for_reason(shared_idle, job.id, "volume_filling")
    message = (await shared_idle.ann.job(job.id)).message
    assert "downloads the program's files" in message
    assert server.url not in (await shared_idle.ann._http.get("/v1/endpoints")).text
    await runner.kill()
    volumes = installation.folder / "gpu-1" / "volumes"
    assert not list((volumes / "trees").iterdir())
    server.holds_at = None
    server.release.set()
    await runner.start()
    done = await wait_until_ended(shared_idle.ann, job.id)
    assert done.status == "succeeded", done.error
    assert done.output is not None
    assert done.output.data["sha256"] == sha256_of(UNET)
    resumed = [asked for _, asked in server.requests if asked is not None]
    assert resumed, server.requests  # the bytes that had arrived were not requested again

    count = len(server.requests)
    second = write_endpoint(tmp_path / "voice", server, path="/models")
    await runner.stop()
    await installation.start_runner(endpoints=(first, second), LAMPLIGHTER_PACE__IMAGE_S="0.5")
    await wait_until_offered(shared_idle, "voice")
    other = await wait_until_ended(shared_idle.ann, (await submit_job(shared_idle, endpoint="voice")).id)
    assert other.output is not None
    assert other.output.data == done.output.data  # the same inode
    assert len(server.requests) == count
    shared = await volume_when(shared_idle, lambda volume: volume.state == "ready")
    assert (shared.names, shared.endpoints) == (("weights",), ("lips", "voice"))
