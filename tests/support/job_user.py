"""Whether this machine lets jobs of the process engine run as another user, as they do where the runner is root."""

import functools
import os
import tempfile
from pathlib import Path

from runner.engines.process import CannotRunJobs, ProcessEngine
from runner.engines.process_job import BUBBLEWRAP_NOT_INSTALLED, JobUser, NoSuchUser, find_bubblewrap, resolve_job_user

IMAGES = Path(__file__).resolve().parents[2] / "images"


@functools.cache
def why_not_nobody() -> str | None:
    """Why not, in one line; None where they can."""
    if os.geteuid() != 0:
        return "the tests do not run as root: jobs run as the runner's own user"
    with tempfile.TemporaryDirectory() as folder:
        try:
            engine(Path(folder), nobody()).check_job_user(Path(folder), [IMAGES / "echo"])
        except (CannotRunJobs, NoSuchUser) as error:
            return str(error)
    return None


@functools.cache
def why_no_sandbox() -> str | None:
    """Why jobs cannot run in bubblewrap on this machine, in one line; None where they can."""
    bubblewrap = find_bubblewrap()
    if bubblewrap is None:
        return BUBBLEWRAP_NOT_INSTALLED
    user = None if why_not_nobody() else nobody()
    with tempfile.TemporaryDirectory() as folder:
        made = ProcessEngine(Path(folder), IMAGES / "jobkit", user, bubblewrap=bubblewrap)
        return made.why_no_sandbox(Path(folder), [IMAGES / "echo"])


def nobody() -> JobUser:
    found = resolve_job_user("nobody")
    assert found is not None
    return found


def engine(state: Path, user: JobUser | None) -> ProcessEngine:
    return ProcessEngine(state, IMAGES / "jobkit", user)


def runner_settings() -> dict[str, str]:
    """What a runner under test is told: nothing where its jobs run as they are meant to, else to run them as itself."""
    root_alone = os.geteuid() == 0 and why_not_nobody() is not None
    return {"LAMPLIGHTER_PROCESS__USER": ""} if root_alone else {}
