"""Contract of the process engine alone: processes that fork away, a shim that is killed, a reused pid."""

import ast
import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from runner.engines import process_shim
from runner.engines.port import ContainerExit, ContainerIdentity
from runner.engines.process import ProcessEngine
from runner.engines.process_job import ProcessPids, ProcessSpec, ProcessStateDir
from tests.contract.engines.conftest import PROCESSES
from tests.contract.engines.engine_rigs import DEADLINE_S, INSTALLATION, EngineRig, stream_text
from tests.support.job_user import nobody
from tests.support.wait import wait_for, wait_for_sync

pytestmark = pytest.mark.timeout(60)
either = pytest.mark.parametrize("host", PROCESSES, indirect=True)

# A grandchild that left session and parent behind, as daemons do.
RUNAWAY = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    child = os.fork()
    if child == 0:
        time.sleep(600)
    print(child, flush=True)
    os._exit(0)
os.wait()
time.sleep(float(sys.argv[1]))
"""
SHARING = """
import os, time
block = bytearray(b'x') * (60 << 20)
children = [os.fork() for _ in range(3)]
print('forked', flush=True)
time.sleep(1.0)
"""


async def first_line(host: EngineRig, handle: str) -> bytes:
    async with asyncio.timeout(DEADLINE_S), aclosing(host.engine.output(handle, None)) as chunks:
        return (await anext(chunks)).data


as_nobody = pytest.mark.parametrize("host", ["nobody"], indirect=True)
LOOKS = """
import json, os, sys
from pathlib import Path

def tried(what):
    try:
        return what() or "done"
    except OSError as error:
        return type(error).__name__

