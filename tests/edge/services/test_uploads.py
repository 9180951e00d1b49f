"""Uploads across restarts: a new service with the same folder, as after the edge was killed."""

import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from edge.assets.uploads import UploadChunk, UploadParameters, UploadService, UploadSettings, WriterTurn
from edge.owners.quotas import OwnerQuotaOverride
from edge.store import unfinished_uploads
from edge.store.port import BLOCK_BYTES, StoreBroken
from edge.store.unfinished_uploads import Upload, UploadAppender, UploadKey, UploadStateStore
from schemas.problems import ProblemError
from tests.support.edge_services import FakeBusServicesRig, FixedEntropy
from tests.support.wait import wait_for

BODY = b"frames and frames " * 10_000
SHA = hashlib.sha256(BODY).hexdigest()
HALF = len(BODY) // 2
AS_ALWAYS = UploadSettings()
WANTED = UploadParameters(name="a.mp4", media_type="video/mp4", length=len(BODY), expected=SHA)


def restarted(fake: FakeBusServicesRig, settings: UploadSettings = AS_ALWAYS) -> UploadService:
    """Return the service of a new edge process with the same folder."""
    return UploadService(fake.upload_states, fake.assets, fake.time, FixedEntropy(), settings, 1 << 20)


async def chunks(*bodies: bytes) -> AsyncIterator[bytes]:
    for body in bodies:
        yield body


def piece(offset: int, *bodies: bytes) -> UploadChunk:
    return UploadChunk(offset=offset, chunks=chunks(*bodies))


async def half_way(fake: FakeBusServicesRig) -> Upload:
    upload = await fake.uploads.create("ann", WANTED)
    return await fake.uploads.append("ann", upload.id, piece(0, BODY[:HALF]))


async def test_it_goes_on_after_a_restart(fake: FakeBusServicesRig):
    upload = await half_way(fake)
    again = restarted(fake)
    assert (await again.status("ann", upload.id)).offset == HALF
    ended = await again.append("ann", upload.id, piece(HALF, BODY[HALF:]))
    assert (ended.is_stored, ended.final_sha256) == (True, SHA)
    assert [block async for block in fake.store.read(SHA)] == [BODY]
    assert not fake.upload_states.data_path(upload.key).exists()


async def test_bytes_that_were_never_acknowledged_do_not_count(fake: FakeBusServicesRig):
    upload = await half_way(fake)
    with fake.upload_states.data_path(upload.key).open("ab") as file:
        file.write(b"\0" * 5000)  # a state that a power cut can leave
    again = restarted(fake)
    assert (await again.status("ann", upload.id)).offset == HALF
    assert (await again.append("ann", upload.id, piece(HALF, BODY[HALF:]))).is_stored


async def test_one_long_request_is_made_durable_on_its_way(fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unfinished_uploads, "CHECKPOINT_BYTES", BLOCK_BYTES)
    fake.uploads.limit = 3 * BLOCK_BYTES
    upload = await fake.uploads.create(
        "ann", UploadParameters(name="a", media_type="video/mp4", length=3 * BLOCK_BYTES)
    )

    async def durable() -> int:
        stored = fake.upload_states.load(upload.key)
        assert stored is not None
        return stored.offset

    async def watched() -> AsyncIterator[bytes]:
        yield bytes(BLOCK_BYTES)
        await wait_for(durable)
        yield bytes(BLOCK_BYTES)

    after = await fake.uploads.append("ann", upload.id, UploadChunk(offset=0, chunks=watched()))
    assert (after.offset, await durable()) == (2 * BLOCK_BYTES, 2 * BLOCK_BYTES)


@pytest.mark.parametrize("lost", ["the digest", "the asset", "only the note"])
async def test_what_a_crash_kept_from_becoming_an_asset_becomes_one(fake: FakeBusServicesRig, lost: str):
    upload = await half_way(fake)
    part = UploadAppender(fake.upload_states, upload, None)
    part.write(BODY[HALF:])
    part.save(final_sha256=None if lost == "the digest" else SHA)
    part.close()
    if lost == "only the note":
        await fake.assets.import_file("ann", fake.upload_states.data_path(upload.key), SHA, "a.mp4", "video/mp4")
    again = restarted(fake)
    await again.sweep()
    assert await fake.assets.find_missing("ann", [SHA]) == ()
    assert (await again.status("ann", upload.id)).is_stored


