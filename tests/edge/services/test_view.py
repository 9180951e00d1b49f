"""The view of a job for clients, and its messages in both languages."""

from datetime import timedelta

import pytest

from edge.core import messages
from edge.core.messages import LocalizedText, WaitInfo, choose_language
from edge.jobs.view import Asker
from schemas import events as e
from schemas.events import FeedPosition, ProgressMessage
from schemas.host import ImageStatus
from schemas.installation import Pause
from schemas.job import Job, JobFailure, Output, OutputFile, Status, WaitReason
from schemas.job_view import FileView, JobUrls, JobView, ProgressView
from schemas.lifecycle import FAILURES
from schemas.texts import Language
from tests.support.edge_services import START, EdgeServicesRig, FakeBusServicesRig


async def seen(edge: EdgeServicesRig, job: Job, language: Language = Language.EN) -> JobView:
    await edge.wait_until_indexed()
    return await edge.job_views.build(await edge.jobs.read(job.key), Asker(language))


async def test_a_waiting_job_tells_position_reason_and_links(fake: FakeBusServicesRig) -> None:
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


async def test_priorities_go_first(fake: FakeBusServicesRig) -> None:
    normal = await fake.submit()
    high = await fake.submit(priority="high")
    assert [(await seen(fake, job)).queue_position for job in (normal, high)] == [1, 0]


async def test_a_scheduled_job_has_no_position(fake: FakeBusServicesRig) -> None:
    view = await seen(fake, await fake.submit(not_before=(START + timedelta(hours=1)).isoformat()))
    assert (view.status, view.queue_position, view.reason) == ("scheduled", None, "not_before")


async def test_a_running_job_tells_how_far_it_is(fake: FakeBusServicesRig) -> None:
    job = await fake.start(await fake.submit())
    await fake.runner_bus.feed.publish(
        job.key, ProgressMessage(FeedPosition(1, 1, 7), fake.time(), 0.5, "render", 1, 2)
    )
    view = await seen(fake, job, Language.ZH)
    assert view.progress == ProgressView(0.5, "render", 1, 2)
    assert (view.queue_position, view.reason, view.host) == (None, None, "gpu-1")
    assert view.message == "任务处理中，请稍候..."


async def test_progress_of_an_earlier_attempt_is_not_this_ones(fake: FakeBusServicesRig) -> None:
    job = await fake.start(await fake.submit())
    await fake.runner_bus.feed.publish(job.key, ProgressMessage(FeedPosition(1, 1, 7), fake.time(), 0.9))
    await fake.write_event(job.key, e.AttemptReleased("host_lost"))
    assert (await seen(fake, await fake.start(job))).progress is None


async def test_without_the_broker_a_view_lacks_only_its_progress(fake: FakeBusServicesRig) -> None:
    job = await fake.start(await fake.submit())
    entry = await fake.jobs.read(job.key)
    fake.bus.cut()
    assert (await fake.job_views.build(entry)).progress is None


async def test_outputs_have_their_links(fake: FakeBusServicesRig) -> None:
    job = await fake.start(await fake.submit())
    await fake.write_event(
        job.key, e.Succeeded(Output((OutputFile("a b?.mp4", "d" * 64, 5, "video/mp4"),), {"text": "x"}))
    )
    view = await seen(fake, job)
    assert view.output is not None
    assert view.output.data == {"text": "x"}
    url = fake.signer.sign_url("ann", f"/v1/jobs/{job.id}/files/a%20b%3F.mp4")
    assert view.output.files == (FileView("a b?.mp4", "d" * 64, 5, "video/mp4", url),)


@pytest.mark.parametrize(("code", "zh"), [("no_face", "视频中未检测到人脸"), ("hand_hidden", "程序错误：hand_hidden")])
async def test_a_failed_job_says_why(fake: FakeBusServicesRig, code: str, zh: str) -> None:
    job = await fake.start(await fake.submit())
    await fake.write_event(job.key, e.Failed(JobFailure(code, "{braces}", "client", retryable=False)))
    assert (await seen(fake, job, Language.ZH)).message == zh


SHOWN = {"minutes": 2, "code": "x", "host": "y", "pulled": "1 %", "unmet": "x lacks y", "since": "z", "by": "ops"}


