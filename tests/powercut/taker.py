"""A process that takes files into an asset store: `python -m tests.powercut.taker FOLDER [files|folders]`.

It prints the digest of each file the store has taken, one a line. The second word names what its fsync leaves out.
"""

import hashlib
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio

from edge.store.directory import open_directory
from edge.store.port import AssetStore

WRITERS = 4
BYTES = 50_000


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


async def main(folder: Path) -> None:
    """Until it is killed."""
    dice = random.Random(20261121)
    async with open_directory(folder) as store, anyio.create_task_group() as tasks:
        for _ in range(WRITERS):
            tasks.start_soon(_take, store, dice)


def leave_out(what: str) -> None:
    """Make fsync forget files, or folders."""
    sync = os.fsync

    def forgetful(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").resolve().is_dir() is not (what == "folders"):
            sync(handle)

    os.fsync = forgetful  # type: ignore[assignment]


if __name__ == "__main__":
    if len(sys.argv) > 2:
        leave_out(sys.argv[2])
    anyio.run(main, Path(sys.argv[1]))
