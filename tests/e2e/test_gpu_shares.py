"""Jobs that share a GPU, from `endpoint.toml` to the API: real processes on the stub library."""

from pathlib import Path

import pytest

from lamplighter import api
from tests.e2e.conftest import process_only
from tests.e2e.test_meter import start_gpu_runner
from tests.runner.gpu.stub_nvml import StubNvml
from tests.support.installation import IMAGES, RunningInstallation
from tests.support.wait import wait_for

pytestmark = [process_only, pytest.mark.long(12)]

SECONDS = 600.0  # of a job: until it is cancelled


@pytest.fixture
def endpoints(tmp_path: Path) -> Path:
    """Write an endpoint that takes 0.4 of a GPU, and one that takes all of it."""
    text = (
        (IMAGES / "echo" / "endpoint.toml")
        .read_text()
        .replace("warm = true", "")
        .replace("base_s = 60", "base_s = 900")
    )
    for name, share in (("gpu-echo", "share = 0.4\n"), ("whole", "")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for file in (IMAGES / "echo").glob("*.py"):
            (tmp_path / "images" / name / file.name).write_bytes(file.read_bytes())
        made = text.replace('name = "echo"', f'name = "{name}"')
        made = made.replace("[resources]", f"[resources]\ngpus = 1\n{share}vram_mb = 1000")
        (tmp_path / "images" / name / "endpoint.toml").write_text(made)
    return tmp_path / "images"


async def test_two_jobs_share_a_gpu_and_others_say_why_they_wait(
    running: RunningInstallation, endpoints: Path, tmp_path: Path
) -> None:
    nvml = StubNvml(tmp_path)
    await start_gpu_runner(running, endpoints, nvml, LAMPLIGHTER_SLOTS="4")
    jobs = [await running.ann.submit("gpu-echo", seconds=SECONDS) for _ in range(2)]

    async def are_both_running() -> bool:
        return all([(await running.ann.job(job.id)).status == "running" for job in jobs])

    await wait_for(are_both_running)
    waiting = [await running.ann.submit("gpu-echo"), await running.ann.submit("whole")]

    async def both_say_why() -> bool:
        return {(await running.ann.job(job.id)).reason for job in waiting} == {"gpu_share_short"}

    await wait_for(both_say_why)
    (host,) = [one for one in (await running.ann.call(api.get_json("/v1/hosts")))["hosts"] if one["id"] == "gpu-1"]
    assert host["gpus"][0]["share_free"] == pytest.approx(0.2)
    for job in jobs:
        await running.ann.cancel(job.id)
    assert [(await running.ann.wait(job.id)).status for job in waiting] == ["succeeded", "succeeded"]
