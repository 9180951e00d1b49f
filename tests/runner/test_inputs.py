"""The input cache: one download for many jobs, eviction that spares files in use, and verified contents."""

import errno
import os
import shutil
import stat
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

from runner.assets.cache import CacheDir, DiskShort, InputCache, verification_mtime_ns
from runner.assets.port import AssetGone, EdgeUnavailable
from schemas.asset import InvalidDigest
from tests.support.asset_server import sha256_of
from tests.support.fake_asset_fetch import FakeAssetFetch

A, B, C = b"a" * 1000, b"b" * 1000, b"c" * 1000


@pytest.fixture
def source() -> FakeAssetFetch:
    return FakeAssetFetch(A, B, C)


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str], Path]:
    """Return the path of an input of a job, which is in use until its folder is removed."""

    def make(name: str) -> Path:
        (tmp_path / "jobs" / name).mkdir(parents=True, exist_ok=True)
        return tmp_path / "jobs" / name / "in.mp4"

    return make


def cache_of(tmp_path: Path, source: FakeAssetFetch, max_bytes: int = 10_000, start: int = 1) -> InputCache:
    ticks = count(start)
    return InputCache(tmp_path / "cache", max_bytes, source, now_ns=lambda: next(ticks) * 10**9)


async def test_the_second_job_needs_no_fetch(
    tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path]
) -> None:
    cache = cache_of(tmp_path, source)
    await cache.stage("ann", sha256_of(A), job("1"))
    await cache.stage("bob", sha256_of(A), job("2"))
    assert job("1").read_bytes() == job("2").read_bytes() == A
    assert source.fetched == [sha256_of(A)]
    assert stat.S_IMODE(job("1").stat().st_mode) == 0o444
    assert job("1").samefile(job("2")), "a link costs no disk"


async def test_many_jobs_at_once_are_one_fetch(
    tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path]
) -> None:
    cache = cache_of(tmp_path, source)
    source.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for n in range(5):
            tasks.start_soon(cache.stage, "ann", sha256_of(A), job(str(n)))
        await source.asked.wait()
        source.gate.set()
    assert source.fetched == [sha256_of(A)]
    assert all(job(str(n)).read_bytes() == A for n in range(5))


async def test_when_the_fetching_job_is_cancelled_the_waiting_one_goes_on(
    tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path]
) -> None:
    cache = cache_of(tmp_path, source)
    source.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        first = anyio.CancelScope()

        async def cancelled() -> None:
            with first:
                await cache.stage("ann", sha256_of(A), job("1"))

        tasks.start_soon(cancelled)
        await source.asked.wait()
        tasks.start_soon(cache.stage, "ann", sha256_of(A), job("2"))
        first.cancel()
        source.gate.set()
    assert source.fetched == [sha256_of(A), sha256_of(A)]
    assert not job("1").exists()
    assert job("2").read_bytes() == A


async def test_a_failed_fetch_is_reported_and_tried_anew(
    tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path]
) -> None:
    cache = cache_of(tmp_path, source)
    source.fault = EdgeUnavailable("cut")
    with pytest.raises(EdgeUnavailable):
        await cache.stage("ann", sha256_of(A), job("1"))
    await cache.stage("ann", sha256_of(A), job("1"))
    with pytest.raises(AssetGone):
        await cache.stage("ann", sha256_of(b"never uploaded"), job("2"))
    assert job("1").read_bytes() == A


async def test_the_least_recently_used_goes_first(
    tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path]
) -> None:
    cache = cache_of(tmp_path, source, max_bytes=2000)
    for n, body in enumerate((A, B, A)):  # A is used after B
        await cache.stage("ann", sha256_of(body), job(str(n)))
        shutil.rmtree(job(str(n)).parent)
    await cache.stage("ann", sha256_of(C), job("c"))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted([sha256_of(A), sha256_of(C)])


