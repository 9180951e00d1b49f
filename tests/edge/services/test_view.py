"""A Job as clients see it, and what it says in both languages."""

from datetime import timedelta

import pytest

from edge.services import messages
from edge.services.messages import Language, Text, Wait, choose_language
from edge.services.view import Asker
from schemas import events as e
from schemas.failures import FAILURES
from schemas.feed import Place, ProgressNote
from schemas.job import Failure, File, Job, Output
from schemas.reasons import Reason
from schemas.view import FileView, JobUrls, JobView, ProgressView
from schemas.words import Status
from tests.edge.services.world import START, FakeWorld, World


async def seen(edge: World, job: Job, language: Language = Language.EN) -> JobView:
    await edge.settled()
    return await edge.viewer.job(await edge.intake.read(job.key), Asker(language))


async def test_a_waiting_job_tells_position_reason_and_links(fake: FakeWorld) -> None:
    jobs = [await fake.submit(text=str(number)) for number in range(3)]
    views = [await seen(fake, job) for job in jobs]
    assert [view.queue_position for view in views] == [0, 1, 2]
    assert views[0].reason == "no_host"
    assert views[0].message == "No host that can run it has joined yet"
    assert (await seen(fake, jobs[0], Language.ZH)).message == "还没有可运行该任务的服务器接入"
    base = f"/v1/jobs/{jobs[0].id}"
    assert views[0].urls == JobUrls(base, f"{base}/events", f"{base}/cancel", f"{base}/retry", f"{base}/logs")
    assert views[0].max_attempts == 3
    assert views[0].revision > 0


async def test_priorities_go_first(fake: FakeWorld) -> None:
    normal = await fake.submit()
    high = await fake.submit(priority="high")
    assert [(await seen(fake, job)).queue_position for job in (normal, high)] == [1, 0]


async def test_a_scheduled_job_has_no_position(fake: FakeWorld) -> None:
    view = await seen(fake, await fake.submit(not_before=(START + timedelta(hours=1)).isoformat()))
    assert (view.status, view.queue_position, view.reason) == ("scheduled", None, "not_before")


async def test_a_running_job_tells_how_far_it_is(fake: FakeWorld) -> None:
    job = await fake.start(await fake.submit())
    await fake.runner_bus.feed.publish(job.key, ProgressNote(Place(1, 1, 7), fake.time(), 0.5, "render", 1, 2))
    view = await seen(fake, job, Language.ZH)
    assert view.progress == ProgressView(0.5, "render", 1, 2)
    assert (view.queue_position, view.reason, view.host) == (None, None, "gpu-1")
    assert view.message == "任务处理中，请稍候..."


async def test_progress_of_an_earlier_attempt_is_not_this_ones(fake: FakeWorld) -> None:
    job = await fake.start(await fake.submit())
    await fake.runner_bus.feed.publish(job.key, ProgressNote(Place(1, 1, 7), fake.time(), 0.9))
    await fake.apply(job.key, e.Released("host_lost"))
    assert (await seen(fake, await fake.start(job))).progress is None


async def test_without_the_broker_a_view_lacks_only_its_progress(fake: FakeWorld) -> None:
    job = await fake.start(await fake.submit())
    entry = await fake.intake.read(job.key)
    fake.bus.cut()
    assert (await fake.viewer.job(entry)).progress is None


async def test_outputs_have_their_links(fake: FakeWorld) -> None:
    job = await fake.start(await fake.submit())
    await fake.apply(job.key, e.Succeeded(Output((File("a b?.mp4", "d" * 64, 5, "video/mp4"),), {"text": "x"})))
    view = await seen(fake, job)
    assert view.output is not None
    assert view.output.data == {"text": "x"}
    url = fake.signer.link("ann", f"/v1/jobs/{job.id}/files/a%20b%3F.mp4")
    assert view.output.files == (FileView("a b?.mp4", "d" * 64, 5, "video/mp4", url),)


@pytest.mark.parametrize(("code", "zh"), [("no_face", "视频中未检测到人脸"), ("hand_hidden", "程序错误：hand_hidden")])
async def test_a_failed_job_says_why(fake: FakeWorld, code: str, zh: str) -> None:
    job = await fake.start(await fake.submit())
    await fake.apply(job.key, e.Failed(Failure(code, "{braces}", "client", retryable=False)))
    assert (await seen(fake, job, Language.ZH)).message == zh


def test_every_word_has_a_text_in_both_languages() -> None:
    assert set(messages.STATUSES) == set(Status)
    assert set(messages.REASONS) == set(Reason)
    assert set(messages.FAILURES) == set(FAILURES)
    tables: list[Text] = [
        *messages.STATUSES.values(),
        *messages.REASONS.values(),
        *messages.FAILURES.values(),
        *messages.NOTICES.values(),
        messages.NEXT,
        messages.OFFLINE,
    ]
    for text in tables:
        english, chinese = (text.say(language, minutes=2, code="x", host="y") for language in Language)
        assert english.isascii()
        assert not chinese.isascii()


def test_the_texts_of_the_protocol_are_exact() -> None:
    zh = Language.ZH
    assert messages.offline(zh) == "任务已排队，请等待约2分钟"
    assert messages.waiting(Wait(Reason.HOST_WAKING, 200.0), zh) == "任务已排队，请等待约4分钟"
    assert messages.notice("host_online", zh) == "GPU服务器已上线，可以开始处理任务"
    assert messages.status(Status.RUNNING, zh) == "任务处理中，请稍候..."
    assert messages.DELETED.zh == "删除成功"
    assert messages.DELETE_FAILED.zh == "删除失败：文件不存在"


@pytest.mark.parametrize(
    ("wait", "en", "zh"),
    [
        (Wait(Reason.BEHIND, ahead=0), "Next in line", "马上开始"),
        (Wait(Reason.BEHIND, ahead=1), "Waiting for the jobs ahead of it", "前面还有任务，正在排队"),
        (Wait(Reason.QUOTA, ahead=0), "Waiting for your own earlier jobs", "您之前的任务尚未完成，任务排队中"),
        (Wait(Reason.HOST_OFF, 61.0), "GPU is off; the job waits about 2 minutes", "GPU已关机，正在等待开机"),
        (
            Wait(Reason.HOST_OFF_UNSWITCHED, host="gpu-1"),
            "Nobody can switch gpu-1 on from here: start its runner",
            "gpu-1已关机，且无法远程开机：请在该机器上启动runner",
        ),
        (
            Wait(Reason.IMAGE_MISSING),
            "The GPU host does not have the program's image",
            "GPU服务器上没有该程序的镜像，任务等待中",
        ),
    ],
)
def test_why_it_waits_in_words(wait: Wait, en: str, zh: str) -> None:
    assert (messages.waiting(wait, Language.EN), messages.waiting(wait, Language.ZH)) == (en, zh)


@pytest.mark.parametrize(
    ("accept", "preferred", "expected"),
    [
        (None, None, "en"),
        (None, "zh", "zh"),
        ("", "zh-CN", "zh"),
        ("zh-CN,zh;q=0.9,en;q=0.8", None, "zh"),
        ("en;q=0.5, zh;q=0.9", None, "zh"),
        ("fr, en;q=0.1", "zh", "en"),
        ("zh;q=0, en", "zh", "en"),
        ("*", "zh", "zh"),
        ("zh;q=nonsense", None, "en"),
        ("zhx", None, "en"),
    ],
)
def test_the_language_asked_for_is_spoken(accept: str | None, preferred: str | None, expected: str) -> None:
    assert choose_language(accept, preferred) == expected
