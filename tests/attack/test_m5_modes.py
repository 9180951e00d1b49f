"""M5: another user looks for what jobs and owners left readable, and for programs that run as somebody else.

The judgement is made from modes, so that it can be made by any user; where the test runs as root, another user tries.
"""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from bus.secret_files import TRAVERSE_ONLY_MODE, make_private_folder
from edge.facades.heygem import facade
from edge.index import sqlite as index_sql
from runner.engines.launch import JOB_SUBDIRS, prepare_job_dir
from tests.attack.conftest import ENDPOINT_DIRS
from tests.support.installation import RunningInstallation, wait_until_ready
from tests.support.job_checks import submit_job, wait_until_clean, wait_until_ended, wait_until_running
from tests.support.schema_samples import make_job

GAMES = 5  # a user of every Debian who has nothing to do with us
SECRET = "what ann says to her job"
SETUID = """
import os, shutil, time
shutil.copy('/bin/true', home / 'tmp' / 'become')
os.chmod(home / 'tmp' / 'become', 0o6755)
(home / 'out' / 'made').write_text(job.input['code'])
job.progress(0.5)
time.sleep(600)
"""


def open_to_others(folder: Path, group: int | None = None) -> Iterator[Path]:
    """The files below it that a user can read or run who is not their owner; `group`: one that this user is in.

    That takes the right to enter every folder on the way, from `folder` on.
    """
    for entry in os.scandir(folder):
        found = entry.stat(follow_symlinks=False)
        rights = found.st_mode >> (3 if found.st_gid == group else 0) & 0o7
        if stat.S_ISDIR(found.st_mode):
            yield from open_to_others(Path(entry.path), group) if rights & 1 else ()
        elif rights & 5 and stat.S_ISREG(found.st_mode) and found.st_size:
            yield Path(entry.path)


def tried_by_another(paths: list[Path]) -> list[str]:
    """Return the files that another user could open or run, as tried by that user."""
    program = f"""
import os, subprocess, sys
os.setgroups([]); os.setgid({GAMES}); os.setuid({GAMES})
for path in sys.argv[1:]:
    for act in (lambda: os.close(os.open(path, os.O_RDONLY)), lambda: subprocess.run([path], check=False)):
        try: act()
        except OSError: continue
        print(path)
"""
    told = [sys.executable, "-c", program, *map(str, paths)]
    return subprocess.run(told, capture_output=True, text=True, check=True).stdout.splitlines()


def data_of(lit: RunningInstallation) -> list[Path]:
    """Return the data folders of the processes. The logs of the test are beside them."""
    return [lit.installation.folder / name for name in ("edge", "gpu-1", "broker")]


def exposed(lit: RunningInstallation) -> list[Path]:
    """Return the files that another user can read."""
    found = []
    for folder in data_of(lit):
        if folder.stat().st_mode & 1:
            found += list(open_to_others(folder))
    return found


async def test_nobody_else_reads_what_owners_and_jobs_have(shared_idle: RunningInstallation) -> None:
    """During a job and after it: texts, inputs, outputs and the index."""
    files = shared_idle.installation.folder
    await shared_idle.installation.start_runner(endpoints=ENDPOINT_DIRS)
    given = files / "given.txt"
    given.write_text(SECRET)
    runs = await submit_job(shared_idle, endpoint="hostile", code=SETUID, file=given)
    over = await submit_job(shared_idle, text=SECRET)
    await wait_until_running(shared_idle, runs.id)
    assert exposed(shared_idle) == []
    theirs = next(files.glob("gpu-1/jobs/*/job"))
    become, made = theirs / "tmp" / "become", theirs / "out" / "made"
    assert stat.S_IMODE(become.stat().st_mode) == 0o6755
    assert made.read_text() == SETUID
    if os.geteuid() == 0:
        inside = [path for folder in data_of(shared_idle) for path in folder.rglob("*") if path.is_file()]
        assert {become, made, files / "edge" / "index.sqlite"} <= set(inside)
        for folder in (files, *files.parents):  # pytest closes its folders, and would prove anything
            await opened(folder)
        assert tried_by_another(inside) == []
    await shared_idle.ann.cancel(runs.id)
    await wait_until_ended(shared_idle.ann, over.id)
    await wait_until_clean(shared_idle)
    assert exposed(shared_idle) == []


