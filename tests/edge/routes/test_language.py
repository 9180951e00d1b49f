"""Refusals and errors in the language of `Accept-Language`, else of the key, else in English."""

import re
from pathlib import Path

import httpx2
import pytest

from edge.hosts.endpoints import localize_schema
from schemas import events
from schemas.endpoint import parse_endpoint
from schemas.host import HostCapabilities
from schemas.job import JobFailure, JobKey
from schemas.texts import Language
from tests.support.served_edge import ServedEdge

ROOT = Path(__file__).parents[3]
ZH = {"Accept-Language": "zh"}
CJK = re.compile(r"[\u3400-\u9fff]")
FILE = "0" * 64


@pytest.mark.parametrize(
    ("accept", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("zh-Hans", "zh"),
        ("ZH", "zh"),
        ("en;q=0.5, zh-Hans-CN;q=0.7", "zh"),
        ("fr, zh;q=0.1", "zh"),
        ("en-US,zh;q=0.9", "en"),
        ("zh;q=0, en", "en"),
        ("fr", "en"),
        ("zhuang", "en"),
        ("zh;q=nonsense", "en"),
        ("*", "en"),
        ("", "en"),
    ],
)
async def test_a_refusal_comes_in_the_language_that_was_asked_for(edge: ServedEdge, accept: str, language: str):
    reply = await edge.ann.get("/v1/jobs/none", headers={"Accept-Language": accept})
    title, detail = {
        "en": ("Not found", "job none does not exist"),
        "zh": ("请求的内容不存在", "任务 none 不存在"),
    }[language]
    assert (reply.status_code, reply.headers["content-language"]) == (404, language)
    assert (reply.json()["title"], reply.json()["detail"], reply.json()["code"]) == (title, detail, "not_found")


async def test_without_a_header_the_key_says_the_language(edge: ServedEdge):
    made = await edge.admin.post("/v1/keys", json={"owner": "carl", "language": "zh"})
    key = {"X-API-Key": made.json()["key"]}
    chinese = await edge.anyone.get("/v1/jobs/none", headers=key)
    english = await edge.anyone.get("/v1/jobs/none", headers={**key, "Accept-Language": "en"})
    other = await edge.anyone.get("/v1/jobs/none", headers={**key, "Accept-Language": "fr"})
    assert chinese.json()["detail"] == other.json()["detail"] == "任务 none 不存在"
    assert english.json()["detail"] == "job none does not exist"


async def test_field_errors_name_the_field_and_say_what_in_chinese(edge: ServedEdge):
    reply = await edge.ann.post("/v1/jobs", json={"endpoint": "echo", "input": {"text": 5}}, headers=ZH)
    shown = reply.json()
    assert (shown["title"], shown["detail"]) == ("参数无效", "$.input.text：5 的类型不是 'string'")
    assert shown["errors"] == [{"path": "$.input.text", "message": "5 的类型不是 'string'"}]


async def refuse_everywhere(edge: ServedEdge) -> list[httpx2.Response]:
    job = {"endpoint": "echo", "input": {"text": "hello"}}
    ann, bare = edge.ann, {"X-API-Key": edge.texts["ann"], **ZH}
    return [
        await edge.anyone.get("/v1/jobs", headers=ZH),
        await edge.anyone.get("/v1/nothing", headers=ZH),
        await edge.anyone.patch("/v1/jobs", headers=bare),
        await ann.get("/v1/keys", headers=ZH),
        await ann.get("/v1/jobs?limit=0", headers=ZH),
        await ann.get("/v1/jobs?limit=many", headers=ZH),
        await ann.get("/v1/jobs?cursor=x", headers=ZH),
        await ann.get("/v1/jobs?status=lost", headers=ZH),
        await ann.get("/v1/jobs?tag=x", headers=ZH),
        await ann.post("/v1/jobs", content=b"{", headers=ZH),
        await ann.post("/v1/jobs", content=b"[]", headers=ZH),
        await ann.post("/v1/jobs", content=b"x", headers={**ZH, "Content-Type": "multipart/form-data"}),
        await ann.post("/v1/jobs", json={}, headers=ZH),
        await ann.post("/v1/jobs", json=job | {"endpoint": "ecko"}, headers=ZH),
        await ann.post("/v1/jobs", json=job | {"inputs": {}}, headers=ZH),
        await ann.post("/v1/jobs", json=job | {"priority": "urgent"}, headers=ZH),
        await ann.post("/v1/jobs", json=job | {"deadline": "tomorrow"}, headers=ZH),
        await ann.post("/v1/jobs", json=job | {"deadline": "2026-12-01T00:00:00"}, headers=ZH),
        await ann.post("/v1/jobs", json=job | {"deadline": "2020-12-01T00:00:00Z"}, headers=ZH),
        await ann.post("/v1/jobs", json=job | {"webhook": "http://a"}, headers=ZH),
        await ann.post("/v1/jobs", json=job | {"input": {"text": "x", "file": "/home/me/a.mp4"}}, headers=ZH),
        await ann.post("/v1/jobs", json=job | {"input": {"text": "x", "file": "http://127.0.0.1/a"}}, headers=ZH),
        await ann.post("/v1/jobs", json=job | {"input": {"text": "x", "file": f"sha256:{FILE}"}}, headers=ZH),
        await ann.post("/v1/jobs", json=job | {"input": {"txt": "x"}}, headers=ZH),
        await ann.put("/v1/jobs/my.job", json=job, headers=ZH),
        await ann.post("/v1/batches", json={"jobs": []}, headers=ZH),
        await ann.get(f"/v1/assets/{FILE}", headers=ZH),
        await ann.get("/v1/assets/xyz", headers=ZH),
        await ann.post("/v1/uploads", headers={**ZH, "Tus-Resumable": "0.2"}),
        await ann.get("/v1/hosts/none", headers=ZH),
        await ann.post("/v1/tokens", json={"scopes": ["everything"]}, headers=ZH),
        await edge.admin.delete("/v1/owners/a b", headers=ZH),
        await edge.admin.get("/v1/jobs?owner=a b", headers=ZH),
        await ann.post("/v2/ecko/run", json={"input": {}}, headers=ZH),
    ]


