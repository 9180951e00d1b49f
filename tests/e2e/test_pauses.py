"""Pauses over real processes: a paused endpoint's jobs wait and say why, also across a restart of the edge."""

from lamplighter import AsyncClient
from schemas.job_view import JobView
from tests.e2e.conftest import process_only
from tests.support.installation import RunningInstallation, wait_until_ready
from tests.support.wait import wait_for


async def wait_until_known(admin: AsyncClient, reason: str) -> None:
    """Wait until the host says that it starts no echo for this reason."""

    async def is_known() -> bool:
        return any(host.unschedulable.get("echo") == reason for host in await admin.hosts())

    await wait_for(is_known)


async def submit_and_read(running: RunningInstallation, text: str) -> JobView:
    job = await running.ann.submit("echo", text=text)
    return await running.ann.job(job.id)


@process_only
async def test_jobs_wait_for_the_end_of_a_pause_and_of_maintenance(running: RunningInstallation):
    await running.installation.start_runner()
    assert (await running.ann.submit("echo", text="before", wait=True)).status == "succeeded"

    paused = await running.admin.pause_endpoint("echo")
    await wait_until_known(running.admin, "endpoint_paused")
    job = await submit_and_read(running, "paused")
    assert (job.reason, job.status) == ("endpoint_paused", "queued")
    assert paused["paused"]["by"] in job.message
    await running.admin.resume_endpoint("echo")
    assert (await running.ann.wait(job.id)).status == "succeeded"

    await running.admin.start_maintenance("gpu-1")
    await wait_until_known(running.admin, "host_in_maintenance")
    job = await submit_and_read(running, "in maintenance")
    assert (job.reason, job.status) == ("host_in_maintenance", "queued")
    await running.installation.edge.kill()
    await running.installation.start_edge()
    await wait_until_ready(running.ann)

    async def is_kept() -> bool:
        return (await running.ann.job(job.id)).reason == "host_in_maintenance"

    await wait_for(is_kept)
    await running.admin.end_maintenance("gpu-1")
    assert (await running.ann.wait(job.id)).status == "succeeded"