job, secret, parent = Path(os.environ["LAMPLIGHTER_JOB"]), Path(sys.argv[1]), os.getppid()
print(json.dumps({
    "ids": [os.getuid(), os.getgid(), os.getgroups()],
    "no_new_privs": "NoNewPrivs:\\t1" in Path("/proc/self/status").read_text(),
    "no_capabilities": "CapPrm:\\t0000000000000000" in Path("/proc/self/status").read_text(),
    "secret": tried(secret.read_text),
    "records": tried(lambda: os.listdir(secret.parent / "state")),
    "environ": tried(Path(f"/proc/{parent}/environ").read_text),
    "kill": tried(lambda: os.kill(parent, 0)),
    "image": tried(lambda: Path("planted").touch()),
    "given": tried(lambda: (job / "in" / "planted").touch()),
    "swap_in": tried(lambda: (job / "in").rename(job / "other")),
    "swap_out": tried(lambda: (job / "out").rename(job / "other")),
    "job": tried(lambda: (job / "job.json").unlink()),
    "out": tried(lambda: (job / "out" / "mine").touch()),
    "home": tried(lambda: (Path.home() / "mine").touch()),
    "stderr": tried(lambda: Path("/dev/stderr").open("a").close()),
}))
"""


@as_nobody
@pytest.mark.parametrize("warm", [False, True])
async def test_a_job_of_another_user_reaches_its_own_folder_and_nothing_of_ours(host: EngineRig, warm: bool) -> None:
    secret = host.root / "secret"
    secret.write_text("a key")
    secret.chmod(0o600)
    env = {"LAMPLIGHTER_WARM": "1"} if warm else {}
    spec = host.spec(command=(sys.executable, "-c", LOOKS, str(secret)), env=env)
    handle = await host.start(spec, {})
    seen = json.loads(stream_text(await host.read(handle)))
    user = nobody()
    assert seen == {
        "ids": [user.uid, user.gid, list(user.groups)],
        "no_new_privs": True,
        "no_capabilities": True,
        "out": "done",
        "home": "done",
        "stderr": "done",
        "swap_in": "PermissionError",
        "swap_out": "PermissionError",
        "job": "PermissionError",
        "given": "PermissionError",
        "image": seen["image"],
        "secret": seen["secret"],
        "records": seen["records"],
        "environ": "PermissionError",
        "kill": "PermissionError",
    }
    assert seen["image"] in {"PermissionError", "OSError"}  # OSError: it is shown read-only
    assert {seen["secret"], seen["records"]} <= {"PermissionError", "FileNotFoundError"}  # not found: it is not shown
    assert (spec.job_dir / "out").stat().st_mode & 0o777 == 0o700  # nobody changes what is collected now
    await host.engine.remove(handle)


@as_nobody
async def test_what_lies_behind_a_private_folder_is_shown_and_nothing_else_there(host: EngineRig) -> None:
    private = host.root / "home"
    (private / "images" / "mine").mkdir(parents=True)
    (private / "images" / "mine" / "main.py").write_text("import os; print(os.listdir(os.environ['ABOVE']))")
    (private / "link").symlink_to("images")
    (private / "key").write_text("secret")
    private.chmod(0o700)
    spec = host.spec(folder=str(private / "link" / "mine"), env={"ABOVE": str(private)})
    said = stream_text(await host.read(await host.start(spec)))
    assert sorted(ast.literal_eval(said.decode())) == ["images", "link"]


@either
@pytest.mark.parametrize("seconds", ["600", "0"])
async def test_nothing_of_a_job_outlives_it(host: EngineRig, seconds: str) -> None:
    handle = await host.start(host.spec(command=(sys.executable, "-c", RUNAWAY, seconds, host.host)))
    await first_line(host, handle)
    if seconds == "600":
        assert len(processes_of(host)) >= 2
        await host.engine.stop(handle, 0.1)
    await host.engine.wait(handle)
    assert processes_of(host) == []


def processes_of(host: EngineRig) -> list[Path]:
    """Return the processes that have the unique name of `host` among their arguments."""

    def read_arguments(process: Path) -> bytes:
        try:
            return (process / "cmdline").read_bytes()
        except OSError:
            return b""

    found = Path("/proc").glob("[0-9]*")
    return [process for process in found if host.host.encode() in read_arguments(process).split(b"\0")]


@either
async def test_memory_that_forks_share_is_counted_once(host: EngineRig) -> None:
    handle = await host.start(host.spec(command=(sys.executable, "-c", SHARING)))
    assert await host.engine.wait(handle) == ContainerExit(0, False, *times(host, handle))


def times(host: EngineRig, handle: str) -> tuple[object, object]:
    ended = records(host, handle).read_exit()
    assert ended is not None
    return ended.started_at, ended.finished_at


def records(host: EngineRig, handle: str) -> ProcessStateDir:
    return ProcessStateDir(host.root / "state" / handle)


@either
async def test_a_killed_shim_leaves_a_job_that_can_be_ended(host: EngineRig) -> None:
    handle = await host.start(host.spec("plain"))
    running = records(host, handle).read_pids()
    os.kill(running.shim[0], signal.SIGKILL)

    async def has_ended() -> bool:
        return not process_shim.started_at(running.shim[0])

    await wait_for(has_ended, timeout_s=DEADLINE_S)
    [found] = await host.engine.find(INSTALLATION, host.host)
    assert found.state == "running"
    await host.engine.stop(handle, 0)
    assert await host.engine.wait(handle) == ContainerExit(137)


def test_a_job_is_supervised_though_its_runner_died_during_the_start(tmp_path: Path) -> None:
    state = ProcessStateDir(tmp_path)
    command = (sys.executable, "-c", "import time; time.sleep(600)")
    state.write_spec(ProcessSpec(ContainerIdentity(installation="i", host="h"), command, str(tmp_path), {}, 100))
    unread, written = os.pipe()
    os.close(unread)
    shim = [sys.executable, "-I", "-S", process_shim.__file__, str(tmp_path)]
    subprocess.run(shim, stdin=subprocess.DEVNULL, stdout=written, check=True, env={})
    os.close(written)
    wait_for_sync((tmp_path / "running.json").exists)
    pids = state.read_pids()
    pids.kill()
    exit_ = wait_for_sync(state.read_exit)
    assert (exit_.code, exit_.finished_at is not None) == (137, True)  # the shim wrote it
    assert not pids.is_alive(pids.job)


@either
async def test_a_pid_of_another_boot_is_no_job_of_ours(host: EngineRig) -> None:
    handle = await host.start(host.spec(), {"behave": "exit"})
    await host.engine.wait(handle)
    folder = host.root / "state" / handle
    (folder / "exit.json").unlink()
    me = (os.getpid(), process_shim.started_at(os.getpid()))
    for boot, started, code in (("another", me[1], 137), (process_shim.boot_id(), me[1] + 1, 137)):
        (folder / "running.json").write_bytes(
            msgspec.json.encode(ProcessPids(boot, (me[0], started), (me[0], started)))
        )
        await host.engine.stop(handle, 5)
        assert (await host.engine.wait(handle)).code == code


@either
async def test_a_job_sees_little_of_ours(host: EngineRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMPLIGHTER_KEY", "secret")
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    spec = host.spec(command=("python3", "-c", code), gpus=("GPU-a", "GPU-b"), env={"EXTRA": "1"})
    env = json.loads(stream_text(await host.read(await host.start(spec))))
    assert set(env) - {"LC_CTYPE"} == {
        "PATH", "LANG", "HOME", "TMPDIR", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "CUDA_VISIBLE_DEVICES",
        "LAMPLIGHTER_JOB", "EXTRA",
    }  # fmt: skip
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert Path(env["PATH"].split(":")[0]) == Path(sys.executable).parent


@either
async def test_half_written_records_are_passed_over(host: EngineRig) -> None:
    (host.root / "state" / "broken").mkdir(parents=True)
    (host.root / "state" / "broken" / "spec.json").write_text("{")
    assert await host.engine.find(INSTALLATION, host.host) == []


@either
async def test_the_pid_of_a_handle_is_an_ancestor_of_all_that_the_job_runs(host: EngineRig) -> None:
    """Check the pid by which a GPU's processes are recognized as ours."""
    engine = host.engine
    assert isinstance(engine, ProcessEngine)
    handle = await host.echo(seconds=600)
    pid = await engine.pid(handle)
    assert pid is not None
    assert process_shim.find_descendants(pid)
    await engine.remove(handle)
    assert await engine.pid(handle) is None
