"""The job folder as a container will see it: which parts there are and who may write them."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from bus.secret_files import TRAVERSE_ONLY_MODE
from schemas.container_protocol import JOB_FILE

JOB_SUBDIRS = ("in", "out", "tmp")
WRITABLE_SUBDIRS = ("out", "tmp")


def prepare_job_dir(job_dir: Path, owner: tuple[int, int], *, warm: bool, mounted: bool = False) -> None:
    """Make in/, out/ and tmp/, and let (uid, gid) `owner` write the last two; blocking.

    A warm container also makes its socket in the folder itself. That stays ours, with the sticky bit, and so does out/:
    no job can put a link in the place of a part that we write to or read from later. What a job leaves in them may be
    symlinks and worse: open it with O_NOFOLLOW.

    No other user of the machine enters the folder: neither to read a job's files, nor to run what a job made setuid.
    `mounted`: the job is given it by a bind mount, so it need not pass through the folder above.
    """
    for part in JOB_SUBDIRS:
        (job_dir / part).mkdir(parents=True, exist_ok=True)
    job_dir.parent.chmod(0o700 if mounted else TRAVERSE_ONLY_MODE)
    (job_dir / "in").chmod(0o755)
    if (job_dir / JOB_FILE).exists():
        (job_dir / JOB_FILE).chmod(0o644)
    if os.geteuid() == owner[0]:
        job_dir.chmod(0o700)
        return
    os.chown(job_dir / "tmp", *owner)
    for path, mode in ((job_dir / "out", 0o770), (job_dir, 0o1770 if warm else 0o750)):
        os.chown(path, -1, owner[1])
        path.chmod(mode)


# MERGED runner/engines/starting.py: Starting in a thread without losing what was started.


async def start_cancellable(pool: ThreadPoolExecutor, start: Callable[[], str], undo: Callable[[str], None]) -> str:
    """`start()` in a thread of `pool`; the handle it returns.

    A thread cannot be cancelled: if the caller is, what it starts all the same is undone there, as nobody will ever
    know its handle.
    """

    def forget(running: "Future[str]") -> None:
        if not running.cancelled() and running.exception() is None:
            undo(running.result())

    running = pool.submit(start)
    try:
        return await asyncio.wrap_future(running)
    except asyncio.CancelledError:
        running.add_done_callback(forget)
        raise
