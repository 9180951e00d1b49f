"""The job folder as a container will see it: which parts there are and who may write them."""

import os
from pathlib import Path

from bus.private import PASSAGE
from schemas.container import JOB_FILE

PARTS = ("in", "out", "tmp")
WRITABLE = ("out", "tmp")


def prepare(job_dir: Path, owner: tuple[int, int], *, warm: bool, mounted: bool = False) -> None:
    """Make in/, out/ and tmp/, and let (uid, gid) `owner` write the last two; blocking.

    A warm container also makes its socket in the folder itself. That stays ours, with the sticky bit, and so does out/:
    no job can put a link in the place of a part that we write to or read from later. What a job leaves in them may be
    symlinks and worse: open it with O_NOFOLLOW.

    No other user of the machine enters the folder: neither to read a job's files, nor to run what a job made setuid.
    `mounted`: the job is given it by a bind mount, so it need not pass through the folder above.
    """
    for part in PARTS:
        (job_dir / part).mkdir(parents=True, exist_ok=True)
    job_dir.parent.chmod(0o700 if mounted else PASSAGE)
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
