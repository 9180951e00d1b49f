"""deploy/docker/engine.sh: an engine that comes, works, and leaves nothing behind."""

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy/docker/engine.sh"


def engine(*args: str | Path, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", SCRIPT, *args], env={"PATH": path}, capture_output=True, text=True, timeout=110, check=False
    )


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for the sockets of an engine; a worker's tmp_path may be too long."""
    folder = Path(mkdtemp(prefix="engine-"))
    yield folder
    shutil.rmtree(folder)


needs_dockerd = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("dockerd"), reason="starting an engine needs root and dockerd"
)


@pytest.mark.docker
@needs_dockerd
def test_an_engine_of_its_own_starts_works_and_leaves_nothing(short: Path):
    where = f"unix://{short}/docker.sock"
    try:
        assert engine("start", short).stdout == f"engine: up on {where}\n"
        assert engine("start", short).stdout == f"engine: already up on {where}\n"
        assert engine("status", short).stdout.startswith(f"engine: up on {where}, pid ")
        docker = ["docker", "--host", where]
        info = subprocess.run(
            [*docker, "info", "--format", "{{.LiveRestoreEnabled}} {{.Driver}}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert info.stdout == "true overlay2\n"
        networks = subprocess.run(
            [*docker, "network", "ls", "--format", "{{.Name}}"], capture_output=True, text=True, check=True
        )
        assert sorted(networks.stdout.split()) == ["host", "none"]
    finally:
        stopped = engine("stop", short)
    assert stopped.stdout == "engine: stopped\n"
    assert engine("status", short).returncode == 1
    assert str(short) not in Path("/proc/self/mounts").read_text()
    assert not [pid for pid in Path("/proc").glob("[0-9]*/cmdline") if str(short).encode() in read(pid)]


@pytest.mark.docker
@needs_dockerd
def test_a_killed_engine_leaves_no_mount_either(short: Path):
    try:
        assert engine("start", short).returncode == 0
        daemon = int((short / "dockerd.pid").read_text())
        ended = os.pidfd_open(daemon)
        os.kill(daemon, signal.SIGKILL)
        select.select([ended], [], [])
        assert str(short) in Path("/proc/self/mounts").read_text(), "it leaves the mount of a namespace"
    finally:
        stopped = engine("stop", short)
    assert stopped.stdout == "engine: stopped\n"
    assert str(short) not in Path("/proc/self/mounts").read_text()


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process ended while we looked
        return b""


def test_a_pid_file_that_names_another_program_is_not_believed(tmp_path: Path):
    (tmp_path / "dockerd.pid").write_text(str(os.getpid()))
    assert engine("stop", tmp_path).stdout == "engine: stopped\n"
    assert engine("status", tmp_path).stdout == "engine: down\n"


def test_without_docker_it_says_what_to_do(tmp_path: Path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("mkdir", "cat", "id"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    refused = engine("start", tmp_path, path=str(tools))
    assert refused.returncode == 1
    assert "is not installed: install Debian's docker.io, or use the process engine" in refused.stderr


@pytest.mark.parametrize("args", [(), ("start",), ("restart", "folder")])
def test_a_wrong_call_shows_the_usage(tmp_path: Path, args: tuple[str, ...]):
    call = subprocess.run(
        ["/bin/sh", SCRIPT, *args], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False
    )
    assert (call.returncode, call.stderr) == (2, "usage: engine.sh start|stop|status DIR [SOCKET]\n")