def test_every_word_has_a_text_in_both_languages() -> None:
    assert set(messages.STATUS_TEXTS) == set(Status)
    assert set(messages.WAIT_REASON_TEXTS) == set(WaitReason)
    assert set(messages.FAILURE_TEXTS) == set(FAILURES)
    tables: list[LocalizedText] = [
        *messages.STATUS_TEXTS.values(),
        *messages.WAIT_REASON_TEXTS.values(),
        *messages.FAILURE_TEXTS.values(),
        *messages.NOTICE_TEXTS.values(),
        messages.NEXT_IN_LINE_TEXT,
        messages.HOST_OFF_TEXT,
    ]
    for text in tables:
        english, chinese = (text.render(language, **SHOWN) for language in Language)
        assert english.isascii()
        assert not chinese.isascii()


def test_the_texts_of_the_protocol_are_exact() -> None:
    zh = Language.ZH
    assert messages.format_host_off(zh) == "任务已排队，请等待约2分钟"
    assert messages.format_wait(WaitInfo(WaitReason.HOST_WAKING, 200.0), zh) == "任务已排队，请等待约4分钟"
    assert messages.format_notice("host_online", zh) == "GPU服务器已上线，可以开始处理任务"
    assert messages.format_status(Status.RUNNING, zh) == "任务处理中，请稍候..."
    assert messages.DELETED_TEXT.zh == "删除成功"
    assert messages.DELETE_FAILED_TEXT.zh == "删除失败：文件不存在"


@pytest.mark.parametrize(
    ("wait", "en", "zh"),
    [
        (WaitInfo(WaitReason.BEHIND, ahead=0), "Next in line", "马上开始"),
        (WaitInfo(WaitReason.BEHIND, ahead=1), "Waiting for the jobs ahead of it", "前面还有任务，正在排队"),
        (
            WaitInfo(WaitReason.ENDPOINT_PAUSED, pause=Pause(START, "ops")),
            "ops paused this kind of job at 2026-11-21 12:00 UTC; the job starts after the pause",
            "ops 于 2026-11-21 12:00 UTC 暂停了此类任务，恢复后自动执行",
        ),
        (WaitInfo(WaitReason.QUOTA, ahead=0), "Waiting for your own earlier jobs", "您之前的任务尚未完成，任务排队中"),
        (WaitInfo(WaitReason.HOST_OFF, 61.0), "GPU is off; the job waits about 2 minutes", "GPU 已关机，正在等待开机"),
        (
            WaitInfo(WaitReason.HOST_BLOCKED, blocked="job 17 waits in Slurm's queue:\x1b[1m Resources\n"),
            "No GPU host is free yet: job 17 waits in Slurm's queue: [1m Resources",
            "暂时没有空闲的 GPU 服务器，任务继续排队：作业 17 在 Slurm 队列中等待：[1m Resources",
        ),
        (
            WaitInfo(WaitReason.HOST_BLOCKED, blocked="Pod lamplighter-k8s-1 waits for a node: " + 300 * "x"),
            f"No GPU host is free yet: Pod lamplighter-k8s-1 waits for a node: {159 * 'x'}…",
            f"暂时没有空闲的 GPU 服务器，任务继续排队：Pod lamplighter-k8s-1 正在等待节点：{170 * 'x'}…",
        ),
        (
            WaitInfo(WaitReason.HOST_OFF_UNSWITCHED, host="gpu-1"),
            "gpu-1 is off, and the edge cannot power it on: start its runner",
            "gpu-1 已关机，且无法远程开机：请在该机器上启动 runner",
        ),
        (
            WaitInfo(
                WaitReason.IMAGE_PULLING,
                pull=ImageStatus(
                    image="x", endpoints=(), state="pulling", done_bytes=10**9, total_bytes=4 * 10**9, percent=25
                ),
            ),
            "The GPU host downloads the program's image: 25 %, 1.0 / 4.0 GB",
            "GPU 服务器正在下载程序镜像：25 %, 1.0 / 4.0 GB",
        ),
        (
            WaitInfo(WaitReason.IMAGE_PULLING),
            "The GPU host downloads the program's image: 0 %",
            "GPU 服务器正在下载程序镜像：0 %",
        ),
        (
            WaitInfo(WaitReason.IMAGE_MISSING),
            "The GPU host does not have the program's image",
            "GPU 服务器上没有该程序的镜像，任务等待中",
        ),
    ],
)
def test_why_it_waits_in_words(wait: WaitInfo, en: str, zh: str) -> None:
    assert (messages.format_wait(wait, Language.EN), messages.format_wait(wait, Language.ZH)) == (en, zh)


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
