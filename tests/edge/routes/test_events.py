"""Follow jobs with server-sent events and over a WebSocket."""

import json
from collections.abc import AsyncIterator

import anyio
import httpx2
import pytest
import websockets

from edge.http.auth import KEY_REVOKED_REASON
from edge.http.routes.events import with_keepalive
from lamplighter.follow import Event, SseParser
from schemas import events as e
from schemas.events import FeedPosition, LogEndMessage, LogMessage, ProgressMessage
from schemas.job import Job, JobKey, Output
from tests.support.served_edge import ServedEdge

ECHO = {"endpoint": "echo", "input": {"text": "hello"}}


async def read(client: httpx2.AsyncClient, path: str, count: int | None = None, **headers: str) -> list[Event]:
    """Return the events of a stream, up to its end or up to `count` of them."""
    reader, found = SseParser(), []
    async with client.stream("GET", path, headers=headers) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        async for line in reply.aiter_lines():
            found += reader.feed(line)
            if count is not None and len(found) >= count:
                break
    return found


async def run(edge: ServedEdge, job_id: str, owner: str = "ann") -> Job:
    """Submit a job and play its runner: start, progress, one log line, success."""
    await getattr(edge, owner).put(f"/v1/jobs/{job_id}", json=ECHO)
    key = JobKey(owner, job_id)
    await edge.world.start((await edge.world.jobs.read(key)).record.job)
    feed, at = edge.world.runner_bus.feed, edge.world.time()
    await feed.publish(key, ProgressMessage(FeedPosition(1, 1, 10), at, 0.5, "render", 5, 10))
    await feed.publish(key, LogMessage(FeedPosition(1, 1, 20), at, "stdout", "half way\n"))
    await feed.publish(key, LogEndMessage(FeedPosition(1, 1, 20), at))
    return await edge.world.write_event(key, e.Succeeded(Output(data={"text": "hi"})))


async def test_a_stream_tells_all_and_ends_behind_the_final_state(edge: ServedEdge):
    await run(edge, "mine")
    events = await read(edge.ann, "/v1/jobs/mine/events")
    states = [event.data["status"] for event in events if event.kind == "state"]
    progress = next(event.data for event in events if event.kind == "progress")
    log = next(event.data for event in events if event.kind == "log")
    assert states == ["queued", "running", "succeeded"]
    assert (progress["fraction"], progress["stage"], progress["offset"]) == (0.5, "render", 10)
    assert (log["stream"], log["text"]) == ("stdout", "half way\n")
    assert all(event.data["revision"] for event in events if event.kind == "state")


async def test_a_stream_resumes_behind_the_last_id_without_a_gap_or_a_double(edge: ServedEdge):
    await run(edge, "mine")
    whole = await read(edge.ann, "/v1/jobs/mine/events")
    for cut in range(len(whole) - 1):
        after = whole[cut].id
        rest = await read(edge.ann, "/v1/jobs/mine/events", **{"Last-Event-ID": after})
        assert [(r.kind, r.data) for r in rest] == [(w.kind, w.data) for w in whole[cut + 1 :]]
        by_query = await read(edge.ann, f"/v1/jobs/mine/events?after={after}")
        assert [r.data for r in by_query] == [r.data for r in rest]


async def test_after_the_last_event_a_reconnect_gets_204(edge: ServedEdge):
    """By the standard, an EventSource connects again after every answer except 204."""
    await run(edge, "mine")
    last = (await read(edge.ann, "/v1/jobs/mine/events"))[-1].id
    for sent in ({"headers": {"Last-Event-ID": last}}, {"params": {"after": last}}):
        reply = await edge.ann.get("/v1/jobs/mine/events", **sent)
        assert (reply.status_code, reply.content) == (204, b"")
    await edge.ann.put("/v1/jobs/other", json=ECHO)
    async with edge.ann.stream("GET", "/v1/jobs/other/events", headers={"Last-Event-ID": last}) as reply:
        assert reply.status_code == 200  # it has not ended