async def test_every_refusal_is_in_chinese(edge: ServedEdge):
    replies = await refuse_everywhere(edge)
    assert [reply.url for reply in replies if reply.status_code < 400] == []
    shown = [reply.json() for reply in replies]
    texts = [
        text
        for one in shown
        for text in (one["title"], one["detail"], *(error["message"] for error in one.get("errors", ())))
    ]
    assert [text for text in texts if not CJK.search(text)] == []


async def test_the_rejected_jobs_of_a_batch_say_why_in_chinese(edge: ServedEdge):
    reply = await edge.ann.post("/v1/batches", json={"jobs": [{"endpoint": "ecko", "input": {}}]}, headers=ZH)
    problem = reply.json()["rejected"][0]["problem"]
    assert problem["detail"] == "没有服务器提供任务类型 'ecko'；已有：echo"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("the job exited with code 3", "任务以退出码 3 结束"),
        ("the driver reported XID 79 (fell off the bus)", "显卡驱动报告：XID 79 (fell off the bus)"),
        ("http://x.org/a.mp4: its server answered 404", "http://x.org/a.mp4：对方服务器返回 404"),
        ("a sentence of somebody's own image", "a sentence of somebody's own image"),
    ],
)
async def test_why_a_job_failed_comes_in_chinese(edge: ServedEdge, written: str, shown: str):
    made = (await edge.ann.post("/v1/jobs", json={"endpoint": "echo", "input": {"text": "x"}})).json()
    await edge.world.start((await edge.world.jobs.read(JobKey("ann", made["id"]))).record.job)
    await edge.world.write_event(
        JobKey("ann", made["id"]), events.Failed(JobFailure("internal", written, "image", retryable=True))
    )
    chinese, english = [
        (await edge.ann.get(made["urls"]["self"], headers={"Accept-Language": language})).json()["error"]
        for language in ("zh", "en")
    ]
    assert (chinese["message"], english["message"]) == (shown, written)
    assert chinese | {"message": written} == english


async def test_an_endpoint_and_its_fields_are_described_in_both_languages(edge: ServedEdge):
    echo = parse_endpoint((ROOT / "images/echo/endpoint.toml").read_text())
    offer = HostCapabilities(host="gpu-1", incarnation="i1", at=edge.world.time(), endpoints=(echo,), slots=1)
    await edge.world.bus.capabilities.put("gpu-1", offer)
    await edge.world.endpoints.refresh()
    english, chinese = [
        (await edge.ann.get("/v1/endpoints/echo", headers={"Accept-Language": language})).json()
        for language in ("en", "zh-CN")
    ]
    assert (english["title"], chinese["title"]) == ("Echo", "回显")
    assert english["description"] == english["description_en"] == chinese["description_en"]
    assert chinese["description"] == chinese["description_zh"] == english["description_zh"]
    text = {"type": "string", "description_en": "comes back as output.data.text"}
    text["description_zh"] = "作为 output.data.text 返回"
    assert english["input"]["properties"]["text"] == text | {"description": text["description_en"]}
    assert chinese["input"]["properties"]["text"] == text | {"description": text["description_zh"]}
    listed = (await edge.ann.get("/v1/endpoints", headers=ZH)).json()["endpoints"]
    assert [one for one in listed if one["name"] == "echo"] == [chinese]


def test_a_schema_without_chinese_stays_as_it_is():
    schema = {
        "properties": {
            "title": {"description": "a", "default": {"description": "b", "description_zh": "c"}},
            "list": {"items": [{"title": "d", "title_zh": "e"}], "description": 5, "description_zh": "f"},
        }
    }
    assert localize_schema(schema, Language.ZH) == {
        "properties": {
            "title": {"description": "a", "default": {"description": "b", "description_zh": "c"}},
            "list": {
                "items": [{"title": "e", "title_en": "d", "title_zh": "e"}],
                "description": 5,
                "description_zh": "f",
            },
        }
    }
