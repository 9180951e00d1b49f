"""The way out of jobs, and the runtime that they ask for, through a whole installation."""

from pathlib import Path

import pytest

from schemas.job import Status
from schemas.job_view import JobView
from tests.support.docker_images import build_image
from tests.support.installation import RunningInstallation
from tests.support.wait import wait_for

pytestmark = pytest.mark.long(8)
OUTBOUND = Path(__file__).parent / "endpoints" / "outbound"
REFUSED = "lamplighter: 169.254.169.254 is a link-local address (169.254.169.254)\n"


async def test_a_job_meets_the_proxy_and_one_without_its_runtime_says_what_the_host_lacks(
    running: RunningInstallation, engine: str, request: pytest.FixtureRequest
) -> None:
    if engine == "docker":
        request.getfixturevalue("echo_image")
        build_image(request.getfixturevalue("docker_url"), "lamplighter-test-fetches", str(OUTBOUND / "fetches"))
    await running.installation.start_runner(endpoints=[OUTBOUND])

    async def is_offered() -> bool:
        return (await running.admin._http.get("/v1/endpoints/isolated")).status_code == 200

    await wait_for(is_offered)
    job = await running.ann.submit("fetches", url="http://169.254.169.254/latest/meta-data/", wait=True)
    assert job.status is Status.SUCCEEDED
    assert job.output is not None
    assert job.output.data == {"status": 403, "text": REFUSED}
    assert (job.engine, job.isolation) == (engine, "runc" if engine == "docker" else "process")
    waiting = await running.ann.submit("isolated")

    async def says() -> JobView | None:
        seen = await running.ann.job(waiting.id)
        return seen if seen.reason == "requirement_unmet" else None

    seen: JobView = await wait_for(says)
    assert (seen.message or "").startswith("No host meets its requirements. gpu-1 lacks runtime kata (")
    (host,) = (await running.admin._http.get("/v1/hosts")).json()["hosts"]
    assert set(host["unmet"]) == {"isolated"}
    assert host["runtimes"] == (["runc"] if engine == "docker" else [])