async def test_after_a_retry_the_stream_goes_on_behind_the_old_end(edge: ServedEdge):
    await edge.ann.put("/v1/jobs/mine", json=ECHO)
    await edge.ann.post("/v1/jobs/mine/cancel")
    last = (await read(edge.ann, "/v1/jobs/mine/events"))[-1].id
    await edge.ann.post("/v1/jobs/mine/retry")
    (again,) = await read(edge.ann, "/v1/jobs/mine/events", count=1, **{"Last-Event-ID": last})
    assert (again.data["status"], again.data["round"]) == ("queued", 2)


async def test_an_owner_follows_all_of_its_jobs_and_nobody_elses(edge: ServedEdge):
    await run(edge, "one")
    await run(edge, "theirs", owner="bob")
    await run(edge, "two")
    events = await read(edge.ann, "/v1/events", count=10)
    assert {event.data.get("id") or event.data.get("job_id") for event in events} == {"one", "two"}


async def test_the_log_so_far_is_there_before_the_end(edge: ServedEdge):
    await edge.ann.put("/v1/jobs/mine", json=ECHO)
    key = JobKey("ann", "mine")
    await edge.world.start((await edge.world.jobs.read(key)).record.job)
    await edge.world.runner_bus.feed.publish(
        key, LogMessage(FeedPosition(1, 1, 5), edge.world.time(), "stderr", "so far\n")
    )
    assert (await edge.ann.get("/v1/jobs/mine/logs")).text == "so far\n"


def socket_url(edge: ServedEdge, path: str) -> str:
    return edge.url.replace("http", "ws") + path


async def test_a_websocket_tells_the_same(edge: ServedEdge):
    await run(edge, "mine")
    headers = {"Authorization": f"Bearer {edge.texts['ann']}"}
    async with websockets.connect(socket_url(edge, "/v1/jobs/mine/events"), additional_headers=headers) as socket:
        said = [json.loads(message) async for message in socket]
    events = await read(edge.ann, "/v1/jobs/mine/events")
    assert [(item["event"], item["id"], item["data"]) for item in said] == [(v.kind, v.id, v.data) for v in events]
    assert socket.close_code == 1000


@pytest.mark.parametrize(
    ("owner", "path", "status", "code"),
    [
        (None, "/v1/jobs/mine/events", 401, "unauthorized"),
        ("runner", "/v1/jobs/mine/events", 403, "forbidden"),
        ("bob", "/v1/jobs/mine/events", 404, "not_found"),
        ("bob", "/v1/events?owner=ann", 403, "forbidden"),
        ("admin", "/v1/events?owner=a.b", 422, "input_invalid"),
        ("ann", "/v1/jobs/a.b/events", 422, "input_invalid"),
        ("ann", "/v1/nothing", 404, "not_found"),
    ],
)
async def test_a_refused_websocket_is_answered_as_http_is(edge: ServedEdge, owner, path, status, code):
    await edge.ann.put("/v1/jobs/mine", json=ECHO)
    headers = {"Authorization": f"Bearer {edge.texts[owner]}"} if owner else {}
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with websockets.connect(socket_url(edge, path), additional_headers=headers):
            pass
    reply = refused.value.response
    assert (reply.status_code, json.loads(reply.body)["code"]) == (status, code)
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "after", ["nonsense", "x" * 300, "-", "e-", "e-1-", "0-99999999999999999999", "0-" + "9" * 5000]
)
async def test_an_id_that_is_none_of_ours_stands_for_the_start(edge: ServedEdge, after):
    await run(edge, "mine")
    whole = await read(edge.ann, "/v1/jobs/mine/events")
    epoch = whole[0].id.partition("-")[0]
    for sent in (after, after.replace("0", epoch, 1)):
        again = await read(edge.ann, "/v1/jobs/mine/events", **{"Last-Event-ID": sent})
        assert [event.data for event in again] == [event.data for event in whole]


