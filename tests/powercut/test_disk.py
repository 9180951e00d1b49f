"""The simulated disk itself: it must keep what was synced, and must not keep anything else."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.powercut.power_switch import powered_disk, require_fuse
from tests.powercut.unsynced_disk import NameSync, UnsyncedDisk

FILE = stat.S_IFREG | 0o644
BOTH = pytest.mark.parametrize("names", list(NameSync))


def disk(names: NameSync) -> UnsyncedDisk:
    return UnsyncedDisk(names, lambda: 0)


@BOTH
def test_unsynced_bytes_are_lost(names: NameSync) -> None:
    made = disk(names)
    number = made.make("/a", FILE)
    made.write(number, b"first", 0)
    made.sync_file(number)
    made.sync_folder(1)
    made.write(number, b"SECOND", 2)
    assert bytes(made.node(number).data) == b"fiSECOND"
    assert made.cut() == {"/a": b"first"}


@BOTH
def test_only_what_was_written_before_the_sync_is_kept(names: NameSync) -> None:
    made = disk(names)
    number = made.make("/a", FILE)
    made.write(number, b"0123456789", 0)
    made.sync_file(number)
    made.write(number, b"ab", 3)
    made.sync_file(number)
    made.write(number, b"cd", 7)
    made.truncate(number, 8)
    made.sync_folder(1)
    assert made.cut() == {"/a": b"012ab56789"}


def test_a_journal_keeps_names_in_their_order_with_any_sync() -> None:
    made = disk(NameSync.JOURNAL)
    old, new = made.make("/old", FILE), made.make("/new", FILE)
    made.write(old, b"old", 0)
    made.write(new, b"new", 0)
    made.sync_file(old)
    made.rename("/new", "/old")
    other = made.make("/other", FILE)
    made.sync_file(other)
    made.remove("/other")
    assert made.cut() == {"/old": b"", "/other": b""}  # the new name exists, but its bytes were never synced


def test_a_folder_must_be_synced_for_its_names() -> None:
    made = disk(NameSync.FOLDER)
    made.make("/in", stat.S_IFDIR | 0o755)
    number = made.make("/in/a", FILE)
    made.write(number, b"bytes", 0)
    made.sync_file(number)
    made.sync_folder(1)
    assert disk_after(made) == {"/in": None}


def test_a_rename_is_only_as_safe_as_the_folders_sync() -> None:
    made = disk(NameSync.FOLDER)
    number = made.make("/temp", FILE)
    made.write(number, b"bytes", 0)
    made.sync_file(number)
    made.sync_folder(1)
    made.rename("/temp", "/final")
    assert disk_after(made) == {"/temp": b"bytes"}


def disk_after(made: UnsyncedDisk) -> dict[str, bytes | None]:
    left = made.cut()
    with pytest.raises(OSError, match="power is off") as caught:
        made.find("/anything")
    assert caught.value.errno == errno.EIO
    return left


@pytest.mark.parametrize("synced", [False, True])
async def test_the_mounted_disk_keeps_what_the_kernel_was_told_to_sync(tmp_path: Path, synced: bool) -> None:
    require_fuse()
    async with powered_disk(tmp_path) as plug:
        with (plug.folder / "file").open("wb") as file:
            file.write(b"x" * 300_000)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        with os.fdopen(os.open(plug.folder / "direct", os.O_CREAT | os.O_WRONLY | os.O_DSYNC), "wb") as direct:
            direct.write(b"y" * 10_000)
        assert (plug.folder / "file").stat().st_size == 300_000
        assert await plug.cut() > 0
        with pytest.raises(OSError, match="Input/output"):
            (plug.folder / "new").write_bytes(b"")
    assert (plug.kept / "direct").read_bytes() == b"y" * 10_000
    assert (plug.kept / "file").read_bytes() == (b"x" * 300_000 if synced else b"")
