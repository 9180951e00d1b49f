"""A process that stores files on a disk: `python -m tests.powercut.file_writer assets|uploads FOLDER [files|folders]`.

It prints what was stored, one a line: the digest of an asset, or id and durable offset of an upload. The third argument
names what its fsync skips.
"""

import hashlib
import itertools
import os
import random
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import anyio

from edge.store.directory import open_directory
from edge.store.port import AssetStore
from edge.store.unfinished_uploads import Upload, UploadAppender, UploadStateStore

WRITERS = 4
BYTES = 50_000
PIECES = 3
NEVER = datetime.max.replace(tzinfo=UTC)


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data[: BYTES // 2]
    yield data[BYTES // 2 :]


async def _take(store: AssetStore, dice: random.Random) -> None:
    while True:
        data = dice.randbytes(BYTES)
        digest = hashlib.sha256(data).hexdigest()
        await store.write(_pieces(data), digest, BYTES)
        sys.stdout.write(f"{digest}\n")
        sys.stdout.flush()


async def assets(folder: Path) -> None:
    """Write files into a store, several at a time, until the process is killed."""
    dice = random.Random(20261121)
    async with open_directory(folder) as store, anyio.create_task_group() as tasks:
        for _ in range(WRITERS):
            tasks.start_soon(_take, store, dice)


async def uploads(folder: Path) -> None:
    """Append a piece to each upload in turn, until the process is killed."""
    partials = UploadStateStore(folder)
    for number in itertools.count():
        begun = Upload(
            id=f"upload-{number}", owner="ann", name="a", media_type="b", expires=datetime.max.replace(tzinfo=UTC)
        )
        partials.create(begun)
        appending = UploadAppender(partials, begun, None)
        for _ in range(PIECES):
            appending.write(upload_piece(begun.id))
            saved = appending.save()
            sys.stdout.write(f"{saved.id} {saved.offset}\n")
            sys.stdout.flush()
        appending.close()


def upload_piece(upload_id: str) -> bytes:
    """Return the piece that uploads repeat."""
    return hashlib.sha256(upload_id.encode()).digest() * 100


def disable_fsync(what: str) -> None:
    """Make fsync skip files, or folders."""
    sync = os.fsync

    def forgetful(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").resolve().is_dir() is not (what == "folders"):
            sync(handle)

    os.fsync = forgetful  # type: ignore[assignment]


if __name__ == "__main__":
    what, where, *left_out = sys.argv[1:]
    for word in left_out:
        disable_fsync(word)
    anyio.run({"assets": assets, "uploads": uploads}[what], Path(where))
