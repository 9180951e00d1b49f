"""A folder on a disk whose power can be cut, for programs that a test runs on it."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import fail_after, sleep, to_thread

from tests.powercut.unsynced_disk import NameSync
from tests.support.requirements import require

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.01


def require_fuse() -> None:
    """Skip the test where nothing can be mounted; fail it there under REQUIRE_FUSE=1."""
    require(_why_no_fuse(), "REQUIRE_FUSE")


def _why_no_fuse() -> str | None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or not accessible, so no power cut is tested"
    if os.geteuid() != 0:
        return "mounting and unmounting needs root here"
    try:
        import mfusepy  # noqa: F401 - it looks for the library when it is imported
    except OSError:
        return "there is no libfuse (on Debian: apt-get install libfuse3-3)"
    return None


class PowerSwitch:
    """`folder` is what programs use. `kept` is what the disk has, complete once the power is cut."""

    def __init__(self, folder: Path, kept: Path, process: "subprocess.Popen[str]") -> None:
        self.folder = folder
        self.kept = kept
        self._process = process

    async def cut(self) -> int:
        """Cut the power, and leave in `kept` what the disk had; return the number of syncs.

        Stop the programs on it before (SIGSTOP), and kill them after: to them it is one moment.
        """
        return await to_thread.run_sync(self._cut)

    def _cut(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("cut\n")
        self._process.stdin.flush()
        word, syncs = self._process.stdout.readline().split()
        assert word == "cut"
        return int(syncs)


@asynccontextmanager
async def powered_disk(where: Path, names: NameSync = NameSync.JOURNAL) -> AsyncIterator[PowerSwitch]:
    """Mount a disk under `where`; a second one there starts with what the first one kept."""
    kept, folder = where / "kept", where / "disk"
    for made in (kept, folder):
        made.mkdir(parents=True, exist_ok=True)
    process = await to_thread.run_sync(_mount, kept, folder, names)
    try:
        with fail_after(30):
            while not folder.is_mount():
                assert process.poll() is None, "the disk could not be mounted, see above"
                await sleep(POLL_S)
        yield PowerSwitch(folder, kept, process)
    finally:
        await to_thread.run_sync(_unmount, folder, process)


def _mount(kept: Path, folder: Path, names: NameSync) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "tests.powercut.fuse_mount", str(kept), str(folder), names.value]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def _unmount(folder: Path, process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    try:
        process.communicate(timeout=30)
    except subprocess.TimeoutExpired:  # an open file keeps it mounted
        process.kill()
        process.communicate()
        raise
