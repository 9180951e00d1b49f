"""H2: a job leaves a tree that a recursive removal cannot take: 3,000 folders deep, of mode 000, with links."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import structlog.testing

from runner import context as runner_life
from runner.claiming.recovery import parse_container_folder
from runner.engines.launch import remove_tree
from runner.engines.port import ContainerIdentity, ContainerLimits, ContainerSpec
from runner.engines.process import REMOVED_PREFIX, ProcessEngine
from tests.attack.conftest import ENDPOINT_DIRS
from tests.support.installation import IMAGES, ROOT, RunningInstallation
from tests.support.job_checks import submit_job, wait_until_clean, wait_until_ended
from tests.support.runner_environment import RunnerEnvironment
from tests.support.wait import wait_for

NOBODY = 65534
DEEP = 3_000
NEST = """
import os
os.chdir(home / PART)
for _ in range(3000):
    os.mkdir('d')
    os.chdir('d')
open('at the bottom', 'w').close()
"""


def nest(folder: Path, name: str = "d", mode: int = 0o755) -> None:
    """Create DEEP nested folders by descriptor: their path is too long for a system call."""
    folder.mkdir(parents=True, exist_ok=True)
    place = os.open(folder, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir(name, dir_fd=place)
        inner = os.open(name, os.O_RDONLY, dir_fd=place)
        os.fchmod(place, mode)
        os.close(place)
        place = inner
    os.close(os.open("file", os.O_CREAT, dir_fd=place))
    os.close(place)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Create files that do not belong to the job."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("still here")
    return kept


@pytest.mark.parametrize("name", ["d", "n" * 255])
def test_a_tree_deeper_than_the_stack_and_longer_than_a_path_goes(tmp_path: Path, name: str) -> None:
    nest(tmp_path / "job", name)
    remove_tree(tmp_path / "job")
    assert list(tmp_path.iterdir()) == []


def test_no_link_is_followed(tmp_path: Path, outside: Path) -> None:
    inner = tmp_path / "job" / "a" / "b"
    inner.mkdir(parents=True)
    for place in (tmp_path / "job", inner):
        (place / "folder").symlink_to(outside, target_is_directory=True)
        (place / "file").symlink_to(outside / "file")
        (place / "nowhere").symlink_to("nothing")
        (place / "loop").symlink_to(place)
    remove_tree(tmp_path / "job")
    (tmp_path / "job").symlink_to(outside)
    remove_tree(tmp_path / "job")
    assert list(tmp_path.iterdir()) == [outside]
    assert (outside / "file").read_text() == "still here"


def test_every_kind_of_file_and_name_goes(tmp_path: Path) -> None:
    folder = tmp_path / "job" / "deeper"
    folder.mkdir(parents=True)
    names = (b"\xff\xfe", b"-rf", b"a\nb", b"\x1b[2J", b"n" * 255, " \N{PILE OF POO}".encode(), b"...")
    for name in map(os.fsdecode, names):
        (folder / name).write_bytes(b"")
        (folder / f"d{name[:250]}").mkdir()
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
    remove_tree(tmp_path / "job")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_removed(tmp_path: Path) -> None:
    remove_tree(tmp_path / "never was")


def test_an_owner_s_folder_without_rights_goes(tmp_path: Path) -> None:
    """Run as another user, because root may enter every folder."""
    tmp_path.chmod(0o755)
    mine = tmp_path / "mine"
    mine.mkdir()
    theirs = mine / "job" / "tmp"
    theirs.mkdir(parents=True)
    nest(theirs / "deep", mode=0)
    for mode in (0, 0o100, 0o200, 0o400, 0o500):
        (theirs / f"of {mode:o}" / "inner").mkdir(parents=True)
        (theirs / f"of {mode:o}" / "file").write_bytes(b"")
        (theirs / f"of {mode:o}" / "inner").chmod(0)
        (theirs / f"of {mode:o}").chmod(mode)
    theirs.chmod(0)
    give_to_nobody(mine)
    as_nobody(mine, "remove_tree(Path('job'))")
    assert list(mine.iterdir()) == []


def give_to_nobody(folder: Path) -> None:
    """Remove the tree, as far as permissions allow."""
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", folder], check=True)


def as_nobody(folder: Path, act: str) -> None:
    """Run `act` in `folder` as a user who is not root."""
    become = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})" if os.geteuid() == 0 else "pass"
    program = f"import os; from pathlib import Path; from runner.engines.launch import remove_tree; {become}; {act}"
    argv = [sys.executable, "-c", program.replace("; \n", "\n")]
    environ = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave something that another user cannot remove")
def test_what_cannot_be_removed_is_reported_and_the_rest_goes(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    stuck = mine / "job" / "a" / "root's"
    stuck.mkdir(parents=True)
    (stuck / "file").write_bytes(b"")
    nest(mine / "job" / "b")
    act = "\ntry: remove_tree(Path('job'))\nexcept PermissionError: pass\nelse: raise SystemExit('nothing was raised')"
    give_to_nobody(mine)
    os.chown(stuck, 0, 0)
    as_nobody(mine, act)
    assert [path.name for path in mine.rglob("*") if path.is_file()] == ["file"]
    assert len(list((mine / "job").iterdir())) == 1


async def test_a_leftover_that_cannot_be_removed_ends_no_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure is logged, the runner continues, and the next start removes the tree."""
    world = RunnerEnvironment(tmp_path)
    left = tmp_path / "gpu-1" / "ada.gone.1.1" / "job"
    left.mkdir(parents=True)

    def refused(folder: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(folder))

    async def is_acknowledged() -> bool:
        return not world.boxes and not await world.edge.job_queue.list_pending()

    with monkeypatch.context() as patched, structlog.testing.capture_logs() as logs:
        patched.setattr(runner_life, "remove_tree", refused)
        async with world.run_runner():
            job = await world.wait_until_ended(await world.submit("well"))
            await wait_for(is_acknowledged)  # or its message comes again only after 30 s
    assert job.status == "succeeded"
    assert left.exists()
    assert any(line["event"] == "folder_removal_failed" and line["folder"] == str(left.parent) for line in logs)
    async with world.run_runner("i2"):
        await world.wait_until_clean()


