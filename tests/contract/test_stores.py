"""The contract of every asset store: whole files or none, verified bodies, and a trash that can be restored."""

import hashlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import httpx2
import pytest

from edge.store.directory import open_directory
from edge.store.port import BLOCK_BYTES, AssetStore, AssetTooLarge, DigestMismatch, SharedObjects
from edge.store.remote import open_remote
from schemas.asset import Digest
from tests.support.fake_store import FakeStore
from tests.support.s3_buckets import create_bucket

BODY = b"a face and a voice " * 200_000  # 3.8 MB: several blocks and a rest
SHA = hashlib.sha256(BODY).hexdigest()
EMPTY = hashlib.sha256(b"").hexdigest()
OTHER = "0" * 64
LIMIT = 1 << 30


async def body(data: bytes = BODY, chunk: int = 65536) -> AsyncIterator[bytes]:
    for at in range(0, len(data), chunk):
        yield data[at : at + chunk]


async def whole(store: AssetStore, sha256: Digest = SHA, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([block async for block in store.read(sha256, start, stop)])


@asynccontextmanager
async def memory(_: Path) -> AsyncIterator[AssetStore]:
    yield FakeStore()


@asynccontextmanager
async def directory(root: Path) -> AsyncIterator[AssetStore]:
    async with open_directory(root) as store:
        yield store
        left = [path for path in (root / "tmp").rglob("*") if path.is_file() and path.name != "lock"]
        assert left == [], "a write left something in the temporary folder"


@asynccontextmanager
async def remote(scratch: Path) -> AsyncIterator[AssetStore]:
    with create_bucket() as url:
        async with open_remote(url, scratch) as store:
            yield store
    left = [path async for path in anyio.Path(scratch).iterdir()]
    assert left == [], "a write left something in the scratch folder"


@pytest.fixture(params=[memory, directory, remote], ids=["memory", "directory", "remote"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: object) -> AsyncIterator[AssetStore]:
    opened: Callable[[Path], AbstractAsyncContextManager[AssetStore]] = request.param
    async with opened(tmp_path / "store") as store:
        yield store


@pytest.mark.parametrize("expected", [SHA, None])
async def test_a_body_is_kept_under_its_digest(store: AssetStore, expected: Digest | None) -> None:
    stored = await store.write(body(), expected, LIMIT)
    assert (stored.sha256, stored.bytes) == (SHA, len(BODY))
    assert await store.stat(SHA) == stored
    assert await whole(store) == BODY


async def test_an_empty_body_is_a_file_too(store: AssetStore) -> None:
    assert (await store.write(body(b""), EMPTY, 0)).bytes == 0
    assert await whole(store, EMPTY) == b""


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 1), (5, 5), (BLOCK_BYTES - 1, BLOCK_BYTES + 1), (len(BODY) - 3, None), (10, len(BODY) + 99), (99, 9)],
)
async def test_a_range_is_cut_as_python_cuts(store: AssetStore, start: int, stop: int | None) -> None:
    await store.write(body(), SHA, LIMIT)
    assert await whole(store, SHA, start, stop) == BODY[start:stop]


async def test_what_is_not_there_is_said_so(store: AssetStore) -> None:
    assert await store.stat(OTHER) is None
    assert [await store.trash(OTHER), await store.restore(OTHER), await store.erase(OTHER)] == [False] * 3
    with pytest.raises(KeyError):
        await whole(store, OTHER)


async def test_a_wrong_digest_leaves_nothing(store: AssetStore) -> None:
    with pytest.raises(DigestMismatch) as raised:
        await store.write(body(), OTHER, LIMIT)
    assert (raised.value.expected, raised.value.got) == (OTHER, SHA)
    assert await store.stat(OTHER) is None
    assert await store.stat(SHA) is None


async def test_a_known_digest_does_not_excuse_a_wrong_body(store: AssetStore) -> None:
    await store.write(body(), SHA, LIMIT)
    with pytest.raises(DigestMismatch):
        await store.write(body(b"something else"), SHA, LIMIT)
    assert await whole(store) == BODY


async def test_a_body_over_its_limit_is_not_read_to_the_end(store: AssetStore) -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 65536
            yield bytes(65536)

    with pytest.raises(AssetTooLarge):
        await store.write(endless(), None, 3 * BLOCK_BYTES)
    assert given <= 5 * BLOCK_BYTES


async def test_a_body_of_exactly_the_limit_passes(store: AssetStore) -> None:
    assert (await store.write(body(), SHA, len(BODY))).bytes == len(BODY)
    with pytest.raises(AssetTooLarge):
        await store.write(body(), SHA, len(BODY) - 1)


async def test_a_cut_body_leaves_nothing_and_is_reported_as_it_was(store: AssetStore) -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield BODY[: 2 * BLOCK_BYTES]
        raise ConnectionResetError("the client went away")

    with pytest.raises(ConnectionResetError, match="went away"):
        await store.write(cut(), SHA, LIMIT)
    assert await store.stat(SHA) is None


async def test_a_cancelled_write_leaves_nothing(store: AssetStore) -> None:
    async with anyio.create_task_group() as tasks:

        async def stalls() -> AsyncIterator[bytes]:
            yield BODY[: 2 * BLOCK_BYTES]
            tasks.cancel_scope.cancel()
            await anyio.sleep_forever()

        tasks.start_soon(store.write, stalls(), SHA, LIMIT)
    assert await store.stat(SHA) is None


