"""Both clients against a served edge: upload once, submit, follow over a cut, download."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import httpx2
import pytest

from lamplighter import AsyncClient, Client, JobFailed, NotFound, Rejected, Unreachable, api
from schemas import events as e
from schemas.backoff import Backoff
from schemas.events import FeedPosition, LogEndMessage, LogMessage
from schemas.job import JobFailure, JobKey, Output, OutputFile
from tests.support.served_edge import ServedEdge


@pytest.fixture
async def client(face: ServedEdge, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(face.url, face.texts["ann"], cache=tmp_path / "digests.json") as made:
        yield made


async def finish(face: ServedEdge, job_id: str, *, fail: bool = False) -> None:
    """Play the runner to the job's end."""
    key = JobKey("ann", job_id)
    await face.world.start((await face.world.jobs.read(key)).record.job)
    at = face.world.time()
    for number in range(1, 4):
        await face.world.runner_bus.feed.publish(
            key, LogMessage(FeedPosition(1, 1, number), at, "stdout", f"{number}\n")
        )
    await face.world.runner_bus.feed.publish(key, LogEndMessage(FeedPosition(1, 1, 3), at))
    digest = await face.world.put("ann", b"the result", "out.txt")
    good = e.Succeeded(Output((OutputFile("out.txt", digest, 10, "text/plain"),), {"text": "hi"}), log=digest)
    bad = e.Failed(JobFailure("no_face", "no face in it", "client", retryable=False))
    await face.world.write_event(key, bad if fail else good)


async def test_a_file_is_uploaded_once_and_named_by_its_digest(face: ServedEdge, client: AsyncClient, tmp_path: Path):
    file = tmp_path / "föhn.txt"
    file.write_bytes(b"content")
    job = await client.submit("echo", text="hello", file=file)
    sent: list[int] = []
    again = await client.upload(file, sent.append)
    assert job.input["file"] == again.digest
    assert sent == [7]
    listed = await client.call(api.list_assets(10, None))
    assert [(asset.name, asset.bytes) for asset in listed.assets] == [("föhn.txt", 7)]


async def test_wait_gives_the_job_or_raises_what_became_of_it(face: ServedEdge, client: AsyncClient, tmp_path: Path):
    good, bad = [await client.submit("echo", text=text) for text in ("good", "bad")]
    await finish(face, good.id)
    await finish(face, bad.id, fail=True)
    done = await client.wait(good.id)
    saved = await client.download(done, "out.txt", tmp_path / "saved.txt")
    assert (done.output.data, saved.read_bytes()) == ({"text": "hi"}, b"the result")
    assert not (tmp_path / "saved.txt.part").exists()
    with pytest.raises(JobFailed, match="no_face: no face in it") as failed:
        await client.wait(bad.id)
    assert failed.value.job.error.blame == "client"


class CuttingTransport(httpx2.AsyncHTTPTransport):
    """Cuts every event stream behind its second event."""

    cuts = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        reply = await super().handle_async_request(request)
        if request.url.path.endswith("/events"):
            reply.stream = _Cut(reply.stream, self)
        return reply


class _Cut(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, owner: CuttingTransport) -> None:
        self._inner, self._owner = inner, owner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        ends = 0
        async for piece in self._inner:
            yield piece
            ends += piece.count(b"\r\n\r\n") + piece.count(b"\n\n")
            if ends >= 2 and self._owner.cuts < 3:
                self._owner.cuts += 1
                raise httpx2.ReadError("cut")

    async def aclose(self) -> None:
        await self._inner.aclose()


async def test_following_goes_on_over_cuts_without_a_gap_or_a_double(face: ServedEdge, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("lamplighter.follow.RECONNECT_BACKOFF", Backoff(0, 0))
    transport = CuttingTransport()
    async with AsyncClient(face.url, face.texts["ann"], cache=tmp_path / "d.json", transport=transport) as client:
        job = await client.submit("echo", text="hello")
        await finish(face, job.id)
        events = [event async for event in client.follow(job.id)]
    assert transport.cuts > 0
    assert [event.data["text"] for event in events if event.kind == "log"] == ["1\n", "2\n", "3\n"]
    assert [event.job.status for event in events if event.kind == "state"] == ["queued", "running", "succeeded"]


async def test_following_from_the_end_ends(face: ServedEdge, client: AsyncClient):
    job = await client.submit("echo", text="hello")
    await finish(face, job.id)
    events = [event async for event in client.follow(job.id)]
    with anyio.fail_after(10):
        assert [event async for event in client.follow(job.id, after=events[-1].id)] == []


async def test_a_text_is_a_file_only_where_a_file_is_taken(client: AsyncClient, tmp_path: Path):
    secret = tmp_path / "passwords.txt"
    secret.write_bytes(b"secret")
    job = await client.submit("echo", text=str(secret))
    assert job.input["text"] == str(secret)
    assert (await client.call(api.list_assets(10, None))).assets == []
    assert (await client.submit("echo", file=str(secret))).input["file"].startswith("sha256:")


@pytest.mark.parametrize("text", ["字" * 1000, "a\0b", "\n", "a/" * 3000], ids=["long", "null", "line", "deep"])
async def test_a_text_that_no_file_can_be_called_is_a_text(client: AsyncClient, text: str):
    assert (await client.submit("echo", text=text)).input["text"] == text


async def test_refusals_and_silence_have_their_own_exceptions(face: ServedEdge, client: AsyncClient):
    with pytest.raises(NotFound):
        await client.job("nothing")
    with pytest.raises(Rejected, match=r"\$\.input\.text"):
        await client.submit("echo", text=5)
    with pytest.raises(NotFound):
        _ = [event async for event in client.follow("nothing")]
    async with AsyncClient("http://127.0.0.1:1") as nobody:
        with pytest.raises(Unreachable, match="is the edge running"):
            await nobody.job("x")


async def test_the_blocking_client_does_the_same(face: ServedEdge, tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"content")

    def submit() -> str:
        with Client(face.url, face.texts["ann"], cache=tmp_path / "d.json") as client:
            return client.submit("echo", file=str(file), options={"job_id": "mine"}).id

    def rest() -> tuple[list[str], bytes, str, list[str]]:
        with Client(face.url, face.texts["ann"], cache=tmp_path / "d.json") as client:
            kinds = [event.kind for event in client.follow("mine")]
            saved = client.download(client.wait("mine"), "out.txt", tmp_path / "b.txt")
            return kinds, saved.read_bytes(), client.logs("mine"), [job.id for job in client.jobs(limit=1)]

    assert await anyio.to_thread.run_sync(submit) == "mine"
    await finish(face, "mine")
    kinds, saved, logs, ids = await anyio.to_thread.run_sync(rest)
    assert kinds.count("state") == 3
    assert kinds.count("log") == 3
    assert (saved, logs, ids) == (b"the result", "the result", ["mine"])


async def test_cancel_retry_and_delete(face: ServedEdge, client: AsyncClient):
    job = await client.submit("echo", text="hello")
    assert (await client.cancel(job.id)).status == "cancelled"
    assert (await client.retry(job.id)).round == 2
    await client.cancel(job.id)
    await client.delete(job.id)
    assert [found async for found in client.jobs()] == []
