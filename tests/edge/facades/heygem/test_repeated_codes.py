"""Repeated codes: an ended job starts its next round, and an unfinished job is returned as it is."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from schemas import events as e
from schemas.asset import DIGEST_SCHEME
from schemas.job import FINAL_STATUSES, Job, JobFailure, Status
from schemas.problems import ProblemError
from tests.edge.facades.heygem.conftest import AUDIO, OWNER, VIDEO, HeygemClient, run_heygem_edge
from tests.edge.facades.heygem.test_desktop import ACCEPTED, sha
from tests.support.wait import wait_for

TAKEN = {"code": 10005, "data": {}, "msg": "任务已存在", "success": False}
OTHER = {"audio_url": "face.mp4"}

End = Callable[[HeygemClient], Awaitable[Job]]


async def failed(heygem: HeygemClient) -> Job:
    job = await heygem.world.start(await heygem.job())
    return await heygem.world.write_event(
        job.key, e.Failed(JobFailure("no_face", "no face", "client", retryable=False))
    )


async def cancelled(heygem: HeygemClient) -> Job:
    entry = await heygem.world.jobs.cancel((await heygem.job()).key)
    return entry.record.job


async def expired(heygem: HeygemClient) -> Job:
    return await heygem.world.write_event((await heygem.job()).key, e.Expired("start_timeout"))


async def succeeded(heygem: HeygemClient) -> Job:
    return await heygem.finish()


async def shown(heygem: HeygemClient) -> int:
    """Return the `status` of a query."""
    return int((await heygem.query())["data"]["status"])


@pytest.mark.parametrize("end", [failed, cancelled, expired])
@pytest.mark.parametrize("fields", [{}, OTHER], ids=["same content", "other content"])
async def test_what_has_failed_is_begun_again_and_ends_anew(heygem: HeygemClient, end: End, fields: dict[str, str]):
    assert await heygem.submit() == ACCEPTED
    ended = await end(heygem)
    assert ended.status in FINAL_STATUSES
    assert await shown(heygem) == 3
    assert await heygem.submit(**fields) == ACCEPTED
    again = await heygem.job()
    assert (again.status, again.round, again.attempt, again.error) == (Status.QUEUED, 2, 0, None)
    assert again.input["audio"] == sha(VIDEO if fields else AUDIO)
    assert again.created_at > ended.created_at
    assert await shown(heygem) == 1
    await heygem.world.publish_window.wait_until_idle()
    assert again.pointer in await heygem.world.bus.job_queue.list_pending()
    await heygem.finish(body=b"the second")
    assert await shown(heygem) == 2
    assert (heygem.root / "temp" / "code-1-r.mp4").read_bytes() == b"the second"


async def test_what_is_done_stays_done_for_the_same_content_and_gives_way_to_other_content(heygem: HeygemClient):
    await heygem.submit()
    await heygem.finish()
    assert await heygem.submit() == ACCEPTED
    assert (await heygem.job()).round == 1
    assert await shown(heygem) == 2
    assert await heygem.submit(**OTHER) == ACCEPTED
    again = await heygem.job()
    assert (again.round, again.status, again.output) == (2, Status.QUEUED, None)
    assert await heygem.submit() == TAKEN, "the content of the first round is not what runs now"
    assert await heygem.submit(**OTHER) == ACCEPTED
    await heygem.finish(body=b"the second")
    assert (await heygem.query())["data"]["status"] == 2
    assert (heygem.root / "temp" / "code-1-r.mp4").read_bytes() == b"the second"


@pytest.mark.parametrize("shared", [True, False])
async def test_a_result_that_is_lost_is_made_again(heygem: HeygemClient, tmp_path, shared):
    async with run_heygem_edge(tmp_path / "other", heygem.root if shared else None) as other:
        files = {"audio_url": sha(AUDIO), "video_url": sha(VIDEO)}
        for body in (AUDIO, VIDEO):
            await other.world.put(OWNER, body)
        await other.submit(**files)
        done = await other.finish()
        assert await shown(other) == 2
        assert done.output is not None
        await other.world.store.trash(done.output.files[0].sha256)
        (other.root / "temp" / "code-1-r.mp4").unlink(missing_ok=True)
        assert await shown(other) == 3
        assert await other.submit(**files) == ACCEPTED
        assert (await other.job()).round == 2
        await other.finish()
        assert await shown(other) == 2


async def test_a_job_that_runs_keeps_its_code(heygem: HeygemClient):
    await heygem.submit()
    await heygem.world.start(await heygem.job())
    assert await heygem.submit() == ACCEPTED
    assert await heygem.submit(**OTHER) == TAKEN
    assert (await heygem.job()).round == 1


async def test_a_submit_waits_for_a_cancel_that_is_under_way(heygem: HeygemClient):
    await heygem.submit()
    job = await heygem.world.start(await heygem.job())
    await heygem.world.jobs.cancel(job.key)
    answers = []

    async def submit() -> None:
        answers.append(await heygem.submit(**OTHER))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(submit)
        await heygem.world.write_event(job.key, e.Cancelled())
    assert answers == [ACCEPTED]
    assert (await heygem.job()).round == 2


async def test_many_that_begin_it_again_at_once_begin_one_round(heygem: HeygemClient):
    await heygem.submit()
    await failed(heygem)
    answers = []

    async def submit() -> None:
        answers.append(await heygem.submit())

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(submit)
    assert answers == [ACCEPTED] * 8
    history = await heygem.world.bus.job_store.history((await heygem.job()).key)
    assert [type(entry.record.event) for entry in history].count(e.Submitted) == 2
    assert (await heygem.job()).round == 2


async def test_the_files_of_the_new_round_are_guarded_and_those_of_the_old_are_not(heygem: HeygemClient):
    await heygem.submit()
    await failed(heygem)
    await heygem.submit(audio_url="face.mp4")
    await heygem.world.wait_until_indexed()
    with pytest.raises(ProblemError, match="asset_in_use"):
        await heygem.world.assets.delete(OWNER, sha(VIDEO).removeprefix(DIGEST_SCHEME))
    await heygem.world.assets.delete(OWNER, sha(AUDIO).removeprefix(DIGEST_SCHEME))


async def test_a_refused_submit_leaves_the_job_that_has_ended(heygem: HeygemClient):
    await heygem.submit()
    ended = await failed(heygem)
    assert (await heygem.submit(audio_url="nowhere.wav"))["code"] == 9999
    assert await heygem.job() == ended
    assert await shown(heygem) == 3


async def test_a_result_is_placed_although_the_old_one_is_placed_while_its_code_is_used_again(
    heygem: HeygemClient, monkeypatch
):
    """The copy of the first result is slow. The record already shows that the job is done."""
    copying, go_on = anyio.Event(), anyio.Event()
    place = heygem.placing._export

    async def slow(job: Job) -> None:
        copying.set()
        await go_on.wait()
        await place(job)

    monkeypatch.setattr(heygem.placing, "_export", slow)
    await heygem.submit()
    await heygem.finish()
    await copying.wait()
    assert await heygem.submit(**OTHER) == ACCEPTED
    go_on.set()
    await heygem.finish(body=b"the second")
    result = heygem.root / "temp" / "code-1-r.mp4"

    async def there() -> bool:
        return result.is_file() and result.read_bytes() == b"the second"

    await wait_for(there)