async def test_what_a_job_uses_is_never_evicted(
    tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path]
) -> None:
    cache = cache_of(tmp_path, source, max_bytes=0)
    await cache.stage("ann", sha256_of(A), job("a"))
    await cache.stage("ann", sha256_of(B), job("b"))
    assert len(list((tmp_path / "cache").iterdir())) == 2, "running jobs may exceed the cap"
    shutil.rmtree(job("a").parent)
    await cache.stage("ann", sha256_of(C), job("c"))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted([sha256_of(B), sha256_of(C)])


async def test_a_restart_forgets_nothing(tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path]) -> None:
    await cache_of(tmp_path, source).stage("ann", sha256_of(A), job("1"))
    await cache_of(tmp_path, source, start=50).stage("ann", sha256_of(A), job("2"))
    assert source.fetched == [sha256_of(A)]


def shelf_of(tmp_path: Path, reserve: int = 0) -> CacheDir:
    return CacheDir(tmp_path / "cache", 10_000, reserve, lambda: 1)


@pytest.mark.parametrize(
    ("damage", "fetches"),
    [
        (lambda path: path.write_bytes(b"x" * 1000), 2),  # written over
        (lambda path: os.truncate(path, 10), 2),  # cut
        (
            lambda path: [os.truncate(path, 0), os.utime(path, ns=(1, verification_mtime_ns(sha256_of(A), 1000)))],  # type: ignore[func-returns-value]
            2,
        ),  # lost in a power cut
        (lambda path: os.utime(path, ns=(1, 1)), 1),  # touched: suspect, hashed, found whole
    ],
    ids=["written", "cut", "power", "touched"],
)
async def test_a_broken_seal_is_looked_into(
    tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path], damage: Callable[[Path], object], fetches: int
) -> None:
    cache = cache_of(tmp_path, source)
    await cache.stage("ann", sha256_of(A), job("1"))
    kept = tmp_path / "cache" / sha256_of(A)
    kept.chmod(0o644)
    damage(kept)
    await cache.stage("ann", sha256_of(A), job("2"))
    assert job("2").read_bytes() == A
    assert len(source.fetched) == fetches
    assert kept.stat().st_mtime_ns == verification_mtime_ns(sha256_of(A), 1000)


async def test_a_disk_without_room_is_reported_before_the_fetch(
    tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path]
) -> None:
    cache = InputCache(tmp_path / "cache", 10_000, source, reserve_bytes=1 << 60)
    with pytest.raises(DiskShort, match="free some space") as raised:
        await cache.stage("ann", sha256_of(A), job("1"))
    assert raised.value.errno == errno.ENOSPC
    assert source.fetched == []


async def test_a_dropped_asset_is_fetched_again_and_a_running_job_keeps_it(
    tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path]
) -> None:
    cache = cache_of(tmp_path, source)
    await cache.stage("ann", sha256_of(A), job("1"))
    await cache.drop([sha256_of(A), sha256_of(B)])
    assert list((tmp_path / "cache").iterdir()) == []
    assert job("1").read_bytes() == A
    await cache.stage("ann", sha256_of(A), job("2"))
    assert len(source.fetched) == 2


async def test_across_file_systems_the_job_gets_a_copy(
    tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_disk(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "cross-device link")

    monkeypatch.setattr(os, "link", another_disk)
    await cache_of(tmp_path, source).stage("ann", sha256_of(A), job("1"))
    assert job("1").read_bytes() == A
    assert stat.S_IMODE(job("1").stat().st_mode) == 0o444
    assert not job("1").samefile(tmp_path / "cache" / sha256_of(A))


def test_no_text_but_a_digest_becomes_a_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidDigest):
        shelf_of(tmp_path).part_path("../../etc/passwd")


def test_an_unfinished_download_makes_room_too_unless_it_is_under_way(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path)
    shelf.part_path(sha256_of(A)).write_bytes(bytes(6000))
    shelf.part_path(sha256_of(B)).write_bytes(bytes(3000))
    shelf.make_room({sha256_of(B): 6000}, {sha256_of(B)})
    assert not shelf.part_path(sha256_of(A)).exists()
    assert shelf.part_path(sha256_of(B)).exists()


