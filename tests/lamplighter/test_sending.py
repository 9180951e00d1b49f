"""A file sent over answers and cuts of every kind; then the real thing over a real edge."""

from pathlib import Path

import httpx
import pytest
from anyio import to_thread

from lamplighter import AsyncClient, Client, Rejected, Unreachable, sending
from lamplighter.sending import PAUSES_S, SMALL, Request, Sending, Sent
from tests.edge.routes.conftest import Face

SHA = "a" * 64
SIZE = SMALL + 10
DONE = {"lamplighter-asset": f"sha256:{SHA}"}
GONE = Unreachable("no answer")


def begun(offset: int = 0) -> Sending:
    """One that the edge has told its offset."""
    one = Sending("a.mp4", SHA, SIZE, "/v1/uploads/u")
    one.answered(200, {"upload-offset": str(offset)}, b"")
    return one


def test_a_large_file_is_created_then_sent_then_there():
    one = Sending("a.mp4", SHA, SIZE)
    assert (one.next().method, one.next().start) == ("POST", None)
    one.answered(201, {"location": "/v1/uploads/u", "upload-offset": "0"}, b"")
    patch = one.next()
    assert (patch.method, patch.path, patch.start) == ("PATCH", "/v1/uploads/u", 0)
    assert patch.headers["Content-Length"] == str(SIZE)
    one.answered(204, DONE, b"")
    assert one.asset is not None
    assert one.asset.digest == f"sha256:{SHA}"


def test_after_a_cut_the_edge_is_asked_and_the_rest_is_sent():
    one = begun()
    one.cut(GONE)
    assert (one.next(), one.pause_s) == (Request("HEAD", "/v1/uploads/u", {"Tus-Resumable": "1.0.0"}), PAUSES_S[0])
    one.answered(200, {"upload-offset": "7"}, b"")
    assert (one.next().start, one.pause_s) == (7, 0.0)


def test_an_upload_that_expired_is_begun_anew():
    one = Sending("a.mp4", SHA, SIZE, "/v1/uploads/old")
    one.answered(404, {}, b"")
    assert (one.next().method, one.place) == ("POST", None)


def test_an_answer_that_was_lost_is_heard_at_the_next_question():
    one = begun(SIZE - 1)
    one.cut(GONE)
    one.answered(200, DONE | {"upload-offset": str(SIZE)}, b"")
    assert one.asset is not None


@pytest.mark.parametrize("status", [409, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(status: int):
    one = begun(5)
    one.answered(status, {}, b"")
    assert one.next().method == "HEAD"


@pytest.mark.parametrize("status", [401, 413, 422, 507])
def test_what_will_not_pass_is_raised(status: int):
    with pytest.raises(Rejected):
        begun().answered(status, {}, b"")


def test_without_progress_it_gives_up_and_with_progress_it_does_not():
    one = begun()
    for _ in PAUSES_S:
        one.cut(GONE)
    with pytest.raises(Unreachable):
        one.cut(GONE)
    other = begun()
    for offset in range(1, 3 * len(PAUSES_S)):
        other.cut(GONE)
        other.answered(200, {"upload-offset": str(offset)}, b"")
    assert other.pause_s == 0.0


def test_a_lock_is_waited_for_however_long_it_is_held():
    one = begun()
    for _ in range(100):
        one.answered(423, {}, b"")
    assert (one.next().method, one.pause_s) == ("HEAD", 1.0)


def test_a_bar_goes_back_to_where_the_edge_stands():
    told: list[int] = []
    bar = Sent(told.append)
    bar.from_(0)(10)
    bar.from_(4)(6)
    assert told == [10, -6, 6]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' edge takes at most 1 MiB, so what is small is made smaller."""
    monkeypatch.setattr(sending, "SMALL", 1000)


class Stopped(Exception):
    """The program was ended."""


def stop_after(limit: int):
    sent = 0

    def advance(amount: int) -> None:
        nonlocal sent
        sent += amount
        if sent >= limit:
            raise Stopped

    return advance


async def test_the_next_run_goes_on_where_the_last_was_stopped(
    face: Face, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lamplighter.connection.PIECE", 100_000)
    file, asked = tmp_path / "face.mp4", list[tuple[str, str | None]]()
    file.write_bytes(bytes(range(250)) * 4000)

    def note(request: httpx.Request) -> None:
        if "/v1/uploads" in request.url.path:
            asked.append((request.method, request.headers.get("upload-offset")))

    def first() -> None:
        with Client(face.url, face.texts["ann"], cache=tmp_path / "digests.json") as client:
            client.upload(file, stop_after(500_000))

    def second() -> str:
        with Client(face.url, face.texts["ann"], cache=tmp_path / "digests.json") as client:
            client._http.event_hooks = {"request": [note], "response": []}
            return client.upload(file).digest

    with pytest.raises(Stopped):
        await to_thread.run_sync(first)
    digest = await to_thread.run_sync(second)
    assert [method for method, _ in asked] == ["HEAD", "PATCH"]
    assert int(asked[1][1] or 0) >= 400_000
    assert (await face.ann.get(f"/v1/assets/{digest[7:]}")).content == file.read_bytes()
    assert (tmp_path / "uploads.json").read_text() == "{}"


async def test_the_awaiting_client_sends_in_the_same_way(face: Face, tmp_path: Path, small: None):
    file, told = tmp_path / "face.mp4", list[int]()
    file.write_bytes(b"x" * 5000)
    async with AsyncClient(face.url, face.texts["ann"], cache=tmp_path / "digests.json") as client:
        asset = await client.upload(file, told.append)
        assert (asset.name, sum(told)) == ("face.mp4", 5000)
    (held,) = face.world.uploads._known.values()
    assert (held.upload.kept, held.upload.name) == (True, "face.mp4")
