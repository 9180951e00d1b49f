"""One upload at two edges: two services, each with its own folder and the same shared store."""

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from msgspec import Struct
from obstore.store import from_url

from edge.assets.uploads import UploadChunk, UploadParameters, UploadService, UploadSettings
from edge.store import unfinished_uploads
from edge.store.directory import FolderObjects
from edge.store.file_io import create_durable_folder
from edge.store.port import SharedObjects
from edge.store.remote import BucketObjects
from edge.store.unfinished_uploads import SharedUploadStateStore, Upload, UploadAppender, UploadKey, UploadStateStore
from schemas.problems import ProblemError
from tests.support.edge_services import FakeBusServicesRig, FixedEntropy
from tests.support.s3_buckets import create_bucket

PART = 64 * 1024
BODY = os.urandom(5 * PART + 1000)
SHA = hashlib.sha256(BODY).hexdigest()
WANTED = UploadParameters(name="a.mp4", media_type="video/mp4", length=len(BODY), expected=SHA)
NEVER = timedelta(days=10_000)  # the clock of the rig is not that of the store


class Edge(Struct, frozen=True):
    """The upload service of one edge."""

    states: SharedUploadStateStore
    uploads: UploadService


class TwoEdges(Struct, frozen=True):
    """Two edges of one installation."""

    fake: FakeBusServicesRig
    objects: SharedObjects
    folder: Path

    def edge(self, name: str, ttl: timedelta = NEVER) -> Edge:
        states = SharedUploadStateStore(self.folder / name, self.objects, ttl)
        fake = self.fake
        return Edge(
            states, UploadService(states, fake.assets, fake.time, FixedEntropy(), UploadSettings(), 1 << 20, None)
        )

    def names(self) -> list[str]:
        return [entry.name.rpartition("/")[2] for entry in self.objects.list()]


@contextmanager
def in_folder(root: Path) -> Iterator[SharedObjects]:
    create_durable_folder(root / "tmp")
    yield FolderObjects(root / "uploads", root / "tmp")
    assert list((root / "tmp").iterdir()) == []


@contextmanager
def in_bucket(_: Path) -> Iterator[SharedObjects]:
    with create_bucket() as url:
        yield BucketObjects(from_url(url, client_options={"allow_http": True}))


@pytest.fixture(params=[in_folder, in_bucket], ids=["folder", "bucket"])
def two(
    fake: FakeBusServicesRig, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TwoEdges]:
    monkeypatch.setattr(unfinished_uploads, "PART_BYTES", PART)
    with request.param(tmp_path / "shared") as objects:
        yield TwoEdges(fake, objects, tmp_path)


async def chunks(*bodies: bytes) -> AsyncIterator[bytes]:
    for body in bodies:
        yield body


def piece(offset: int, *bodies: bytes) -> UploadChunk:
    return UploadChunk(offset=offset, chunks=chunks(*bodies))


async def stored(two: TwoEdges) -> bytes:
    return b"".join([block async for block in two.fake.store.read(SHA)])


async def test_each_edge_continues_where_the_other_stopped(two: TwoEdges):
    first, second = two.edge("first"), two.edge("second")
    upload, at = await first.uploads.create("ann", WANTED), 0
    for number, stop in enumerate((100_000, 200_000, 200_001, len(BODY))):
        edge = (first, second)[number % 2]
        assert (await edge.uploads.status("ann", upload.id)).offset == at
        ended = await edge.uploads.append("ann", upload.id, piece(at, BODY[at:stop]))
        at = stop
    assert (ended.is_stored, ended.final_sha256) == (True, SHA)
    assert await stored(two) == BODY
    assert two.names() == ["created", "done"]
    seen = await first.uploads.status("ann", upload.id)
    assert (seen.is_stored, seen.final_sha256, seen.offset, seen.metadata) == (True, SHA, len(BODY), upload.metadata)
    assert not [path for name in ("first", "second") for path in (two.folder / name).iterdir()]


async def test_what_an_edge_acknowledged_survives_its_death_and_its_disk(two: TwoEdges):
    upload = await two.edge("first").uploads.create("ann", WANTED)

    async def dying() -> AsyncIterator[bytes]:
        yield BODY[: 3 * PART]
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        await two.edge("first").uploads.append("ann", upload.id, UploadChunk(offset=0, chunks=dying()))
    second = two.edge("second")
    at = (await second.uploads.status("ann", upload.id)).offset
    assert at % PART == 0
    assert (await second.uploads.append("ann", upload.id, piece(at, BODY[at:]))).final_sha256 == SHA
    assert await stored(two) == BODY


