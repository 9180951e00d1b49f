"""What a user reads about a job that makes no progress, over real processes: why it waits, and for what."""

import json
import socket
from pathlib import Path

from lamplighter import AsyncClient
from schemas.job import Status
from schemas.job_view import JobView
from tests.e2e.conftest import process_only
from tests.support.installation import RunningInstallation
from tests.support.wait import wait_for

HEYGEM = Path(__file__).resolve().parents[2] / "images" / "heygem"


async def reason(client: AsyncClient, job_id: str, wanted: str) -> JobView:
    async def waits() -> JobView | None:
        job = await client.job(job_id)
        return job if job.reason == wanted else None

    job: JobView = await wait_for(waits)
    return job


def given(folder: Path, name: str) -> Path:
    """Write a file to submit."""
    path = folder / f"{name}.bin"
    path.write_text(name)
    return path


@process_only
async def test_why_it_waits_is_the_truth_from_no_host_to_next_in_line(running: RunningInstallation):
    job = await running.ann.submit("echo", text="patience", seconds=2)
    assert (job.reason, job.queue_position, job.eta) == ("no_host", 0, None)
    runner = await running.installation.start_runner()
    ended = await running.ann.wait(job.id)
    assert (ended.engine, ended.isolation) == ("process", "process")
    await runner.stop()
    off = await reason(running.ann, (await running.ann.submit("echo", text="off")).id, "host_off_unswitched")
    assert off.message == "gpu-1 is off, and the edge cannot power it on: start its runner"
    await running.installation.start_runner()
    await running.ann.wait(off.id)
    long = await running.ann.submit("echo", text="long", seconds=60)

    async def runs() -> bool:
        return (await running.ann.job(long.id)).status is Status.RUNNING

    await wait_for(runs)
    following = await reason(running.ann, (await running.ann.submit("echo", text="next")).id, "behind")
    assert (following.queue_position, following.message) == (0, "Next in line")
    await running.ann.cancel(long.id)
    await running.ann.wait(following.id)


@process_only
async def test_a_job_that_needs_a_gpu_says_that_no_host_has_one(running: RunningInstallation, tmp_path: Path):
    await running.installation.start_runner(endpoints=[HEYGEM])

    async def offered() -> bool:
        return bool((await running.admin._http.get("/v1/endpoints/heygem")).json().get("hosts"))

    await wait_for(offered)
    job = await running.ann.submit("heygem", video=given(tmp_path, "video"), audio=given(tmp_path, "audio"))
    seen = await reason(running.ann, job.id, "gpu_none")
    assert seen.message == "No host has the GPU that it needs"


@process_only
async def test_a_job_whose_input_cannot_be_fetched_says_so_and_goes_on_by_itself(
    running: RunningInstallation, tmp_path: Path
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
    runner = await running.installation.start_runner(LAMPLIGHTER_EDGE__URL=nowhere)
    job = await running.ann.submit("echo", file=given(tmp_path, "file"))

    async def message_shown() -> JobView | None:
        seen = await running.ann.job(job.id)
        return seen if seen.progress and (seen.progress.stage or "").startswith("fetching input: ") else None

    seen: JobView = await wait_for(message_shown)
    assert seen.progress is not None
    assert "the edge is not reachable" in (seen.progress.stage or "")

    async def shown() -> bool:
        hosts = json.loads((await running.admin._http.get("/v1/hosts")).text)["hosts"]
        return any(why.startswith("fetch input: the edge is not reachable") for host in hosts for why in host["waits"])

    await wait_for(shown)
    await runner.kill()
    await running.installation.start_runner()
    assert (await running.ann.wait(job.id)).status is Status.SUCCEEDED
