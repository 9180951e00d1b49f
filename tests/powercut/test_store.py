"""The power of the asset store's disk is cut: a stored file is complete afterwards, on the worst disk too."""

import hashlib
import signal
import sys
from pathlib import Path

import anyio
import pytest
from anyio.streams.text import TextReceiveStream

from edge.store.directory import DirectoryStore, open_directory
from edge.store.port import StoreBroken
from edge.store.unfinished_uploads import UploadKey, UploadStateStore
from tests.powercut.file_writer import upload_piece
from tests.powercut.power_switch import ROOT, powered_disk, require_fuse
from tests.powercut.unsynced_disk import NameSync

TAKEN = 25  # before the power is cut


async def cut_while_taking(where: Path, names: NameSync, what: str, *left_out: str) -> list[str]:
    """Return what a writer printed before the cut; `where / "kept" / what` is what its folder has kept."""
    said = ""
    async with powered_disk(where, names) as plug:
        argv = [sys.executable, "-m", "tests.powercut.file_writer", what, str(plug.folder / what), *left_out]
        async with await anyio.open_process(argv, stdin=None, stderr=None, cwd=ROOT) as taker:
            assert taker.stdout is not None
            async for text in TextReceiveStream(taker.stdout):
                said += text
                if said.count("\n") >= TAKEN:
                    break
            taker.send_signal(signal.SIGSTOP)
            await plug.cut()
            taker.kill()
    assert said.count("\n") >= TAKEN
    return said[: said.rindex("\n")].splitlines()


async def left(where: Path, taken: list[str]) -> list[str]:
    """Return the stored assets that exist and are complete."""
    async with open_directory(where / "kept" / "assets") as store:
        return [digest for digest in taken if await holds(store, digest)]


async def holds(store: DirectoryStore, digest: str) -> bool:
    """Return whether the file exists and matches its name."""
    if await store.stat(digest) is None:
        return False
    return hashlib.sha256(b"".join([block async for block in store.read(digest)])).hexdigest() == digest


ON_ANY_DISK = pytest.mark.parametrize("names", list(NameSync))
WITHOUT = pytest.mark.parametrize("left_out", ["files", "folders"])


@ON_ANY_DISK
async def test_what_was_taken_is_whole(tmp_path: Path, names: NameSync) -> None:
    require_fuse()
    taken = await cut_while_taking(tmp_path, names, "assets")
    assert await left(tmp_path, taken) == taken


@WITHOUT
async def test_each_sync_of_the_store_is_needed(tmp_path: Path, left_out: str) -> None:
    require_fuse()
    taken = await cut_while_taking(tmp_path, NameSync.FOLDER, "assets", left_out)
    assert await left(tmp_path, taken) != taken


def lost(where: Path, told: list[str]) -> list[str]:
    """Return the reported offsets of uploads whose bytes are missing or wrong."""
    partials = UploadStateStore(where / "kept" / "uploads")
    return [line for line in told if not _reaches(partials, *line.split())]


def _reaches(partials: UploadStateStore, upload_id: str, offset: str) -> bool:
    key = UploadKey("ann", upload_id)
    try:
        upload = partials.load(key)
    except StoreBroken:
        return False
    if upload is None or upload.offset < int(offset):
        return False
    sent = upload_piece(upload_id) * (upload.offset // len(upload_piece(upload_id)))
    return partials.data_path(key).read_bytes()[: upload.offset] == sent


@ON_ANY_DISK
async def test_an_upload_goes_on_from_the_offset_that_was_reported(tmp_path: Path, names: NameSync) -> None:
    require_fuse()
    assert lost(tmp_path, await cut_while_taking(tmp_path, names, "uploads")) == []


@WITHOUT
async def test_each_sync_of_an_upload_is_needed(tmp_path: Path, left_out: str) -> None:
    require_fuse()
    assert lost(tmp_path, await cut_while_taking(tmp_path, NameSync.FOLDER, "uploads", left_out))
