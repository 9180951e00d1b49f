"""User that jobs of the process engine run as."""

import os
import pwd
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from runner.engines.process_job import JobUser, NoSuchUser, current_user_name, resolve_job_user
from tests.support.docker_images import ROOT
from tests.support.job_user import why_not_nobody

NOBODY = pwd.getpwnam("nobody")


def running_as(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)


@pytest.mark.parametrize("asked", [None, "nobody"])
def test_root_runs_them_as_nobody(monkeypatch: pytest.MonkeyPatch, asked: str | None) -> None:
    running_as(monkeypatch, 0)
    user = resolve_job_user(asked)
    assert isinstance(user, JobUser)
    assert (user.name, user.uid, user.gid) == ("nobody", NOBODY.pw_uid, NOBODY.pw_gid)
    assert NOBODY.pw_gid in user.groups


@pytest.mark.parametrize(("uid", "asked"), [(0, ""), (0, "root"), (1234, None), (1234, ""), (NOBODY.pw_uid, "nobody")])
def test_or_as_itself(monkeypatch: pytest.MonkeyPatch, uid: int, asked: str | None) -> None:
    running_as(monkeypatch, uid)
    assert resolve_job_user(asked) is None


def test_only_root_can_become_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    running_as(monkeypatch, 1234)
    with pytest.raises(NoSuchUser, match="only root can run jobs as nobody: start the runner as root, or set"):
        resolve_job_user("nobody")
    assert current_user_name() == "1234"


def test_a_user_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    running_as(monkeypatch, 0)
    with pytest.raises(NoSuchUser, match=r"there is no user no-one-at-all on this machine.*useradd"):
        resolve_job_user("no-one-at-all")


@pytest.mark.skipif(why_not_nobody() is not None, reason=why_not_nobody() or "")
@pytest.mark.parametrize("hidden", ["image", "jobs"])
def test_where_a_folder_cannot_be_shown_it_is_named_with_what_to_do(hidden: str) -> None:
    """Check the error in a rented container, where root may not create a mount namespace."""
    with TemporaryDirectory() as made:
        image, jobs, closed = Path(made, "image", "inner"), Path(made, "jobs", "inner"), Path(made, hidden)
        for folder in (image, jobs):
            folder.mkdir(parents=True)
        Path(made).chmod(0o711)
        closed.chmod(0o700)
        program = (
            "import sys\n"
            "from pathlib import Path\n"
            "from tests.support.job_user import engine, nobody\n"
            "sys.base_prefix = sys.prefix = '/usr'\n"  # where the real one lies may be closed, too
            f"tried = engine(Path({made!r}), nobody())\n"
            f"tried._jobkit = '/usr'\n"
            f"tried.check_job_user(Path({str(jobs)!r}), [Path({str(image)!r})])\n"
        )
        argv = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", program]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    said = done.stderr.strip().splitlines()[-1]
    assert f"jobs cannot run as nobody: nobody may not enter {closed} (mode 0700, owner 0)" in said
    assert 'or set [process] user = ""' in said