async def test_silence_is_filled_and_the_source_is_closed():
    closed = False

    async def source() -> AsyncIterator[int]:
        nonlocal closed
        try:
            yield 1
            yield 2
        finally:
            closed = True

    assert [item async for item in with_keepalive(source(), 5)] == [1, 2]
    assert closed
    heard = [item async for item in with_keepalive(a_word_after_silence(), 0.001)]
    assert heard[0] is None
    assert heard[-1] == "word"


async def test_what_fills_a_silence_is_a_comment_and_no_event(edge: ServedEdge, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edge.http.routes.events.KEEPALIVE_INTERVAL_S", 0.01)
    await edge.ann.put("/v1/jobs/mine", json=ECHO)
    blocks = []
    with anyio.fail_after(10):
        async with edge.ann.stream("GET", "/v1/jobs/mine/events") as reply:
            async for text in reply.aiter_text():
                blocks += [block for block in text.split("\r\n\r\n") if block.startswith(":")]
                if blocks:
                    break
    assert set(blocks) == {": keep-alive"}


@pytest.mark.parametrize("path", ["/v1/events", "/v1/jobs/mine/events"])
async def test_while_the_broker_is_away_no_stream_is_opened(edge: ServedEdge, path: str):
    await edge.ann.put("/v1/jobs/mine", json=ECHO)
    edge.world.broker.stop()
    headers = {"Authorization": f"Bearer {edge.texts['ann']}"}
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with websockets.connect(socket_url(edge, path), additional_headers=headers):
            pass
    assert refused.value.response.status_code == 503
    reply = await edge.ann.get(path)
    assert (reply.status_code, reply.json()["code"]) == (503, "unavailable")
    edge.world.broker.start()


@pytest.mark.parametrize("path", ["/v1/events", "/v1/jobs/mine/events"])
async def test_a_stream_ends_with_its_key(edge: ServedEdge, monkeypatch: pytest.MonkeyPatch, path: str):
    monkeypatch.setattr("edge.http.routes.events.KEEPALIVE_INTERVAL_S", 0.01)
    await edge.bob.put("/v1/jobs/mine", json=ECHO)
    (key,) = await edge.keys.list("bob")
    token = (await edge.bob.post("/v1/tokens", json={})).json()["token"]
    headers = {"Authorization": f"Bearer {edge.texts['bob']}"}
    with anyio.fail_after(10):
        async with (
            edge.anyone.stream("GET", path, params={"token": token}) as reply,
            websockets.connect(socket_url(edge, path), additional_headers=headers) as socket,
        ):
            texts = reply.aiter_text()
            while "event: state" not in await anext(texts):
                pass
            assert json.loads(await socket.recv())["event"] == "state"
            await edge.admin.delete(f"/v1/keys/{key.id}")
            assert {text.strip() async for text in texts} <= {": keep-alive"}
            with pytest.raises(websockets.ConnectionClosedError):
                await socket.recv()
    assert (socket.close_code, socket.close_reason) == (4401, KEY_REVOKED_REASON)


async def a_word_after_silence() -> AsyncIterator[str]:
    with anyio.move_on_after(0.05):
        await anyio.sleep_forever()
    yield "word"


async def test_a_stream_from_now_leaves_out_the_past_and_says_where_it_began(edge: ServedEdge):
    await run(edge, "past")
    async with edge.ann.stream("GET", "/v1/events?after=now") as reply:
        lines = reply.aiter_lines()
        start = await anext(lines)
        assert start.startswith("id: ")
        await edge.ann.put("/v1/jobs/new", json=ECHO)
        reader, found = SseParser(), []
        async for line in lines:
            found += reader.feed(line)
            if found:
                break
    assert found[0].data["id"] == "new"
    again = await read(edge.ann, f"/v1/events?after={start.removeprefix('id: ')}", count=1)
    assert again[0].data["id"] == "new"
