"""Failures of the folder store: crashes, full disks, other writers, and the order in which bytes become durable."""

import asyncio
import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest

from edge.store.directory import open_directory
from edge.store.port import BLOCK_BYTES, AssetStoreFull, StoreBroken
from schemas.asset import InvalidDigest

SIZE = 9 * BLOCK_BYTES  # past the first write-back
BODY = b"".join(bytes([n % 256]) * 65536 for n in range(SIZE // 65536))
SHA = hashlib.sha256(BODY).hexdigest()
WRITER = Path(__file__).with_name("crash_writer.py")


async def body(data: bytes = BODY) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 65536):
        yield data[at : at + 65536]


def bodies_on_their_way(root: Path) -> list[Path]:
    return [path for path in (root / "tmp").rglob("*") if path.is_file() and path.name != "lock"]


def write_and_die(root: Path, deadly: int) -> bool:
    """Run the crash writer; return whether it reached its end."""
    done = subprocess.run(
        [sys.executable, WRITER, str(root), str(deadly), str(SIZE)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, -9}, done.stderr
    return "stored" in done.stdout


async def test_killed_at_any_call_there_is_nothing_or_the_whole_file(tmp_path: Path) -> None:
    whole = []
    for deadly in range(60):
        root = tmp_path / str(deadly)
        survived = await anyio.to_thread.run_sync(write_and_die, root, deadly)
        async with open_directory(root) as store:
            assert bodies_on_their_way(root) == [], "the dead writer's body was not swept"
            stored = await store.stat(SHA)
            if stored is not None:
                assert b"".join([block async for block in store.read(SHA)]) == BODY
            whole.append(stored is not None)
            await store.write(body(), SHA, SIZE)
        if survived:
            break
    assert survived, "no run reached its end: there are more calls than this test tries"
    assert whole == sorted(whole), "a later death must not lose what an earlier one had"
    assert len(whole) > 15
    assert not whole[0]


async def test_bytes_are_durable_before_the_name_and_the_name_before_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    where = {"write": lambda a: f"/proc/self/fd/{a[0]}", "fsync": lambda a: f"/proc/self/fd/{a[0]}"}

    def record(name: str) -> None:
        real: Callable[..., object] = getattr(os, name)

        def recorded(*args: object) -> object:
            path = Path(where[name](args)).readlink() if name in where else Path(str(args[1]))
            calls.append((name, "temp" if "tmp" in path.parts[len(tmp_path.parts) :] else path.name))
            return real(*args)

        monkeypatch.setattr(os, name, recorded)

    async with open_directory(tmp_path / "store") as store:
        for name in ("write", "fsync", "replace"):
            record(name)
        await store.write(body(), SHA, SIZE)
        monkeypatch.undo()
    assert calls == [("write", "temp")] * 9 + [("fsync", "temp"), ("replace", SHA[2:]), ("fsync", SHA[:2])]


async def test_a_known_body_is_verified_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_directory(tmp_path) as store:
        stored = await store.write(body(), SHA, SIZE)
        assert stored.path is not None
        inode = stored.path.stat().st_ino

        def refuse(*_: object) -> int:
            raise AssertionError("wrote a body that was there already")

        monkeypatch.setattr(os, "write", refuse)
        assert await store.write(body(), SHA, SIZE) == stored
        assert stored.path.stat().st_ino == inode
        assert stored.path.stat().st_nlink == 1


async def test_where_links_are_not_possible_a_known_body_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    async with open_directory(tmp_path) as store:
        await store.write(body(), SHA, SIZE)
        monkeypatch.setattr(os, "link", no_links)
        assert (await store.write(body(), SHA, SIZE)).bytes == SIZE


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, AssetStoreFull), (errno.EDQUOT, AssetStoreFull), (errno.EIO, StoreBroken)]
)
async def test_a_failing_disk_is_reported_in_our_words_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, error: type[Exception]
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    async with open_directory(tmp_path) as store:
        monkeypatch.setattr(os, call, failing)
        with pytest.raises(error):
            await store.write(body(), SHA, SIZE)
        monkeypatch.undo()
        assert bodies_on_their_way(tmp_path) == []
        assert await store.stat(SHA) is None


async def test_a_second_edge_neither_sweeps_a_living_writer_nor_has_another_fingerprint(tmp_path: Path) -> None:
    async with open_directory(tmp_path) as first:

        async def slow() -> AsyncIterator[bytes]:
            yield BODY[:BLOCK_BYTES]
            async with open_directory(tmp_path) as second:
                assert len(bodies_on_their_way(tmp_path)) == 1
                assert (await second.survey()).fingerprint == (await first.survey()).fingerprint
            yield BODY[BLOCK_BYTES:]

        await first.write(slow(), SHA, SIZE)
        assert await first.stat(SHA) is not None


async def test_edges_that_start_together_agree(tmp_path: Path) -> None:
    prints: list[str] = []

    async def start() -> None:
        async with open_directory(tmp_path) as store:
            prints.append((await store.survey()).fingerprint)

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(start)
    assert len(prints) == 8
    assert len(set(prints)) == 1
    assert not list((tmp_path / "tmp").iterdir())


async def test_a_task_cancelled_from_outside_anyio_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, release = threading.Event(), threading.Event()
    real = os.write

    def slow(handle: int, data: bytes) -> int:
        writing.set()
        release.wait(10)
        return real(handle, data)

    async with open_directory(tmp_path) as store:
        monkeypatch.setattr(os, "write", slow)
        task = asyncio.ensure_future(store.write(body(), SHA, SIZE))
        assert await anyio.to_thread.run_sync(writing.wait, 10)
        task.cancel()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bodies_on_their_way(tmp_path) == []
        assert await store.stat(SHA) is None


async def test_no_text_but_a_digest_becomes_a_path(tmp_path: Path) -> None:
    async with open_directory(tmp_path) as store:
        for call in (store.stat, store.trash, store.restore, store.erase):
            with pytest.raises(InvalidDigest):
                await call("../../etc/passwd")
        with pytest.raises(InvalidDigest):
            await store.write(body(), "../x", SIZE)
