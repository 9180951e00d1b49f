"""The road of a job through real processes: HTTP in, a container, the result out."""

import anyio

from schemas.ids import JobKey
from schemas.job import Pointer
from schemas.status import Priority
from tests.support.installation import RunningInstallation
from tests.support.wait import wait_for


async def test_a_job_brings_its_file_and_its_text_back(lit: RunningInstallation, tmp_path):
    await lit.installation.start_runner()
    given = tmp_path / "given.bin"
    given.write_bytes(b"some bytes" * 1000)
    done = await lit.ann.submit("echo", text="hello", file=given, wait=True)
    assert (done.status, done.attempt, done.output.data["text"]) == ("succeeded", 1, "hello")
    (file,) = done.output.files
    saved = await lit.ann.download(done, file.name, tmp_path / "saved.bin")
    assert saved.read_bytes() == given.read_bytes()
    assert "step 10 of 10" in await lit.ann.logs(done.id)
    assert done.usage.run_s is not None


async def test_jobs_wait_for_a_host_that_is_off_and_run_by_themselves(lit: RunningInstallation):
    """Known only from endpoints/*.toml: no host has ever come."""
    jobs = [await lit.ann.submit("echo", text=str(number)) for number in range(3)]
    listed = {job.id: job async for job in lit.ann.jobs()}
    shown = [(listed[job.id].status, listed[job.id].reason, listed[job.id].queue_position) for job in jobs]
    assert shown == [("queued", "no_host", position) for position in range(3)]
    await lit.installation.start_runner()
    done = [await lit.ann.wait(job.id) for job in jobs]
    assert [job.output.data["text"] for job in done] == ["0", "1", "2"]


async def test_a_host_that_was_seen_once_is_known_while_it_is_off(lit: RunningInstallation, tmp_path):
    await lit.installation.start_runner()
    await lit.ann.submit("echo", text="first", wait=True)
    await lit.installation.runners["gpu-1"].stop()
    await lit.installation.edge.stop()
    (tmp_path / "nothing").mkdir()
    await lit.installation.start_edge([tmp_path / "nothing"])
    job = await lit.ann.submit("echo", text="while off")
    assert (job.status, job.reason) == ("queued", "host_off_unswitched")
    await lit.installation.start_runner()
    assert (await lit.ann.wait(job.id)).output.data["text"] == "while off"


async def test_the_same_key_twice_at_once_is_one_job(lit: RunningInstallation):
    ids = []

    async def submit(**named: str) -> None:
        ids.append((await lit.ann.submit("echo", text="once", options=named)).id)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(lambda: submit(idempotency_key="k"))
            tasks.start_soon(lambda: submit(job_id="mine"))
    assert len(set(ids)) == 2
    assert len([job async for job in lit.ann.jobs()]) == 2


async def test_a_crash_between_the_record_and_the_queue_delays_the_job_and_no_more(lit: RunningInstallation):
    """Exactly what such a crash leaves behind: a record without its message."""
    job = await lit.ann.submit("echo", text="hello")
    pointer = Pointer("echo", Priority.NORMAL, "ann", job.id, 1)
    async with lit.installation.bus() as bus:
        await bus.job_queue.remove(pointer)
        assert pointer not in await bus.job_queue.list_pending()

        async def published() -> bool:
            return pointer in await bus.job_queue.list_pending()

        await wait_for(published)
        assert (await bus.job_store.read(JobKey("ann", job.id))).record.job.attempt == 0
    await lit.installation.start_runner()
    assert (await lit.ann.wait(job.id)).status == "succeeded"
