"""A program of test_directory.py: write one body, and kill itself with SIGKILL before its n-th system call.

usage: python crash_writer.py ROOT N SIZE      prints "stored" if it reached its end
"""

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio

from edge.store.directory import open_directory

CALLS = ("open", "link", "write", "posix_fadvise", "fsync", "replace", "close", "unlink")


def arm(deadly: int) -> None:
    calls = 0
    for name in CALLS:
        real = getattr(os, name)

        def counted(*args: object, real=real, **kwargs: object) -> object:
            nonlocal calls
            if calls == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return real(*args, **kwargs)

        setattr(os, name, counted)


async def main(root: Path, deadly: int, size: int) -> None:
    async def body() -> AsyncIterator[bytes]:
        for at in range(0, size, 65536):
            yield bytes([at // 65536 % 256]) * min(65536, size - at)

    async with open_directory(root) as store:
        arm(deadly)
        await store.write(body(), None, size)
        sys.stdout.write("stored")


anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