async def test_of_two_edges_that_write_from_one_offset_one_is_refused(two: TwoEdges):
    first, second = two.edge("first"), two.edge("second")
    upload = await first.uploads.create("ann", WANTED)
    both, refused = [anyio.Event(), anyio.Event()], []

    async def meeting(number: int) -> AsyncIterator[bytes]:
        both[number].set()
        await both[1 - number].wait()
        yield BODY[:PART]

    async def append(number: int, edge: Edge) -> None:
        try:
            await edge.uploads.append("ann", upload.id, UploadChunk(offset=0, chunks=meeting(number)))
        except ProblemError as problem:
            refused.append(problem.code)

    # Parts differ in their lengths: an equal part could be that of a request whose answer was lost.
    async def longer(number: int) -> AsyncIterator[bytes]:
        async for body in meeting(number):
            yield body[: PART // 2]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append, 0, first)
        try:
            await second.uploads.append("ann", upload.id, UploadChunk(offset=0, chunks=longer(1)))
        except ProblemError as problem:
            refused.append(problem.code)
    assert refused == ["offset_mismatch"]
    for edge in (first, second):
        at = (await edge.uploads.status("ann", upload.id)).offset
        assert at in {PART // 2, PART}
    for edge in (first, second):
        with pytest.raises(ProblemError, match="offset_mismatch"):
            await edge.uploads.append("ann", upload.id, piece(0, BODY[:PART]))
    assert (await first.uploads.append("ann", upload.id, piece(at, BODY[at:]))).final_sha256 == SHA
    assert await stored(two) == BODY


async def test_bytes_of_the_loser_never_mix_with_those_of_the_winner(two: TwoEdges):
    """The loser has written other bytes to its own folder, and takes those of the winner afterwards."""
    first, second = two.edge("first"), two.edge("second")
    upload = await first.uploads.create("ann", WANTED)
    await first.uploads.append("ann", upload.id, piece(0, BODY[:PART]))

    async def overtaken() -> AsyncIterator[bytes]:
        yield b"x" * (PART // 2)
        await second.uploads.append("ann", upload.id, piece(PART, BODY[PART : 2 * PART]))

    with pytest.raises(ProblemError, match="offset_mismatch"):
        await first.uploads.append("ann", upload.id, UploadChunk(offset=PART, chunks=overtaken()))
    assert (await first.uploads.status("ann", upload.id)).offset == 2 * PART
    assert (await first.uploads.append("ann", upload.id, piece(2 * PART, BODY[2 * PART :]))).final_sha256 == SHA
    assert await stored(two) == BODY


async def test_a_part_whose_answer_was_lost_is_not_a_conflict(two: TwoEdges):
    first = two.edge("first")
    upload = await first.uploads.create("ann", WANTED)
    two.objects.create(f"ann/{upload.id}/at-{0:020d}", BODY[:PART])
    part = UploadAppender(first.states, upload, None)
    part.write(BODY[:PART])
    part.save()
    part.close()
    assert (await first.uploads.status("ann", upload.id)).offset == PART


async def test_an_upload_that_is_deleted_elsewhere_ends_the_request_that_sends(two: TwoEdges):
    first, second = two.edge("first"), two.edge("second")
    upload = await first.uploads.create("ann", WANTED)

    async def removed() -> AsyncIterator[bytes]:
        yield BODY[:100]
        await second.uploads.remove("ann", upload.id)
        yield BODY[100:]

    with pytest.raises(ProblemError, match="not_found"):
        await first.uploads.append("ann", upload.id, UploadChunk(offset=0, chunks=removed()))
    assert two.names() == []
    assert await two.fake.store.stat(SHA) is None
    with pytest.raises(ProblemError, match="not_found"):
        await first.uploads.status("ann", upload.id)


async def test_any_edge_removes_what_expired_and_what_is_no_upload(two: TwoEdges):
    first = two.edge("first")
    upload = await first.uploads.create("ann", WANTED)
    await first.uploads.append("ann", upload.id, piece(0, BODY[:PART]))
    two.objects.create("bob/orphan/at-0", b"its upload was removed while it was created")
    await two.edge("second").uploads.sweep()
    assert two.names() == [f"at-{0:020d}", "created"]
    await two.edge("third", ttl=-NEVER).uploads.sweep()
    assert two.names() == []
    await first.uploads.sweep()
    assert list((two.folder / "first").iterdir()) == []


async def test_what_a_death_kept_from_becoming_an_asset_becomes_one_at_another_edge(two: TwoEdges):
    first = two.edge("first")
    upload = await first.uploads.create("ann", WANTED)
    part = UploadAppender(first.states, upload, None)
    part.write(BODY)
    part.save(final_sha256=SHA)
    part.close()
    second = two.edge("second")
    await second.uploads.sweep()
    assert await two.fake.assets.find_missing("ann", [SHA]) == ()
    assert (await first.uploads.status("ann", upload.id)).is_stored
    assert await stored(two) == BODY


async def test_a_length_that_is_named_late_is_named_for_all(two: TwoEdges):
    first, second = two.edge("first"), two.edge("second")
    upload = await first.uploads.create("ann", UploadParameters(name="a", media_type="video/mp4"))
    await second.uploads.append("ann", upload.id, piece(0, BODY[:PART]))
    last = UploadChunk(offset=PART, chunks=chunks(BODY[PART : 2 * PART]), length=len(BODY))
    assert (await second.uploads.append("ann", upload.id, last)).length == len(BODY)
    assert (await first.uploads.status("ann", upload.id)).length == len(BODY)
    other = UploadChunk(offset=2 * PART, chunks=chunks(), length=len(BODY) + 1)
    with pytest.raises(ProblemError, match="input_invalid"):
        await first.uploads.append("ann", upload.id, other)
    assert (await first.uploads.append("ann", upload.id, piece(2 * PART, BODY[2 * PART :]))).final_sha256 == SHA


async def test_a_length_that_was_named_at_another_edge_is_known(two: TwoEdges):
    first, second = two.edge("first"), two.edge("second")
    upload = await first.uploads.create("ann", UploadParameters(name="a", media_type="video/mp4"))
    await first.uploads.append("ann", upload.id, piece(0, BODY[:PART]))
    await second.uploads.append("ann", upload.id, UploadChunk(offset=PART, chunks=chunks(), length=len(BODY)))
    assert (await first.uploads.status("ann", upload.id)).length == len(BODY)


async def test_unfinished_uploads_are_counted_for_all_edges(two: TwoEdges):
    first, second = two.edge("first"), two.edge("second")
    upload = await first.uploads.create("ann", WANTED)
    await second.uploads.create("bob", WANTED)
    later = await second.uploads.create("ann", UploadParameters(name="a", media_type="video/mp4"))
    await second.uploads.append("ann", later.id, piece(0, BODY[:100]))
    for states in (first.states, second.states):
        assert states.count_unfinished("ann") == 2
        assert states.pending_bytes("ann", {}) == len(BODY) + 100
        assert states.pending_bytes("ann", {later.key: 7}) == len(BODY) + 7
    await second.uploads.append("ann", upload.id, piece(0, BODY))
    assert first.states.count_unfinished("ann") == 1
    assert await first.uploads.remove_all("ann") == 2
    await second.uploads.sweep()  # its working copies
    assert {key.owner for key in second.states.list_keys()} == {"bob"}


async def test_an_upload_that_began_before_uploads_were_shared_continues(two: TwoEdges):
    local = UploadStateStore(two.folder / "first")
    uploads = UploadService(
        local, two.fake.assets, two.fake.time, FixedEntropy(), UploadSettings(), limit=1 << 20, quotas=None
    )
    upload = await uploads.create("ann", WANTED)
    at = 2 * PART + 5
    await uploads.append("ann", upload.id, piece(0, BODY[:at]))
    await two.edge("first").uploads.sweep()  # as an edge does at its start
    second = two.edge("second")
    assert (await second.uploads.status("ann", upload.id)).offset == at
    assert (await second.uploads.append("ann", upload.id, piece(at, BODY[at:]))).final_sha256 == SHA
    assert await stored(two) == BODY


async def test_a_damaged_state_says_so_and_a_path_is_no_key(two: TwoEdges):
    edge = two.edge("first")
    two.objects.create("ann/one/created", b"{")
    with pytest.raises(ProblemError, match="start it again"):
        await edge.uploads.status("ann", "one")
    with pytest.raises(ValueError, match="is not an upload key"):
        edge.states.load(UploadKey("ann", "../one"))


async def test_a_working_copy_that_lost_bytes_is_filled_again(two: TwoEdges):
    states = two.edge("first").states
    upload = Upload(id="one", owner="ann", name="a", media_type="a/b", expires=two.fake.time(), length=2 * PART)
    states.create(upload)
    part = UploadAppender(states, upload, None)
    part.write(BODY[:PART])
    after = part.save()
    part.close()
    states.data_path(upload.key).write_bytes(b"short")
    again = UploadAppender(states, after, None)
    again.close()
    assert states.data_path(upload.key).read_bytes() == BODY[:PART]
    assert again.hasher.hexdigest() == hashlib.sha256(BODY[:PART]).hexdigest()