@pytest.mark.parametrize("name", ["a.b.c.d", "a.b.1.x", "...", "a..1.1", "a.b.1.1e9", "a.b.1.99999999999", "é.b.1.1"])
def test_a_folder_with_a_name_of_somebody_else_s_is_nobody_s(tmp_path: Path, name: str) -> None:
    assert parse_container_folder(tmp_path / name) is None


async def test_what_an_engine_could_not_remove_goes_with_its_next_life(tmp_path: Path) -> None:
    """The state folder of a process is renamed at once."""
    nest(tmp_path / f"{REMOVED_PREFIX}j-1")
    (tmp_path / f"{REMOVED_PREFIX}j-1" / "spec.json").write_text("{}")
    async with ProcessEngine(tmp_path, IMAGES / "jobkit") as engine:
        assert await engine.find("lamplighter", "local") == []
    assert not os.listdir(tmp_path)  # noqa: PTH208 - names are enough


async def test_a_state_folder_that_a_job_filled_goes(tmp_path: Path) -> None:
    """Jobs that run as the runner's user can write there as well."""
    state = tmp_path / "state"
    async with ProcessEngine(state, IMAGES / "jobkit") as engine:
        mine = ContainerIdentity(installation="test", host="here", owner="ann", job="j", round=1, attempt=1)
        limits = ContainerLimits(memory_mb=64, cpus=1.0)
        spec = ContainerSpec(
            identity=mine, image="", folder="/", command=("true",), job_dir=tmp_path / "job", limits=limits
        )
        handle = await engine.start(spec)
        await engine.wait(handle)
        nest(state / handle / "deep")
        await engine.remove(handle)
    assert list(state.iterdir()) == []


@pytest.mark.parametrize("part", ["tmp", "out"])
async def test_nested_folders_of_a_job_are_gone_with_it(shared_idle: RunningInstallation, part: str) -> None:
    await shared_idle.installation.start_runner(endpoints=ENDPOINT_DIRS)
    job = await submit_job(shared_idle, endpoint="hostile", code=NEST.replace("PART", repr(part)))
    assert (await wait_until_ended(shared_idle.ann, job.id)).error is not None or part == "tmp"
    await wait_until_clean(shared_idle)
    assert (
        await wait_until_ended(shared_idle.ann, (await submit_job(shared_idle, text="next")).id)
    ).status == "succeeded"


async def test_a_leftover_of_nested_folders_is_removed_at_the_next_start(shared_idle: RunningInstallation) -> None:
    """A leftover of a killed runner, or of an older release that could not remove it."""
    jobs = shared_idle.installation.folder / "gpu-1" / "jobs"
    nest(jobs / "ann.gone.1.1" / "job" / "tmp")
    nest(jobs / "warm-i0-1" / "job" / "tmp")
    (jobs / "not.one.of.ours").mkdir()
    await shared_idle.installation.start_runner(endpoints=ENDPOINT_DIRS)
    assert (
        await wait_until_ended(shared_idle.ann, (await submit_job(shared_idle, text="at work")).id)
    ).status == "succeeded"
    await wait_until_clean(shared_idle)
