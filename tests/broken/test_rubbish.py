"""Messages that cannot be decoded: each is set aside and logged, and all other jobs go on."""

from collections.abc import Awaitable, Callable

import pytest

from lamplighter import AsyncClient
from lamplighter.api import Rejected
from schemas.job import JobKey
from tests.broken.raw_publish import publish_raw
from tests.e2e.conftest import process_only
from tests.support.installation import RunningInstallation, wait_until_ready
from tests.support.job_checks import submit_job, wait_until_clean, wait_until_ended, wait_until_running
from tests.support.wait import wait_for

pytestmark = process_only
REFUSED = b'"error"'
LATER = "2099-01-01T00:00:00Z"
RUBBISH = (b"\x00\xff\xfe", b"{half", b"null", b"[]", b'{"at":"2026-11-21T00:00:00Z"}', b'{"v":99,"event":{},"job":{}}')
STRANGE = ("job.echo.normal.ann.x.first", "job.echo.normal.ann.x.-1", "job.echo.soon.ann.x.1", "job.echo.normal.a.b.9")


async def listed(client: AsyncClient) -> set[str]:
    return {job.id async for job in client.jobs()}


def logged(running: RunningInstallation, name: str, words: str) -> Callable[[], Awaitable[bool]]:
    async def said() -> bool:
        return words in (running.installation.folder / f"{name}.log").read_text()

    return said


async def test_rubbish_among_the_messages_of_jobs_is_set_aside(shared_running: RunningInstallation):
    for subject in STRANGE:
        assert REFUSED not in await publish_raw(shared_running, subject, b"\x00rubbish")
    jobs = [await submit_job(shared_running, text=str(number)) for number in range(4)]
    assert {(await wait_until_ended(shared_running.ann, job.id)).status for job in jobs} == {"succeeded"}
    await wait_for(logged(shared_running, "gpu-1", "unreadable_pointer_removed"))
    await wait_until_clean(shared_running)


async def test_rubbish_among_the_records_is_set_aside_and_lists_go_on(shared_running: RunningInstallation):
    before = await submit_job(shared_running, text="before")
    spoiled = await shared_running.ann.submit("echo", text="spoiled", options={"options": {"not_before": LATER}})
    for number, data in enumerate(RUBBISH):
        assert REFUSED not in await publish_raw(shared_running, f"$KV.STATE.ann.rubbish-{number}", data)
    assert REFUSED not in await publish_raw(shared_running, f"$KV.STATE.ann.{spoiled.id}", b"{half a record")
    await wait_for(logged(shared_running, "edge", "record_unreadable"))
    after = await submit_job(shared_running, text="after")
    for job in (before, after):
        assert (await wait_until_ended(shared_running.ann, job.id)).status == "succeeded"
    for job_id in ("rubbish-0", spoiled.id):
        with pytest.raises(Rejected) as refused:
            await shared_running.ann.job(job_id)
        assert refused.value.problem.code == "internal"
        assert "cannot be read" in refused.value.problem.detail
    shown = await listed(shared_running.ann)
    assert {before.id, after.id} <= shown
    assert not {spoiled.id, "rubbish-0"} & shown

    await shared_running.installation.edge.kill()  # the next edge reads everything from the start
    await shared_running.installation.start_edge()
    await wait_until_ready(shared_running.ann)
    assert await listed(shared_running.ann) == shown
    assert (
        await wait_until_ended(shared_running.ann, (await submit_job(shared_running, text="later")).id)
    ).status == "succeeded"


async def test_a_record_that_is_spoiled_under_its_running_job_takes_nobody_with_it(shared_running: RunningInstallation):
    spoiled = await submit_job(shared_running, seconds=2)
    await wait_until_running(shared_running, spoiled.id)
    assert REFUSED not in await publish_raw(shared_running, f"$KV.STATE.ann.{spoiled.id}", b"\x00\x01")
    # Its result exists, but no readable record says that this host may store it.
    await wait_for(logged(shared_running, "gpu-1", '"operation":"upload"'))
    others = [await submit_job(shared_running, text=str(number)) for number in range(8)]
    for job in others:
        assert (await wait_until_ended(shared_running.ann, job.id)).status == "succeeded"
    shown = await listed(shared_running.ann)
    assert {job.id for job in others} <= shown
    assert spoiled.id not in shown
    await shared_running.bus.job_store.delete(JobKey("ann", spoiled.id), None)  # as an operator would
    await wait_until_clean(shared_running)