async def opened(folder: Path) -> None:
    """Make the folders of pytest accessible to other users."""
    if "pytest" in str(folder):
        await anyio.Path(folder).chmod(0o755)


async def test_an_installation_that_is_there_is_closed_at_its_next_start(shared_idle: RunningInstallation) -> None:
    """Data of an earlier release: everything has mode 0755 or 0644."""
    (shared_idle.installation.folder / "gpu-1" / "jobs").mkdir(parents=True, exist_ok=True)
    await shared_idle.installation.edge.stop()
    await shared_idle.installation.server.stop()
    await anyio.run_process(["chmod", "-R", "a+rX", *map(str, data_of(shared_idle))])
    assert exposed(shared_idle)
    await shared_idle.installation.server.start()
    await shared_idle.installation.start_edge(ENDPOINT_DIRS)
    await shared_idle.installation.start_runner(endpoints=ENDPOINT_DIRS)
    await wait_until_ready(shared_idle.ann)
    await wait_until_ended(shared_idle.ann, (await submit_job(shared_idle, text=SECRET)).id)
    assert exposed(shared_idle) == []


def modes(folder: Path) -> dict[str, int]:
    return {name: stat.S_IMODE((folder / name).stat().st_mode) for name in (".", *JOB_SUBDIRS)}


@pytest.mark.parametrize("warm", [False, True])
def test_a_job_s_folder_is_its_own(tmp_path: Path, warm: bool) -> None:
    prepare_job_dir(tmp_path / "a" / "job", (os.geteuid(), os.getegid()), warm=warm, mounted=True)
    assert modes(tmp_path / "a" / "job")["."] == 0o700
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize("warm", [False, True])
def test_a_folder_of_another_user_s_job_is_that_user_s(tmp_path: Path, warm: bool) -> None:
    job = tmp_path / "a" / "job"
    prepare_job_dir(job, (GAMES, GAMES), warm=warm)
    assert modes(job)["."] == (0o1770 if warm else 0o750)
    assert modes(job)["out"] == 0o770
    assert [folder.stat().st_gid for folder in (job, job / "out")] == [GAMES, GAMES]
    assert {part: (job / part).stat().st_uid for part in JOB_SUBDIRS} == {"in": 0, "out": 0, "tmp": GAMES}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == TRAVERSE_ONLY_MODE
    assert list(open_to_others(tmp_path)) == []


def test_a_folder_is_closed_and_never_opened(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "closed").mkdir(mode=0o700)
    for name in ("open", "closed", "new/inner"):
        make_private_folder(tmp_path / name, TRAVERSE_ONLY_MODE)
    found = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("open", "closed", "new", "new/inner")}
    assert found["open"] == TRAVERSE_ONLY_MODE
    assert found["closed"] == 0o700
    assert found["new/inner"] & ~TRAVERSE_ONLY_MODE == 0
    make_private_folder(tmp_path / "open")
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700


def test_a_folder_of_everybody_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    make_private_folder(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777


def test_the_index_is_for_its_owner(tmp_path: Path) -> None:
    index = tmp_path / "index.sqlite"
    index.write_bytes(b"of before")
    index.chmod(0o644)
    index_sql.create_database(index).close()
    assert stat.S_IMODE(index.stat().st_mode) == 0o600


def test_a_shared_folder_stays_shared(tmp_path: Path) -> None:
    """Results of the HeyGem facade are readable, because clients run as other users."""
    before = os.umask(0o077)
    try:
        made = facade._partial_path(tmp_path, make_job())
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.parent.stat().st_mode) == 0o755
