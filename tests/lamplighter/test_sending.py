"""A file sent over answers and cuts of every kind; then the real thing over a real edge."""

from pathlib import Path

import httpx2
import pytest
from anyio import to_thread

from lamplighter import AsyncClient, Client, Rejected, Unreachable
from lamplighter import files as sending
from lamplighter.files import (
    RETRY_BACKOFF,
    RETRY_LIMIT,
    SINGLE_PUT_LIMIT_BYTES,
    UploadPlan,
    UploadProgress,
    UploadRequest,
)
from tests.support.served_edge import ServedEdge

SHA = "a" * 64
SIZE = SINGLE_PUT_LIMIT_BYTES + 10
DONE = {"lamplighter-asset": f"sha256:{SHA}"}
GONE = Unreachable("no answer")


def begun(offset: int = 0) -> UploadPlan:
    """One that the edge has told its offset."""
    one = UploadPlan("a.mp4", SHA, SIZE, "/v1/uploads/u")
    one.on_response(200, {"upload-offset": str(offset)}, b"")
    return one


def test_a_large_file_is_created_then_sent_then_there():
    one = UploadPlan("a.mp4", SHA, SIZE)
    assert (one.next_request().method, one.next_request().start) == ("POST", None)
    one.on_response(201, {"location": "/v1/uploads/u", "upload-offset": "0"}, b"")
    patch = one.next_request()
    assert (patch.method, patch.path, patch.start) == ("PATCH", "/v1/uploads/u", 0)
    assert patch.headers["Content-Length"] == str(SIZE)
    one.on_response(204, DONE, b"")
    assert one.asset is not None
    assert one.asset.digest == f"sha256:{SHA}"


def test_after_a_cut_the_edge_is_asked_and_the_rest_is_sent():
    one = begun()
    one.on_connection_error(GONE)
    assert (one.next_request(), one.delay_s) == (
        UploadRequest("HEAD", "/v1/uploads/u", {"Tus-Resumable": "1.0.0"}),
        RETRY_BACKOFF.first_s,
    )
    one.on_response(200, {"upload-offset": "7"}, b"")
    assert (one.next_request().start, one.delay_s) == (7, 0.0)


def test_an_upload_that_expired_is_begun_anew():
    one = UploadPlan("a.mp4", SHA, SIZE, "/v1/uploads/old")
    one.on_response(404, {}, b"")
    assert (one.next_request().method, one.upload_path) == ("POST", None)


def test_an_answer_that_was_lost_is_heard_at_the_next_question():
    one = begun(SIZE - 1)
    one.on_connection_error(GONE)
    one.on_response(200, DONE | {"upload-offset": str(SIZE)}, b"")
    assert one.asset is not None


@pytest.mark.parametrize("status", [409, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(status: int):
    one = begun(5)
    one.on_response(status, {}, b"")
    assert one.next_request().method == "HEAD"


@pytest.mark.parametrize("status", [401, 413, 422, 507])
def test_what_will_not_pass_is_raised(status: int):
    with pytest.raises(Rejected):
        begun().on_response(status, {}, b"")


def test_without_progress_it_gives_up_and_with_progress_it_does_not():
    one = begun()
    for _ in range(RETRY_LIMIT):
        one.on_connection_error(GONE)
    with pytest.raises(Unreachable):
        one.on_connection_error(GONE)
    other = begun()
    for offset in range(1, 3 * RETRY_LIMIT):
        other.on_connection_error(GONE)
        other.on_response(200, {"upload-offset": str(offset)}, b"")
    assert other.delay_s == 0.0


def test_a_lock_is_waited_for_however_long_it_is_held():
    one = begun()
    for _ in range(100):
        one.on_response(423, {}, b"")
    assert (one.next_request().method, one.delay_s) == ("HEAD", 1.0)


def test_a_bar_goes_back_to_where_the_edge_stands():
    told: list[int] = []
    bar = UploadProgress(told.append)
    bar.start_at(0)(10)
    bar.start_at(4)(6)
    assert told == [10, -6, 6]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' edge takes at most 1 MiB, so what is small is made smaller."""
    monkeypatch.setattr(sending, "SINGLE_PUT_LIMIT_BYTES", 1000)


class StoppedClock(Exception):
    """The program was ended."""


def stop_after(limit: int):
    sent = 0

    def advance(amount: int) -> None:
        nonlocal sent
        sent += amount
        if sent >= limit:
            raise StoppedClock

    return advance


async def test_the_next_run_goes_on_where_the_last_was_stopped(
    face: ServedEdge, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lamplighter.transport.CHUNK_BYTES", 100_000)
    file, asked = tmp_path / "face.mp4", list[tuple[str, str | None]]()
    file.write_bytes(bytes(range(250)) * 4000)

    def note(request: httpx2.Request) -> None:
        if "/v1/uploads" in request.url.path:
            asked.append((request.method, request.headers.get("upload-offset")))

    def first() -> None:
        with Client(face.url, face.texts["ann"], cache=tmp_path / "digests.json") as client:
            client.upload(file, stop_after(500_000))

    def second() -> str:
        with Client(face.url, face.texts["ann"], cache=tmp_path / "digests.json") as client:
            client._http.event_hooks = {"request": [note], "response": []}
            return client.upload(file).digest

    with pytest.raises(StoppedClock):
        await to_thread.run_sync(first)
    digest = await to_thread.run_sync(second)
    assert [method for method, _ in asked] == ["HEAD", "PATCH"]
    assert int(asked[1][1] or 0) >= 400_000
    assert (await face.ann.get(f"/v1/assets/{digest[7:]}")).content == file.read_bytes()
    assert (tmp_path / "uploads.json").read_text() == "{}"


async def test_the_awaiting_client_sends_in_the_same_way(face: ServedEdge, tmp_path: Path, small: None):
    file, told = tmp_path / "face.mp4", list[int]()
    file.write_bytes(b"x" * 5000)
    async with AsyncClient(face.url, face.texts["ann"], cache=tmp_path / "digests.json") as client:
        asset = await client.upload(file, told.append)
        assert (asset.name, sum(told)) == ("face.mp4", 5000)
    (held,) = face.world.uploads._uploads.values()
    assert (held.upload.is_stored, held.upload.name) == (True, "face.mp4")
