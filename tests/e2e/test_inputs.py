"""Inputs that arrive after the job, uploaded or fetched from a URL, while edge and broker are killed."""

import hashlib
from pathlib import Path
from typing import Any

import anyio.abc
import pytest

from schemas.job_view import JobView
from tests.e2e.conftest import process_only
from tests.support.installation import RunningInstallation, wait_until_ready
from tests.support.scripted_servers import http_response, scripted_server, stay_silent
from tests.support.wait import wait_for

pytestmark = process_only

FILM = b"a film" * 1000
DIGEST = hashlib.sha256(FILM).hexdigest()


async def submitted(running: RunningInstallation, given: dict[str, Any], **options: Any) -> JobView:
    return await running.ann.submit("echo", options={"options": options}, **given)


async def status_of(running: RunningInstallation, job: JobView, wanted: str) -> JobView:
    async def there() -> JobView | None:
        now = await running.ann.job(job.id)
        return now if now.status == wanted else None

    found: JobView = await wait_for(there, timeout_s=60)
    return found


async def test_files_follow_the_job_and_it_runs(running: RunningInstallation, tmp_path: Path):
    film = tmp_path / "film.bin"
    film.write_bytes(FILM)
    await running.installation.start_runner()
    job = await running.ann.submit("echo", file=film, await_input=True, wait=True)
    assert (job.status, job.input["file"]) == ("succeeded", f"sha256:{DIGEST}")


async def test_what_waits_for_its_files_waits_on_over_the_death_of_edge_and_broker(
    running: RunningInstallation, tmp_path: Path
):
    job = await submitted(running, {"file": f"sha256:{DIGEST}"}, await_input=True)
    await running.installation.edge.kill()
    await running.installation.server.kill()
    await running.installation.server.start()
    await running.installation.start_edge()
    await wait_until_ready(running.ann)
    assert (await running.ann.job(job.id)).missing == (f"sha256:{DIGEST}",)
    film = tmp_path / "film.bin"
    film.write_bytes(FILM)
    await running.ann.upload(film)
    await status_of(running, job, "queued")


@pytest.mark.long(22)
async def test_a_fetch_that_an_edge_died_of_is_done_by_the_next(running: RunningInstallation):
    plays = [stay_silent, http_response(FILM)]

    async def play(stream: anyio.abc.ByteStream) -> None:
        await plays.pop(0)(stream)

    async with scripted_server(play) as server:
        allow = {"LAMPLIGHTER_OUTBOUND__ALLOW": f'["127.0.0.1:{server.port}"]'}
        await running.installation.edge.stop()
        await running.installation.start_edge(**allow)
        await wait_until_ready(running.ann)
        job = await submitted(running, {"file": f"http://127.0.0.1:{server.port}/film.mp4"})
        assert job.status == "scheduled"

        async def asked() -> bool:
            return bool(server.requests)

        await wait_for(asked)
        await running.installation.edge.kill()
        await running.installation.start_edge(**allow)
        await wait_until_ready(running.ann)
        queued = await status_of(running, job, "queued")
        assert queued.input["file"] == f"sha256:{DIGEST}"
        assert len(server.requests) == 2


async def test_a_url_that_leads_inside_is_refused_at_once_or_fails_the_job(running: RunningInstallation):
    reply = await running.ann._http.post(
        "/v1/jobs", json={"endpoint": "echo", "input": {"file": "http://169.254.169.254/latest/meta-data/"}}
    )
    assert (reply.status_code, reply.json()["code"]) == (422, "url_refused")
    async with scripted_server(http_response(b"secret")) as inside:
        job = await submitted(running, {"file": f"http://localhost:{inside.port}/"})
        failed = await status_of(running, job, "failed")
        assert failed.error is not None
        assert failed.error.code == "input_fetch_failed"
        assert inside.requests == []
