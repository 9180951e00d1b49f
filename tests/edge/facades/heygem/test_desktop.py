"""The request sequence of the vendor's desktop client, and the responses that it expects."""

import hashlib

import anyio
import anyio.abc

from bus.health import BrokerStatus
from schemas import events as e
from schemas.container_protocol import OUTPUT_FILE
from schemas.events import FeedPosition, ProgressMessage
from schemas.job import JobFailure, JobKey, Output, OutputFile, Status
from tests.edge.facades.heygem.conftest import AUDIO, OWNER, VIDEO, HeygemClient, run_heygem_edge
from tests.edge.services.test_await_input import became
from tests.support.scripted_servers import http_response, scripted_server
from tests.support.wait import wait_for

ACCEPTED = {"code": 10000, "data": {}, "msg": 10000, "success": True}
WAITING = {
    "code": "code-1",
    "msg": "gpu-1 已关机，且无法远程开机：请在该机器上启动 runner",
    "progress": 0,
    "result": "",
    "status": 1,
}


def sha(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


async def test_submit_poll_and_read_the_result_from_disk(heygem: HeygemClient):
    assert await heygem.submit() == ACCEPTED
    assert await heygem.query() == {"code": 10000, "data": WAITING, "msg": "", "success": True}
    job = await heygem.world.start(await heygem.job())
    note = ProgressMessage(FeedPosition(1, 1, 10), heygem.world.time(), 0.2049, "face")
    await heygem.world.runner_bus.feed.publish(job.key, note)
    running = (await heygem.query())["data"]
    assert running == WAITING | {"msg": "任务处理中，请稍候...", "progress": 20}
    assert isinstance(running["progress"], int)


async def test_a_result_is_on_the_disk_when_a_query_says_done_and_stays_said(heygem: HeygemClient):
    await heygem.submit()
    done = await heygem.finish()
    answer = {
        "code": "code-1",
        "msg": "任务完成",
        "progress": 100,
        "result": "/code-1-r.mp4",
        "status": 2,
        "cost": 27.1,
        "video_duration": 9920,
        "width": 1280,
        "height": 720,
    }
    for _ in range(3):
        assert await heygem.query() == {"code": 10000, "data": answer, "msg": "", "success": True}
        assert (heygem.root / "temp" / "code-1-r.mp4").read_bytes() == b"the video"
    fetched = await heygem.local.get("/easy/download/code-1-r.mp4")
    assert (fetched.status_code, fetched.content, fetched.headers["content-type"]) == (200, b"the video", "video/mp4")
    assert done.input == {
        "audio": sha(AUDIO),
        "video": sha(VIDEO),
        "pn": 1,
        "chaofen": 0,
        "watermark": 0,
        "digital_auth": 0,
    }
    assert sorted(path.name for path in (heygem.root / "temp").iterdir()) == ["code-1-r.mp4", "face.mp4", "speech.wav"]


async def test_a_result_comes_to_the_disk_without_a_query(heygem: HeygemClient):
    await heygem.submit()
    await heygem.finish()
    place = anyio.Path(heygem.root / "temp" / "code-1-r.mp4")
    await wait_for(place.exists)
    assert await place.read_bytes() == b"the video"


async def test_a_failure_is_reported_with_its_reason_and_stays_reported(heygem: HeygemClient):
    await heygem.submit()
    job = await heygem.world.start(await heygem.job())
    await heygem.world.write_event(
        job.key, e.Failed(JobFailure("multiple_faces", "2 faces", "client", retryable=False))
    )
    told = WAITING | {"msg": "视频中检测到多张人脸", "status": 3}
    for _ in range(3):
        assert (await heygem.query())["data"] == told


async def test_the_same_code_again_is_the_same_job_and_other_content_is_refused(heygem: HeygemClient):
    taken = {"code": 10005, "data": {}, "msg": "任务已存在", "success": False}
    assert await heygem.submit() == ACCEPTED
    assert await heygem.submit() == ACCEPTED
    assert await heygem.submit(audio_url=sha(AUDIO), video_url="/code/data/temp/face.mp4") == ACCEPTED
    assert await heygem.submit(sign="unknown keys are ignored", chaofen="") == ACCEPTED
    assert await heygem.submit(chaofen="1") == taken
    assert await heygem.submit(audio_url="face.mp4") == taken
    assert len(await heygem.world.bus.job_store.keys()) == 1


async def test_two_submits_of_a_code_at_once_are_one_job(heygem: HeygemClient):
    answers = []

    async def one() -> None:
        answers.append(await heygem.submit())

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(one)
    assert answers == [ACCEPTED] * 8
    assert len(await heygem.world.bus.job_store.keys()) == 1


async def test_a_missing_field_is_named(heygem: HeygemClient):
    for fields, missing in [
        ({"audio_url": None, "video_url": "", "code": None}, "audio_url"),
        ({"video_url": ""}, "video_url"),
        ({"code": None}, "code"),
    ]:
        told = {"code": 10002, "data": {}, "msg": f"{missing}参数缺失", "success": False}
        assert await heygem.submit(**fields) == told


async def test_unknown_codes_and_probes_are_answered_as_the_vendor_does(heygem: HeygemClient):
    for code in ("__ping__", "_health_", "not-exist", "null", "", "a/b", "x" * 500):
        assert await heygem.query(code) == {"code": 10004, "data": {}, "msg": "任务不存在", "success": True}, code
    nothing = await heygem.local.get("/easy/query")
    assert nothing.json() == {"code": 10002, "data": {}, "msg": "code参数缺失", "success": False}
    assert (await heygem.local.get("/easy/download/nobody-r.mp4")).json()["code"] == 10004


async def test_a_full_store_is_busy(heygem: HeygemClient, monkeypatch):
    async def full() -> BrokerStatus:
        return BrokerStatus(0.95, is_durable=True, version="")

    monkeypatch.setattr(heygem.world.bus.health, "status", full)
    assert await heygem.submit() == {"code": 10001, "data": {}, "msg": "忙碌中", "success": True}


async def test_switches_mean_what_they_mean_to_the_vendor(heygem: HeygemClient):
    await heygem.submit(code="a", chaofen="1", watermark_switch=1, digital_auth="1", pn="0")
    await heygem.submit(code="b", chaofen="", watermark_switch=None, digital_auth=2, pn="")
    first, second = [(await heygem.job(code)).input for code in "ab"]
    names = ("chaofen", "watermark", "digital_auth", "pn")
    assert [first[name] for name in names] == [1, 1, 1, 0]
    assert [second[name] for name in names] == [0, 0, 0, 1]


async def test_a_job_whose_file_follows_waits_for_it(heygem: HeygemClient):
    assert await heygem.submit(audio_url=sha(b"later")) == ACCEPTED
    assert (await heygem.query())["data"] == WAITING | {"msg": "等待上传输入文件"}


async def test_without_a_shared_folder_files_are_named_otherwise(tmp_path):
    async with run_heygem_edge(tmp_path, None) as heygem:
        assert (await heygem.submit())["code"] == 9999
        await heygem.world.put(OWNER, AUDIO)
        await heygem.world.put(OWNER, VIDEO)
        assert await heygem.submit(audio_url=sha(AUDIO), video_url=sha(VIDEO)) == ACCEPTED
        await heygem.finish()
        assert (await heygem.query())["data"]["status"] == 2
        assert (await heygem.local.get("/easy/download/code-1-r.mp4")).content == b"the video"


async def test_a_result_without_bytes_is_reported_as_lost(heygem: HeygemClient):
    await heygem.submit(code="none")
    job = await heygem.world.start(await heygem.job("none"))
    said = OutputFile(OUTPUT_FILE, "a" * 64, 2, "application/json")
    await heygem.world.write_event(job.key, e.Succeeded(Output((said,))))
    assert (await heygem.query("none"))["data"]["status"] == 3


async def test_a_file_by_url_is_the_same_by_its_url_and_by_what_was_fetched(heygem: HeygemClient):
    gate = anyio.Event()

    async def slow(stream: anyio.abc.ByteStream) -> None:
        await gate.wait()
        await http_response(b"fetched")(stream)

    async with scripted_server(slow) as server:
        url = f"http://files.test:{server.port}/speech.wav"
        assert await heygem.submit(audio_url=url) == ACCEPTED
        assert await heygem.submit(audio_url=url) == ACCEPTED
        told = (await heygem.query())["data"]
        assert (told["status"], told["progress"], told["msg"]) == (1, 0, "正在下载输入文件")
        gate.set()
        await became(heygem.world, await heygem.job(), Status.QUEUED)
    assert (await heygem.job()).input["audio"] == sha(b"fetched")
    assert await heygem.submit(audio_url=url) == ACCEPTED
    assert await heygem.submit(audio_url=sha(b"fetched")) == ACCEPTED
    assert (await heygem.submit(audio_url="https://files.example/other.wav"))["code"] == 10005


async def test_an_address_of_the_inside_is_not_fetched(heygem: HeygemClient):
    for url in ("http://127.0.0.1/x", "http://169.254.169.254/latest", "HTTP://[::1]/x", "http://"):
        await heygem.submit(audio_url=url, code="inside")
        job = await heygem.world.bus.job_store.read(JobKey(OWNER, "inside"))
        assert job is None, url