async def test_the_bytes_are_an_asset_even_where_a_tombstone_said_otherwise(fake: FakeBusServicesRig):
    await fake.put("ann", BODY)
    await fake.assets.delete("ann", SHA)
    upload = await half_way(fake)
    assert (await fake.uploads.append("ann", upload.id, piece(HALF, BODY[HALF:]))).is_stored
    assert await fake.store.stat(SHA) is not None
    assert await fake.bus.tombstones.get(SHA) is None


async def test_a_body_that_breaks_off_has_brought_what_it_brought(fake: FakeBusServicesRig):
    upload = await fake.uploads.create("ann", WANTED)

    async def failing() -> AsyncIterator[bytes]:
        yield BODY[:HALF]
        raise OSError("not the client's doing")

    with pytest.raises(OSError, match="not the client"):
        await fake.uploads.append("ann", upload.id, UploadChunk(offset=0, chunks=failing()))
    at = (await fake.uploads.status("ann", upload.id)).offset
    assert (await fake.uploads.append("ann", upload.id, piece(at, BODY[at:]))).final_sha256 == SHA


async def test_an_owners_open_uploads_are_counted_and_ended_together(fake: FakeBusServicesRig):
    uploads = restarted(fake, UploadSettings(max_open=2))
    first, _ = [await uploads.create("ann", WANTED) for _ in range(2)]
    bobs = await uploads.create("bob", WANTED)
    with pytest.raises(ProblemError, match="quota_exceeded"):
        await uploads.create("ann", WANTED)
    await uploads.append("ann", first.id, piece(0, BODY))
    await uploads.create("ann", WANTED)  # an upload that became an asset is not open
    assert await uploads.remove_all("ann") == 3
    assert fake.upload_states.list_keys() == [UploadKey("bob", bobs.id)]


async def test_the_owners_quota_is_asked_before_a_byte_is_taken(fake: FakeBusServicesRig):
    fake.limits["ann"] = OwnerQuotaOverride(bytes=len(BODY) - 1)
    with pytest.raises(ProblemError, match="quota_exceeded"):
        await fake.uploads.create("ann", WANTED)
    later = await fake.uploads.create("ann", UploadParameters(name="a", media_type="video/mp4"))
    with pytest.raises(ProblemError, match="quota_exceeded"):
        await fake.uploads.append("ann", later.id, UploadChunk(offset=0, chunks=chunks(BODY), length=len(BODY)))
    with pytest.raises(ProblemError, match="quota_exceeded"):
        await fake.uploads.append("ann", later.id, UploadChunk(offset=0, chunks=chunks(BODY)))
    assert (await fake.uploads.status("ann", later.id)).offset == 0
    fake.limits["ann"] = OwnerQuotaOverride(bytes=len(BODY))
    await fake.uploads.create("ann", WANTED)


async def test_every_piece_puts_the_end_off(fake: FakeBusServicesRig):
    upload = await half_way(fake)
    fake.time.advance(hours=20)
    later = await fake.uploads.append("ann", upload.id, piece(HALF, BODY[HALF : HALF + 1]))
    assert later.expires - upload.expires > timedelta(hours=19)
    fake.time.advance(hours=23)
    await restarted(fake).sweep()
    assert (await fake.uploads.status("ann", upload.id)).offset == HALF + 1


async def test_bytes_without_a_state_are_swept(tmp_path: Path, fake: FakeBusServicesRig):
    orphan = fake.upload_states.data_path(UploadKey("ann", "orphan"))
    orphan.write_bytes(b"x")
    await fake.uploads.sweep()
    assert not orphan.exists()


def test_a_state_that_cannot_be_read_says_so(tmp_path: Path):
    partials = UploadStateStore(tmp_path)
    (tmp_path / "ann.one.json").write_text("{")
    with pytest.raises(StoreBroken, match="start it again"):
        partials.load(UploadKey("ann", "one"))
    with pytest.raises(ValueError, match="is not an upload key"):
        partials.load(UploadKey("ann", "../one"))