async def test_writers_of_one_digest_do_not_meet(store: AssetStore) -> None:
    async with anyio.create_task_group() as tasks:
        for chunk in (1000, 65536, BLOCK_BYTES, len(BODY)):
            tasks.start_soon(store.write, body(chunk=chunk), SHA, LIMIT)
    assert await whole(store) == BODY


async def test_trash_hides_restore_brings_back_erase_ends(store: AssetStore) -> None:
    await store.write(body(), SHA, LIMIT)
    assert await store.trash(SHA)
    assert await store.stat(SHA) is None
    assert (await store.survey()).trashed == (SHA,)
    assert await store.restore(SHA)
    assert await whole(store) == BODY
    assert await store.trash(SHA)
    assert await store.erase(SHA)
    assert not await store.restore(SHA)
    assert (await store.survey()).trashed == ()


async def test_erase_never_touches_what_is_not_in_the_trash(store: AssetStore) -> None:
    await store.write(body(), SHA, LIMIT)
    assert not await store.erase(SHA)
    assert await whole(store) == BODY


async def test_bytes_in_the_trash_are_written_again(store: AssetStore) -> None:
    await store.write(body(), SHA, LIMIT)
    await store.trash(SHA)
    await store.write(body(), SHA, LIMIT)
    assert await whole(store) == BODY
    await store.erase(SHA)
    assert await whole(store) == BODY


@pytest.mark.parametrize("then_erase", [False, True])
async def test_a_body_verified_while_its_file_is_deleted_is_there_afterwards(
    store: AssetStore, then_erase: bool
) -> None:
    await store.write(body(), SHA, LIMIT)

    async def deleted_meanwhile() -> AsyncIterator[bytes]:
        yield BODY[:BLOCK_BYTES]
        await store.trash(SHA)
        if then_erase:
            await store.erase(SHA)
        yield BODY[BLOCK_BYTES:]

    await store.write(deleted_meanwhile(), SHA, LIMIT)
    assert await whole(store) == BODY


async def test_a_reader_finishes_what_it_began(store: AssetStore) -> None:
    await store.write(body(), SHA, LIMIT)
    reading = store.read(SHA)
    first = await anext(reading)
    await store.trash(SHA)
    await store.erase(SHA)
    assert first + b"".join([block async for block in reading]) == BODY


async def test_the_fingerprint_stays(store: AssetStore) -> None:
    before = await store.survey()
    await store.write(body(), SHA, LIMIT)
    after = await store.survey()
    assert before.fingerprint == after.fingerprint != ""


@pytest.mark.parametrize("held", [False, True])
async def test_a_file_of_this_machine_is_taken_over_and_stays(store: AssetStore, tmp_path: Path, held: bool) -> None:
    path = tmp_path / "whole"
    path.write_bytes(BODY)
    if held:
        await store.write(body(), SHA, LIMIT)
    for _ in range(2):
        assert (await store.import_file(path, SHA)).bytes == len(BODY)
    assert path.read_bytes() == BODY
    path.unlink()
    assert await whole(store) == BODY


async def test_a_link_is_where_the_bytes_are(store: AssetStore) -> None:
    await store.write(body(), SHA, LIMIT)
    link = await store.presign_url(SHA, timedelta(minutes=5))
    if link is None:  # the edge passes the bytes through
        assert await whole(store) == BODY
        return
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
        part = await client.get(link, headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, BODY[5:10])


@asynccontextmanager
async def folder_objects(root: Path) -> AsyncIterator[AssetStore]:
    async with open_directory(root) as store:
        yield store


@pytest.fixture(params=[folder_objects, remote], ids=["directory", "remote"])
async def objects(
    request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: object
) -> AsyncIterator[SharedObjects]:
    opened: Callable[[Path], AbstractAsyncContextManager[AssetStore]] = request.param
    async with opened(tmp_path / "store") as store:
        found = store.upload_objects()
        assert found is not None
        yield found


async def test_a_shared_object_is_created_once(objects: SharedObjects) -> None:
    bodies = [bytes([number]) * 1000 for number in range(8)]

    def create(body: bytes) -> bytes | None:
        return body if objects.create("ann/one/at-0", body) else None

    with ThreadPoolExecutor(len(bodies)) as threads:
        created = [body for body in threads.map(create, bodies) if body is not None]
    assert [objects.read("ann/one/at-0")] == created
    assert not objects.create("ann/one/at-0", created[0])


async def test_shared_objects_are_listed_by_folder(objects: SharedObjects) -> None:
    for name in ("ann/one/a", "ann/two/a", "anna/one/a"):
        objects.create(name, name.encode())
    listed = objects.list("ann")
    assert [(entry.name, entry.bytes) for entry in listed] == [("ann/one/a", 9), ("ann/two/a", 9)]
    assert [entry.name for entry in objects.list("ann/one")] == ["ann/one/a"]
    assert len(objects.list()) == 3
    assert objects.list("bob") == []
    assert all(entry.modified <= datetime.now(UTC) for entry in listed)


async def test_a_deleted_shared_object_can_be_created_again(objects: SharedObjects) -> None:
    objects.create("ann/one/a", b"before")
    objects.delete(["ann/one/a", "ann/one/other"])
    objects.delete([])
    with pytest.raises(KeyError):
        objects.read("ann/one/a")
    assert objects.list() == []
    assert objects.create("ann/one/a", b"after")
    assert objects.read("ann/one/a") == b"after"
