"""Small disks that a test can fill: a tmpfs each. Needs root."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.requirements import require

BLOCK = bytes(64 * 1024)
BALLAST = ".ballast"


def why_no_mounts() -> str | None:
    """Return why no disk can be mounted here, or None."""
    return None if os.geteuid() == 0 else "a disk of one's own needs root"


def require_mounts() -> None:
    """Skip the test where no disk can be mounted; fail it under REQUIRE_NETNS=1, which asks for the same right."""
    require(why_no_mounts(), "REQUIRE_NETNS")


@contextmanager
def mount_small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """Create `folder` as a disk of that size while the block runs; its files are lost afterwards."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "chaos", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(folder: Path) -> Path:
    """Leave not a byte free; return the file to remove afterwards. Blocking."""
    ballast = folder / BALLAST
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(BLOCK)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return ballast


@contextmanager
def remount_read_only(folder: Path) -> Iterator[None]:
    """Make the folder read-only while the block runs; files that are open for writing stay so."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