class Sender:
    """A body whose chunks come when the test sends them."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[bytes](10)
        self.started = anyio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        self.started.set()
        async with self._receive:
            async for body in self._receive:
                yield body

    async def send(self, body: bytes) -> None:
        await self._send.send(body)
        await anyio.wait_all_tasks_blocked()

    def end(self) -> None:
        self._send.close()


async def append_or_tell(uploads: UploadService, upload: Upload, chunk: UploadChunk, told: list[str]) -> None:
    try:
        told.append(str((await uploads.append("ann", upload.id, chunk)).offset))
    except ProblemError as problem:
        told.append(problem.code)


async def test_an_upload_is_removed_under_the_request_that_sends(fake: FakeBusServicesRig):
    upload, sender, told = await fake.uploads.create("ann", WANTED), Sender(), []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append_or_tell, fake.uploads, upload, UploadChunk(offset=0, chunks=sender.chunks()), told)
        await sender.started.wait()
        await sender.send(BODY[:HALF])
        await fake.uploads.remove("ann", upload.id)
        assert told == [str(HALF)], "the writer had ended, and its bytes were counted, before the upload went"
    sender.end()
    assert fake.upload_states.list_keys() == []
    with pytest.raises(ProblemError, match="not_found"):
        await fake.uploads.status("ann", upload.id)


async def test_all_uploads_are_removed_under_the_requests_that_send(fake: FakeBusServicesRig):
    await half_way(fake)
    upload, sender, told = await fake.uploads.create("ann", WANTED), Sender(), []
    uploads = restarted(fake)  # does not know the first upload
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append_or_tell, uploads, upload, UploadChunk(offset=0, chunks=sender.chunks()), told)
        await sender.started.wait()
        await sender.send(BODY[:HALF])
        assert await uploads.remove_all("ann") == 2
        assert told == [str(HALF)], "the writer had ended before its upload went"
    sender.end()
    assert fake.upload_states.list_keys() == []


async def test_a_request_that_waited_for_a_removed_upload_finds_none(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
):
    upload, told = await half_way(fake), []
    entry = await fake.uploads._get_upload("ann", upload.id)
    async with anyio.create_task_group() as tasks, entry.writer.acquire():
        tasks.start_soon(append_or_tell, fake.uploads, upload, piece(HALF, BODY[HALF:]), told)
        await anyio.wait_all_tasks_blocked()
        await fake.uploads._remove(upload.key)
    assert told == ["not_found"]
    assert await fake.store.stat(SHA) is None


async def test_an_upload_that_is_sent_to_does_not_expire(fake: FakeBusServicesRig):
    upload, sender, told = await fake.uploads.create("ann", WANTED), Sender(), []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append_or_tell, fake.uploads, upload, UploadChunk(offset=0, chunks=sender.chunks()), told)
        await sender.started.wait()
        fake.time.advance(hours=25)
        await fake.uploads.sweep()
        await sender.send(BODY)
        sender.end()
    assert told == [str(len(BODY))]
    assert await fake.store.stat(SHA) is not None


async def test_an_upload_expires_at_the_named_moment(fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch):
    upload = await half_way(fake)
    monkeypatch.setattr(fake.uploads, "_clock", lambda: upload.expires - timedelta(microseconds=1))
    assert (await fake.uploads.status("ann", upload.id)).offset == HALF
    monkeypatch.setattr(fake.uploads, "_clock", lambda: upload.expires)
    with pytest.raises(ProblemError, match="not_found"):
        await fake.uploads.status("ann", upload.id)
    assert fake.upload_states.list_keys() == []


async def test_a_chunk_may_be_as_large_as_what_is_missing(fake: FakeBusServicesRig):
    upload = await half_way(fake)
    missing = len(BODY) - HALF
    with pytest.raises(ProblemError, match="body_too_large"):
        await fake.uploads.append("ann", upload.id, UploadChunk(offset=HALF, chunks=chunks(), size=missing + 1))
    last = UploadChunk(offset=HALF, chunks=chunks(BODY[HALF:]), size=missing)
    assert (await fake.uploads.append("ann", upload.id, last)).is_stored


async def test_a_length_that_is_named_late_asks_the_quota_for_what_is_missing_alone(fake: FakeBusServicesRig):
    fake.limits["ann"] = OwnerQuotaOverride(bytes=len(BODY) + 1)
    upload = await fake.uploads.create("ann", UploadParameters(name="a", media_type="video/mp4"))
    await fake.uploads.append("ann", upload.id, piece(0, BODY[:HALF]))
    last = UploadChunk(offset=HALF, chunks=chunks(BODY[HALF:]), length=len(BODY))
    assert (await fake.uploads.append("ann", upload.id, last)).is_stored


async def test_a_request_that_is_cut_off_leaves_the_upload_as_the_disk_has_it(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
):
    upload, sender, closed, close = await fake.uploads.create("ann", WANTED), Sender(), [], UploadAppender.close

    def record_close(appender: UploadAppender) -> None:
        close(appender)
        closed.append(appender.upload.key)

    monkeypatch.setattr(UploadAppender, "close", record_close)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fake.uploads.append, "ann", upload.id, UploadChunk(offset=0, chunks=sender.chunks()))
        await sender.started.wait()
        await sender.send(BODY[:HALF])
        tasks.cancel_scope.cancel()
    sender.end()
    at = (await fake.uploads.status("ann", upload.id)).offset
    assert at == (await restarted(fake).status("ann", upload.id)).offset
    assert closed == [upload.key]
    assert (await fake.uploads.append("ann", upload.id, piece(at, BODY[at:]))).final_sha256 == SHA


async def test_a_writer_is_silent_only_while_it_waits_for_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edge.assets.uploads.WRITER_SILENCE_TIMEOUT_S", 0.0)
    turn, sender = WriterTurn(), Sender()
    assert not turn.is_silent
    reader = turn.read_until_preempted(sender.chunks())
    await sender.send(b"first")
    assert await anext(reader) == b"first"
    assert not turn.is_silent  # it writes what it has
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anext, reader, b"")
        await anyio.wait_all_tasks_blocked()
        assert turn.is_silent
        turn.preempt()
    sender.end()


async def test_a_writer_that_was_stopped_while_it_wrote_reads_no_more():
    turn = WriterTurn()
    reader = turn.read_until_preempted(chunks(b"first", b"second"))
    assert await anext(reader) == b"first"
    turn.preempt()
    assert [body async for body in reader] == []


async def test_an_upload_goes_on_after_a_restart_at_its_first_byte(fake: FakeBusServicesRig):
    upload = await fake.uploads.create("ann", WANTED)
    await fake.uploads.append("ann", upload.id, piece(0, BODY[:1]))
    ended = await restarted(fake).append("ann", upload.id, piece(1, BODY[1:]))
    assert (ended.is_stored, ended.final_sha256) == (True, SHA)


async def test_an_id_that_is_no_token_is_not_found(fake: FakeBusServicesRig):
    with pytest.raises(ProblemError, match="not_found"):
        await fake.uploads.status("ann", "../one")


@pytest.mark.parametrize("first", [None, len(BODY)])
async def test_a_length_is_named_once_and_not_below_the_offset(fake: FakeBusServicesRig, first: int | None):
    upload = await fake.uploads.create("ann", UploadParameters(name="a", media_type="video/mp4", length=first))
    await fake.uploads.append("ann", upload.id, piece(0, BODY[:HALF]))
    for length in (HALF - 1, *([] if first is None else [first + 1])):
        with pytest.raises(ProblemError, match="input_invalid"):
            await fake.uploads.append("ann", upload.id, UploadChunk(offset=HALF, chunks=chunks(), length=length))
    last = UploadChunk(offset=HALF, chunks=chunks(BODY[HALF:]), length=len(BODY))
    assert (await fake.uploads.append("ann", upload.id, last)).final_sha256 == SHA


async def test_a_length_that_is_the_offset_completes_the_upload(fake: FakeBusServicesRig):
    upload = await fake.uploads.create("ann", UploadParameters(name="a", media_type="video/mp4"))
    await fake.uploads.append("ann", upload.id, piece(0, BODY))
    ended = await fake.uploads.append(
        "ann", upload.id, UploadChunk(offset=len(BODY), chunks=chunks(), length=len(BODY))
    )
    assert (ended.is_stored, ended.final_sha256) == (True, SHA)


def test_the_limits_are_as_the_pages_say():
    assert UploadSettings() == UploadSettings(ttl_s=24 * 3600.0, max_open=1000)
