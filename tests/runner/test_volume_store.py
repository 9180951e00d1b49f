"""The folder of the volumes: what is complete, what is shared, what a crash leaves, and what is removed for space."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.assets.volume_source import FillFailed, FillFailure
from runner.assets.volume_store import MountNote, VolumeStore, list_volumes, write_mount_note
from schemas.endpoint_parts import Volume, VolumeFile
from tests.support import small_disk
from tests.support.asset_server import sha256_of

MB = 1 << 20
BIG = {name: bytes([number]) * MB for number, name in enumerate("abcde")}


def volume(name: str = "v", **bodies: bytes) -> Volume:
    files = (VolumeFile(path=path.replace("__", "/"), sha256=sha256_of(body)) for path, body in bodies.items())
    return Volume(name=name, path=f"/{name}", files=tuple(files))


MakeStore = Callable[..., VolumeStore]


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    def make(runner: str = "r1", limit: int = 100 * MB, reserve: int = 0) -> VolumeStore:
        jobs = tmp_path / runner / "jobs"
        jobs.mkdir(parents=True, exist_ok=True)
        return VolumeStore(tmp_path / "volumes", jobs, limit, reserve)

    return make


def fill(store: VolumeStore, made: Volume, **bodies: bytes) -> Path:
    """Bring the missing files, and assemble the volume."""
    by_digest = {sha256_of(body): body for body in bodies.values()}
    store.prepare([made])
    for file in store.missing_files(made):
        store.part_path(file.sha256).write_bytes(by_digest[file.sha256])
        store.add(file.sha256)
    store.assemble(made)
    assert store.is_complete(made)
    return store.tree_path(made)


def age(path: Path, days: int) -> None:
    os.utime(path, (time.time(), time.time() - 86_400 * days))


def test_a_volume_has_its_files_read_only_for_everybody_who_may_enter(make_store: MakeStore) -> None:
    store, made = make_store(), volume(model__unet=b"unet", vae=b"vae")
    tree = fill(store, made, one=b"unet", two=b"vae")
    assert (tree / "model" / "unet").read_bytes() == b"unet"
    modes = [path.stat().st_mode & 0o777 for path in (tree, tree / "model", tree / "vae", tree / "model" / "unet")]
    assert modes == [0o755, 0o755, 0o444, 0o444]
    assert tree.parent.stat().st_mode & 0o077 == 0  # an engine opens it for the group of its jobs


def test_volumes_share_the_files_that_they_have_in_common(make_store: MakeStore) -> None:
    store = make_store()
    one, two = volume(a=b"shared", b=b"one"), volume(renamed=b"shared", b=b"two")
    first = fill(store, one, x=b"shared", y=b"one")
    assert [file.path for file in store.missing_files(two)] == ["b"]
    second = fill(store, two, y=b"two")
    assert (first / "a").stat().st_ino == (second / "renamed").stat().st_ino
    assert list_volumes([[one], [two, volume("other", a=b"shared", b=b"one")]]).keys() == {one.digest, two.digest}


def test_a_crash_at_any_point_shows_no_half_volume(make_store: MakeStore) -> None:
    store, made = make_store(), volume(a=b"one", d__b=b"two")
    store.prepare([made])
    a, b = (file.sha256 for file in made.files)
    store.part_path(a).write_bytes(b"on")  # crash while the first file arrives
    assert not store.is_complete(made)
    assert (len(store.missing_files(made)), store.received_bytes(made)) == (2, 2)
    store.part_path(a).write_bytes(b"one")
    store.add(a)  # crash before the second file
    assert [file.sha256 for file in store.missing_files(made)] == [b]
    store.part_path(b).write_bytes(b"two")
    store.add(b)  # crash while it is assembled
    unfinished = store.tree_path(made).with_name(f".{made.digest}")
    unfinished.mkdir()
    (unfinished / "a").hardlink_to(store.folder / "files" / a)
    assert not store.is_complete(made)
    store.assemble(made)
    assert store.is_complete(made)
    assert not unfinished.exists()


@pytest.mark.parametrize("change", ["content", "gone", "cut"])
def test_a_damaged_volume_is_removed_with_the_damaged_file_alone(make_store: MakeStore, change: str) -> None:
    store, made = make_store(), volume(a=b"sound", b=b"damaged")
    tree = fill(store, made, x=b"sound", y=b"damaged")
    (tree / "b").chmod(0o644)
    if change == "gone":
        (tree / "b").unlink()
    else:
        (tree / "b").write_bytes(b"changed" if change == "content" else b"")
    assert not store.is_complete(made)
    assert not tree.exists()
    missing = [file.path for file in store.missing_files(made)]
    assert missing == ["b"]


def test_a_file_that_was_only_touched_is_kept(make_store: MakeStore) -> None:
    store, made = make_store(), volume(a=b"sound")
    tree = fill(store, made, x=b"sound")
    os.utime(tree / "a")
    assert store.is_complete(made)
    assert (tree / "a").read_bytes() == b"sound"


def test_one_task_of_one_runner_downloads_a_file(make_store: MakeStore) -> None:
    store, other = make_store(), make_store("r2")
    store.prepare([])
    lock = store.try_lock("ab")
    assert lock is not None
    assert store.try_lock("ab") is None
    assert other.try_lock("ab") is None
    lock.release()
    again = other.try_lock("ab")
    assert again is not None
    again.release()
    assert not (store.folder / "locks" / "ab").exists()


def test_what_was_not_used_for_longest_goes_first_and_no_more_than_needed(make_store: MakeStore) -> None:
    store = make_store(limit=4 * MB)
    trees = {name: fill(store, volume(name, **{name: BIG[name]}), x=BIG[name]) for name in "abc"}
    for name, days in (("a", 2), ("b", 3), ("c", 1)):
        age(trees[name], days)
    made = volume("e", d=BIG["d"], e=BIG["e"])
    store.prepare([made])
    store.make_room({made.files[0].sha256: MB})
    assert [tree.exists() for tree in trees.values()] == [True, True, True]  # the limit is just kept
    fill(store, volume("d", d=BIG["d"]), x=BIG["d"])
    store.prepare([made])
    store.make_room({made.files[1].sha256: MB})
    assert [tree.exists() for tree in trees.values()] == [True, False, True]
    assert not (store.folder / "files" / sha256_of(BIG["b"])).exists()


def test_nothing_that_is_offered_or_in_a_container_is_removed(make_store: MakeStore, tmp_path: Path) -> None:
    store, other = make_store(limit=MB), make_store("r2", limit=MB)
    bodies = {name: volume(name, **{name: BIG[name]}) for name in "abcd"}
    offered, contained, used, unused = (fill(store, bodies[name], x=BIG[name]) for name in "abcd")
    other.prepare([bodies["a"]])
    write_mount_note(tmp_path / "r1" / "jobs" / "ann.j.1.1", MountNote(volumes=(bodies["b"].digest,)))
    store.prepare([])
    numbers = r"^the file has 0\.00098 GiB, with it the volumes need 0\.0039 GiB, and max_gb allows 0\.00098 GiB$"
    with pytest.raises(FillFailed, match=numbers) as refused:
        store.make_room({sha256_of(BIG["e"]): MB}, used_here=[bodies["c"].digest])
    assert refused.value.code is FillFailure.QUOTA
    assert [tree.exists() for tree in (offered, contained, used, unused)] == [True, True, True, False]
    (tmp_path / "r1" / "jobs" / "ann.j.1.1" / "mounts.json").unlink()  # as the container's folder
    store.collect()
    assert [tree.exists() for tree in (offered, contained, used)] == [True, False, False]


def test_a_runner_that_was_uninstalled_needs_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    store, other = make_store(limit=MB // 2), make_store("r2")
    tree = fill(other, volume(a=BIG["a"]), x=BIG["a"])
    store.prepare([])
    store.collect()
    assert tree.exists()
    (tmp_path / "r2" / "jobs").rmdir()
    store.collect()
    assert not tree.exists()


def test_downloads_that_no_volume_needs_any_more_go_before_volumes(make_store: MakeStore) -> None:
    store = make_store(limit=2 * MB)
    tree = fill(store, volume(a=BIG["a"]), x=BIG["a"])
    store.part_path(sha256_of(BIG["b"])).write_bytes(BIG["b"])
    store.prepare([volume(c=BIG["c"])])
    store.make_room({sha256_of(BIG["c"]): MB})
    assert tree.exists()
    assert not store.part_path(sha256_of(BIG["b"])).exists()


def test_a_runner_that_starts_again_on_a_full_disk_has_its_volumes(make_store: MakeStore, tmp_path: Path) -> None:
    small_disk.require_mounts()
    with small_disk.mount_small_disk(tmp_path / "volumes", 4):
        one, two = volume("a", a=BIG["a"]), volume("b", b=BIG["b"])
        fill(make_store(), one, x=BIG["a"])
        small_disk.fill_disk(tmp_path / "volumes")
        again = make_store()
        again.prepare([one])
        assert again.is_complete(one)
        with pytest.raises(OSError, match="No space left") as full:
            again.prepare([one, two])
        failure = again.explain_error(full.value)
        assert failure.code is FillFailure.DISK_FULL
        assert failure.message == f"No space left on device: 0 GiB are free in {tmp_path / 'volumes'}"
        again.prepare([one])


def test_a_disk_that_is_short_is_told_apart(make_store: MakeStore) -> None:
    store = make_store(reserve=1 << 62)
    tree = fill(store, volume(a=BIG["a"]), x=BIG["a"])
    store.prepare([volume(c=BIG["c"])])
    numbers = r"^0\.00098 GiB are to come, [\d.]+ GiB are free in /.*, and \[gpu\.placement\] disk_reserve_mb keeps 4"
    with pytest.raises(FillFailed, match=numbers) as refused:
        store.make_room({sha256_of(BIG["c"]): MB})
    assert refused.value.code is FillFailure.DISK_FULL
    assert not tree.exists()
