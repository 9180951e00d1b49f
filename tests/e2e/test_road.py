"""The path of a job through real processes: a request over HTTP, a container, the result."""

import anyio

from schemas.job import JobKey, Pointer, Priority
from tests.support.installation import RunningInstallation
from tests.support.wait import wait_for


async def test_a_job_brings_its_file_and_its_text_back(running: RunningInstallation, tmp_path):
    await running.installation.start_runner()
    given = tmp_path / "given.bin"
    given.write_bytes(b"some bytes" * 1000)
    done = await running.ann.submit("echo", text="hello", file=given, wait=True)
    assert (done.status, done.attempt, done.output.data["text"]) == ("succeeded", 1, "hello")
    (file,) = done.output.files
    saved = await running.ann.download(done, file.name, tmp_path / "saved.bin")
    assert saved.read_bytes() == given.read_bytes()
    assert "step 10 of 10" in await running.ann.logs(done.id)
    assert done.usage.run_s is not None


async def test_jobs_wait_for_a_host_that_is_off_and_run_by_themselves(running: RunningInstallation):
    """The endpoint is known only from endpoints/*.toml: no host has ever come."""
    jobs = [await running.ann.submit("echo", text=str(number)) for number in range(3)]
    listed = {job.id: job async for job in running.ann.jobs()}
    shown = [(listed[job.id].status, listed[job.id].reason, listed[job.id].queue_position) for job in jobs]
    assert shown == [("queued", "no_host", position) for position in range(3)]
    await running.installation.start_runner()
    done = [await running.ann.wait(job.id) for job in jobs]
    assert [job.output.data["text"] for job in done] == ["0", "1", "2"]


async def test_a_host_that_was_seen_once_is_known_while_it_is_off(running: RunningInstallation, tmp_path):
    await running.installation.start_runner()
    await running.ann.submit("echo", text="first", wait=True)
    await running.installation.runners["gpu-1"].stop()
    await running.installation.edge.stop()
    (tmp_path / "nothing").mkdir()
    await running.installation.start_edge([tmp_path / "nothing"])
    job = await running.ann.submit("echo", text="while off")
    assert (job.status, job.reason) == ("queued", "host_off_unswitched")
    await running.installation.start_runner()
    assert (await running.ann.wait(job.id)).output.data["text"] == "while off"


async def test_the_same_key_twice_at_once_is_one_job(running: RunningInstallation):
    ids = []

    async def submit(**named: str) -> None:
        ids.append((await running.ann.submit("echo", text="once", options=named)).id)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(lambda: submit(idempotency_key="k"))
            tasks.start_soon(lambda: submit(job_id="mine"))
    assert len(set(ids)) == 2
    assert len([job async for job in running.ann.jobs()]) == 2


async def test_a_crash_between_the_record_and_the_queue_delays_the_job_and_no_more(running: RunningInstallation):
    """Create what such a crash leaves: a record without its message."""
    job = await running.ann.submit("echo", text="hello")
    pointer = Pointer("echo", Priority.NORMAL, "ann", job.id, 1)
    async with running.installation.bus() as bus:
        await bus.job_queue.remove(pointer)
        assert pointer not in await bus.job_queue.list_pending()

        async def published() -> bool:
            return pointer in await bus.job_queue.list_pending()

        await wait_for(published)
        assert (await bus.job_store.read(JobKey("ann", job.id))).record.job.attempt == 0
    await running.installation.start_runner()
    assert (await running.ann.wait(job.id)).status == "succeeded"
