"""The job folder as a container will see it: which parts there are and who may write them."""

import os
from pathlib import Path

from schemas.container import JOB_FILE

PARTS = ("in", "out", "tmp")
WRITABLE = ("out", "tmp")


def prepare(job_dir: Path, owner: tuple[int, int], *, warm: bool) -> None:
    """Make in/, out/ and tmp/, and let (uid, gid) `owner` write the last two; blocking.

    A warm container also makes its socket in the folder itself. That stays ours, with the sticky bit, and so does out/:
    no job can put a link in the place of a part that we write to or read from later. What a job leaves in them may be
    symlinks and worse: open it with O_NOFOLLOW.
    """
    for part in PARTS:
        (job_dir / part).mkdir(parents=True, exist_ok=True)
    job_dir.chmod(0o755)
    (job_dir / "in").chmod(0o755)
    if (job_dir / JOB_FILE).exists():
        (job_dir / JOB_FILE).chmod(0o644)
    if os.geteuid() != owner[0]:
        os.chown(job_dir / "tmp", *owner)
        for path, mode in ((job_dir / "out", 0o775), *(((job_dir, 0o1775),) if warm else ())):
            os.chown(path, -1, owner[1])
            path.chmod(mode)
