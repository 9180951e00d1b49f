"""A code that is used again: after an end it begins the next round, before that it is the job that is there."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from schemas import events as e
from schemas.asset import DIGEST_SCHEME
from schemas.job import Job, JobFailure
from schemas.problems import ProblemError
from schemas.status import FINAL_STATUSES, Status
from tests.edge.facades.heygem.conftest import AUDIO, OWNER, VIDEO, HeygemClient, run_heygem_edge
from tests.edge.facades.heygem.test_desktop import ACCEPTED, sha
from tests.support.wait import wait_until

TAKEN = {"code": 10005, "data": {}, "msg": "任务已存在", "success": False}
OTHER = {"audio_url": "face.mp4"}

End = Callable[[HeygemClient], Awaitable[Job]]


async def failed(desk: HeygemClient) -> Job:
    job = await desk.world.start(await desk.job())
    return await desk.world.write_event(job.key, e.Failed(JobFailure("no_face", "no face", "client", retryable=False)))


async def cancelled(desk: HeygemClient) -> Job:
    entry = await desk.world.intake.cancel((await desk.job()).key)
    return entry.record.job


async def expired(desk: HeygemClient) -> Job:
    return await desk.world.write_event((await desk.job()).key, e.Expired("start_timeout"))


async def succeeded(desk: HeygemClient) -> Job:
    return await desk.finish()


async def shown(desk: HeygemClient) -> int:
    """The `status` that a query tells."""
    return int((await desk.query())["data"]["status"])


@pytest.mark.parametrize("end", [failed, cancelled, expired])
@pytest.mark.parametrize("fields", [{}, OTHER], ids=["same content", "other content"])
async def test_what_has_failed_is_begun_again_and_ends_anew(desk: HeygemClient, end: End, fields: dict[str, str]):
    assert await desk.submit() == ACCEPTED
    ended = await end(desk)
    assert ended.status in FINAL_STATUSES
    assert await shown(desk) == 3
    assert await desk.submit(**fields) == ACCEPTED
    again = await desk.job()
    assert (again.status, again.round, again.attempt, again.error) == (Status.QUEUED, 2, 0, None)
    assert again.input["audio"] == sha(VIDEO if fields else AUDIO)
    assert again.created_at > ended.created_at
    assert await shown(desk) == 1
    await desk.world.window.wait_until_idle()
    assert again.pointer in await desk.world.bus.job_queue.list_pending()
    await desk.finish(body=b"the second")
    assert await shown(desk) == 2
    assert (desk.root / "temp" / "code-1-r.mp4").read_bytes() == b"the second"


async def test_what_is_done_stays_done_for_the_same_content_and_gives_way_to_other_content(desk: HeygemClient):
    await desk.submit()
    await desk.finish()
    assert await desk.submit() == ACCEPTED
    assert (await desk.job()).round == 1
    assert await shown(desk) == 2
    assert await desk.submit(**OTHER) == ACCEPTED
    again = await desk.job()
    assert (again.round, again.status, again.output) == (2, Status.QUEUED, None)
    assert await desk.submit() == TAKEN, "the content of the first round is not what runs now"
    assert await desk.submit(**OTHER) == ACCEPTED
    await desk.finish(body=b"the second")
    assert (await desk.query())["data"]["status"] == 2
    assert (desk.root / "temp" / "code-1-r.mp4").read_bytes() == b"the second"


@pytest.mark.parametrize("shared", [True, False])
async def test_a_result_that_is_lost_is_made_again(desk: HeygemClient, tmp_path, shared):
    async with run_heygem_edge(tmp_path / "other", desk.root if shared else None) as other:
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


async def test_a_job_that_runs_keeps_its_code(desk: HeygemClient):
    await desk.submit()
    await desk.world.start(await desk.job())
    assert await desk.submit() == ACCEPTED
    assert await desk.submit(**OTHER) == TAKEN
    assert (await desk.job()).round == 1


async def test_a_submit_waits_for_a_cancel_that_is_under_way(desk: HeygemClient):
    await desk.submit()
    job = await desk.world.start(await desk.job())
    await desk.world.intake.cancel(job.key)
    answers = []

    async def submit() -> None:
        answers.append(await desk.submit(**OTHER))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(submit)
        await desk.world.write_event(job.key, e.Cancelled())
    assert answers == [ACCEPTED]
    assert (await desk.job()).round == 2


async def test_many_that_begin_it_again_at_once_begin_one_round(desk: HeygemClient):
    await desk.submit()
    await failed(desk)
    answers = []

    async def submit() -> None:
        answers.append(await desk.submit())

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(submit)
    assert answers == [ACCEPTED] * 8
    history = await desk.world.bus.job_store.history((await desk.job()).key)
    assert [type(entry.record.event) for entry in history].count(e.Submitted) == 2
    assert (await desk.job()).round == 2


async def test_the_files_of_the_new_round_are_guarded_and_those_of_the_old_are_not(desk: HeygemClient):
    await desk.submit()
    await failed(desk)
    await desk.submit(audio_url="face.mp4")
    await desk.world.wait_until_indexed()
    with pytest.raises(ProblemError, match="asset_in_use"):
        await desk.world.assets.delete(OWNER, sha(VIDEO).removeprefix(DIGEST_SCHEME))
    await desk.world.assets.delete(OWNER, sha(AUDIO).removeprefix(DIGEST_SCHEME))


async def test_a_refused_submit_leaves_the_job_that_has_ended(desk: HeygemClient):
    await desk.submit()
    ended = await failed(desk)
    assert (await desk.submit(audio_url="nowhere.wav"))["code"] == 9999
    assert await desk.job() == ended
    assert await shown(desk) == 3


async def test_a_result_is_placed_although_the_old_one_is_placed_while_its_code_is_used_again(
    desk: HeygemClient, monkeypatch
):
    """The copy of the first result is slow, and the client reads "done" from the record, not from the disk."""
    copying, go_on = anyio.Event(), anyio.Event()
    place = desk.placing._export

    async def slow(job: Job) -> None:
        copying.set()
        await go_on.wait()
        await place(job)

    monkeypatch.setattr(desk.placing, "_export", slow)
    await desk.submit()
    await desk.finish()
    await copying.wait()
    assert await desk.submit(**OTHER) == ACCEPTED
    go_on.set()
    await desk.finish(body=b"the second")
    result = desk.root / "temp" / "code-1-r.mp4"

    async def there() -> bool:
        return result.is_file() and result.read_bytes() == b"the second"

    await wait_until(there)