async def test_a_name_is_asked_for_once_and_anew_when_the_asset_was_deleted(tmp_path: Path) -> None:
    source = FakeAssetFetch(A)
    cache = cache_of(tmp_path, source)
    await cache.prefetch("ann", sha256_of(A))
    assert [await cache.filename_suffix("ann", sha256_of(A)), await cache.filename_suffix("bob", sha256_of(A))] == [
        ".mp4"
    ] * 2
    assert source.asked_about == [("ann", sha256_of(A)), ("bob", sha256_of(A))]
    await cache.drop([sha256_of(A)])
    await cache.filename_suffix("ann", sha256_of(A))
    assert len(source.asked_about) == 3


async def test_a_file_fetched_ahead_is_there_for_its_job(
    tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path]
) -> None:
    cache = cache_of(tmp_path, source)
    await cache.prefetch("ann", sha256_of(A))
    await cache.prefetch("ann", sha256_of(A))
    assert source.fetched == [sha256_of(A)]
    await cache.stage("ann", sha256_of(A), job("1"))
    assert source.fetched == [sha256_of(A)]


async def test_a_failed_download_takes_no_room(
    tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path]
) -> None:
    cache = cache_of(tmp_path, source, max_bytes=2000)
    source.fault = EdgeUnavailable("cut")
    with pytest.raises(EdgeUnavailable):
        await cache.prefetch("ann", sha256_of(A))
    await cache.prefetch("ann", sha256_of(B))
    await cache.prefetch("ann", sha256_of(C))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted([sha256_of(B), sha256_of(C)])


async def test_an_asset_deleted_during_its_download_does_not_stay(tmp_path: Path, source: FakeAssetFetch) -> None:
    cache = cache_of(tmp_path, source)
    source.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cache.prefetch, "ann", sha256_of(A))
        await source.asked.wait()
        (tmp_path / "cache" / sha256_of(A)).with_suffix(".part").unlink(missing_ok=True)
        tasks.start_soon(cache.drop, [sha256_of(A)])
        await anyio.wait_all_tasks_blocked()
        source.gate.set()
    assert list((tmp_path / "cache").iterdir()) == []


async def test_a_name_is_forgotten_with_its_asset_though_no_file_is_here(tmp_path: Path) -> None:
    source = FakeAssetFetch(A, B)
    cache = cache_of(tmp_path, source)
    for body in (A, B):
        await cache.filename_suffix("ann", sha256_of(body))
    await cache.drop([sha256_of(A)])
    for body in (A, B):
        await cache.filename_suffix("ann", sha256_of(body))
    assert source.asked_about == [("ann", sha256_of(A)), ("ann", sha256_of(B)), ("ann", sha256_of(A))]


async def test_a_few_names_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.assets.cache._INFO_LIMIT", 2)
    source = FakeAssetFetch(A, B, C)
    cache = cache_of(tmp_path, source)
    for body in (A, B, A, C, C, A):
        await cache.filename_suffix("ann", sha256_of(body))
    assert [digest for _, digest in source.asked_about] == [sha256_of(body) for body in (A, B, C, A)]


def test_a_file_whose_mark_is_whole_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = shelf_of(tmp_path)
    fill(shelf, tmp_path)
    monkeypatch.setattr("runner.assets.cache.hash_file", lambda path: pytest.fail(f"{path} was read"))
    assert shelf.contains(sha256_of(A))


def test_what_has_arrived_of_a_download_counts_once_against_the_limit(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path)
    shelf.part_path(sha256_of(A)).write_bytes(bytes(4000))
    shelf.part_path(sha256_of(B)).write_bytes(bytes(3000))
    shelf.make_room({sha256_of(B): 6000}, set())
    assert shelf.part_path(sha256_of(A)).exists()
    shelf.make_room({sha256_of(B): 6001}, set())
    assert not shelf.part_path(sha256_of(A)).exists()


