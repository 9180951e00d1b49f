"""The power of the asset store's disk is cut: a file that was taken is whole afterwards, on the worst disk too."""

import hashlib
import signal
import sys
from pathlib import Path

import anyio
import pytest
from anyio.streams.text import TextReceiveStream

from edge.store.directory import DirectoryStore, open_directory
from tests.powercut.disk import Names
from tests.powercut.plug import ROOT, plugged, require_fuse

TAKEN = 25  # before the power goes


async def cut_while_taking(where: Path, names: Names, *left_out: str) -> tuple[set[str], set[str]]:
    """What was taken before the cut, and what the store has of it afterwards, whole."""
    said = ""
    async with plugged(where, names) as plug:
        argv = [sys.executable, "-m", "tests.powercut.taker", str(plug.folder / "assets"), *left_out]
        async with await anyio.open_process(argv, stdin=None, stderr=None, cwd=ROOT) as taker:
            assert taker.stdout is not None
            async for text in TextReceiveStream(taker.stdout):
                said += text
                if said.count("\n") >= TAKEN:
                    break
            taker.send_signal(signal.SIGSTOP)
            await plug.cut()
            taker.kill()
    taken = {line.rstrip("\n") for line in said.splitlines(keepends=True) if line.endswith("\n")}
    async with open_directory(where / "kept" / "assets") as store:
        return taken, {digest for digest in taken if await holds(store, digest)}


async def holds(store: DirectoryStore, digest: str) -> bool:
    """Whether it has the file, and the file is what its name says."""
    if await store.stat(digest) is None:
        return False
    return hashlib.sha256(b"".join([block async for block in store.read(digest)])).hexdigest() == digest


@pytest.mark.parametrize("names", list(Names))
async def test_what_was_taken_is_whole(tmp_path: Path, names: Names) -> None:
    require_fuse()
    taken, there = await cut_while_taking(tmp_path, names)
    assert len(taken) >= TAKEN
    assert there == taken


@pytest.mark.parametrize("left_out", ["files", "folders"])
async def test_each_sync_of_the_store_is_needed(tmp_path: Path, left_out: str) -> None:
    require_fuse()
    taken, there = await cut_while_taking(tmp_path, Names.FOLDER, left_out)
    assert there != taken