def test_a_damaged_file_is_removed_where_it_is_found(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path)
    shelf.part_path(sha256_of(A)).write_bytes(A)
    shelf.add(sha256_of(A))
    assert shelf.contains(sha256_of(A))
    path = tmp_path / "cache" / sha256_of(A)
    path.chmod(0o644)
    path.write_bytes(B)
    assert not shelf.contains(sha256_of(A))
    assert not path.exists()


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut must not leave the name and no bytes."""
    shelf, synced, fsync = shelf_of(tmp_path), [], os.fsync
    shelf.part_path(sha256_of(A)).write_bytes(A)

    def record(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, shelf.contains(sha256_of(A))))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    shelf.add(sha256_of(A))
    assert synced == [(f"{sha256_of(A)}.part", False)]


async def test_a_link_that_fails_for_another_reason_is_not_a_copy(
    tmp_path: Path, source: FakeAssetFetch, job: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "link", no_room)
    with pytest.raises(OSError, match="no space"):
        await cache_of(tmp_path, source).stage("ann", sha256_of(A), job("1"))
    assert not job("1").exists()


def set_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))


@pytest.mark.parametrize(("free", "fits"), [(999, False), (1000, True)])
async def test_without_a_reserve_a_file_may_fill_the_disk(
    tmp_path: Path, source: FakeAssetFetch, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    set_free(monkeypatch, free)
    cache = InputCache(tmp_path / "cache", 10_000, source)
    if fits:
        await cache.prefetch("ann", sha256_of(A))
    else:
        with pytest.raises(DiskShort, match="1 bytes short"):
            await cache.prefetch("ann", sha256_of(A))


def fill(shelf: CacheDir, tmp_path: Path) -> list[Path]:
    """Put A, B and C into the cache; A was used first."""
    paths = []
    for used_ns, body in enumerate((A, B, C), 1):
        shelf.part_path(sha256_of(body)).write_bytes(body)
        shelf.add(sha256_of(body))
        paths.append(tmp_path / "cache" / sha256_of(body))
        os.utime(paths[-1], ns=(used_ns * 10**9, paths[-1].stat().st_mtime_ns))
    return paths


def test_a_short_disk_evicts_no_more_than_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = shelf_of(tmp_path, reserve=500)
    paths = fill(shelf, tmp_path)
    set_free(monkeypatch, 0)
    shelf.make_room({sha256_of(b"coming"): 1500}, set())
    assert [path.exists() for path in paths] == [False, False, True]


def test_a_file_that_is_dropped_while_room_is_made_counts_as_evicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = shelf_of(tmp_path)
    first, second, third = fill(shelf, tmp_path)

    def drop_first(_: object) -> SimpleNamespace:
        first.unlink()
        return SimpleNamespace(f_bavail=0, f_frsize=1)

    monkeypatch.setattr(os, "statvfs", drop_first)
    shelf.make_room({sha256_of(b"coming"): 1000}, set())
    assert (second.exists(), third.exists()) == (True, True)


@pytest.mark.parametrize(("free", "fits"), [(3499, False), (3500, True)])
def test_what_has_arrived_of_a_download_needs_no_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    shelf = shelf_of(tmp_path, reserve=500)
    shelf.part_path(sha256_of(B)).write_bytes(bytes(3000))
    set_free(monkeypatch, free)
    if fits:
        shelf.make_room({sha256_of(B): 6000}, set())
    else:
        with pytest.raises(DiskShort, match="1 bytes short"):
            shelf.make_room({sha256_of(B): 6000}, set())


def test_the_mark_of_a_verified_file_by_hand() -> None:
    """Another formula would have every file of an older cache hashed again."""
    assert verification_mtime_ns("0000001" + "0" * 57, 5) == (16 + 5) * 10**9
    assert verification_mtime_ns("ffffffff" + "0" * 56, 1) == 0
    assert verification_mtime_ns("ffffffff" + "0" * 56, 0) == (2**31 - 1) * 10**9
    assert verification_mtime_ns("7fffffff" + "f" * 56, 0) == (2**31 - 1) * 10**9
