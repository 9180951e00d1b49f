"""A job in the sandbox of the process engine reaches nothing of the runner, of other jobs or of the machine."""

import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runner.engines.port import FolderMount
from runner.engines.process_job import find_bubblewrap
from schemas.endpoint_parts import EgressPolicy
from tests.contract.engines.engine_rigs import EngineRig, process_engine_rig, stream_text
from tests.support.job_user import nobody, why_no_sandbox, why_not_nobody
from tests.support.requirements import require

pytestmark = pytest.mark.timeout(60)

TRIES = """
import json, os, socket, sys
from pathlib import Path

def tried(what):
    try:
        return what() or "done"
    except OSError as error:
        return type(error).__name__

job, root, port = Path(os.environ["LAMPLIGHTER_JOB"]), Path(sys.argv[1]), int(sys.argv[2])
print(json.dumps({
    "pids": len([name for name in os.listdir("/proc") if name.isdecimal()]),
    "root": sorted(os.listdir(root)),
    "home": sorted(os.listdir(root / "home")),
    "other": tried((root / "other" / "job.json").read_text),
    "key": tried((root / "key").read_text),
    "token": tried((root / "home" / "token").read_text),
    "records": tried(lambda: os.listdir(root / "state")),
    "settings": tried(lambda: os.listdir("/etc/lamplighter")),
    "shadow": tried(Path("/etc/shadow").read_bytes),
    "loopback": tried(lambda: socket.create_connection(("127.0.0.1", port), 10).close()),
    "disks": [name for name in os.listdir("/dev") if name.startswith(("sd", "vd", "nvme", "kmsg", "mem"))],
    "root_file": tried(Path("/planted").touch),
    "system": tried(Path("/usr/planted").touch),
    "devices": tried(Path("/dev/planted").touch),
    "stderr": tried(lambda: Path("/dev/stderr").open("a").close()),
    "image": tried(Path("planted").touch),
    "given": tried((job / "in" / "planted").touch),
    "job": tried((job / "job.json").unlink),
    "out": tried((job / "out" / "mine").touch),
    "tmp": tried(Path("/tmp/mine").touch),
    "volume": tried(Path(os.environ["VOLUME"], "planted").touch),
    "weights": tried(Path(os.environ["VOLUME"], "weights").read_text),
    "cache": tried(Path(os.environ["CACHE"], "mine").touch),
    "capabilities": [line for line in open("/proc/self/status") if line.startswith("CapEff")][0].split()[1],
}))
"""


@pytest.fixture(params=["own user", "nobody"])
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EngineRig]:
    require(why_no_sandbox(), "REQUIRE_SANDBOX")
    if request.param == "nobody" and (why := why_not_nobody()):
        pytest.skip(why)
    user = nobody() if request.param == "nobody" else None
    root = tmp_path / "around" / "data"
    root.mkdir(parents=True)
    async with process_engine_rig(root, "h", user, find_bubblewrap()) as made:
        yield made


def make_mount(root: Path, name: str, *, is_writable: bool) -> FolderMount:
    folder = root / "trees" / name
    folder.mkdir(parents=True)
    (folder / "weights").write_text("w")
    return FolderMount(source=folder, target="/unused", variables=(name.upper(),), is_writable=is_writable)


@pytest.fixture
def image(host: EngineRig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an image folder in the runner's home, which has a token and is private, as in a pilot."""
    home = host.root / "home"
    image = home / "images" / "mine"
    image.mkdir(parents=True)
    (home / "token").write_text("secret")
    home.chmod(0o700)
    monkeypatch.setenv("HOME", str(home))
    (host.root / "key").write_text("secret")
    return image


async def test_a_job_reaches_nothing_of_the_runner_or_of_others(host: EngineRig, image: Path) -> None:
    other = await host.start(host.spec("plain", job="other"))
    mounts = make_mount(host.root, "volume", is_writable=False), make_mount(host.root, "cache", is_writable=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = (sys.executable, "-c", TRIES, str(host.root), str(server.getsockname()[1]))
        spec = host.spec(command=command, folder=str(image), mounts=mounts)
        handle = await host.start(spec, {})
        chunks = await host.read(handle)
    assert stream_text(chunks, "stderr") == b""
    seen = json.loads(stream_text(chunks))
    denied = {name: seen.pop(name) for name in ("root_file", "system", "devices", "image", "given", "job", "volume")}
    assert set(denied.values()) <= {"OSError", "PermissionError"}, denied
    assert seen == {
        "pids": 2,
        "root": ["home", "j", "trees"],
        "home": ["images"],
        "other": "FileNotFoundError",
        "key": "FileNotFoundError",
        "token": "FileNotFoundError",
        "records": "FileNotFoundError",
        "settings": "FileNotFoundError",
        "shadow": "FileNotFoundError",
        "loopback": "ConnectionRefusedError",
        "disks": [],
        "stderr": "done",
        "out": "done",
        "tmp": "done",
        "weights": "w",
        "cache": "done",
        "capabilities": "0000000000000000",
    }
    assert (spec.job_dir / "out" / "mine").exists()
    await host.engine.remove(handle)
    await host.engine.remove(other)


async def test_a_data_folder_below_what_a_job_may_read_is_hidden(host: EngineRig) -> None:
    code = f"import os; print(sorted(os.listdir({str(host.root)!r})))"
    spec = host.spec(command=(sys.executable, "-c", code), folder=str(host.root.parent))
    handle = await host.start(spec, {})
    assert stream_text(await host.read(handle)) == b"['j']\n"
    await host.engine.remove(handle)


async def test_a_job_with_egress_has_the_network_of_the_host(host: EngineRig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 10); print('in')"
        handle = await host.start(host.spec(command=(sys.executable, "-c", code), egress=EgressPolicy()), {})
        assert stream_text(await host.read(handle)) == b"in\n"
    await host.engine.remove(handle)


async def test_gpu_files_are_shown_only_to_jobs_with_gpus(host: EngineRig) -> None:
    code = "import json, os; print(json.dumps([name for name in os.listdir('/dev') if name.startswith('nvidia')]))"
    seen = []
    for gpus in ((), ("GPU-a",)):
        handle = await host.start(host.spec(command=(sys.executable, "-c", code), gpus=gpus), {})
        seen.append(sorted(json.loads(stream_text(await host.read(handle)))))
        await host.engine.remove(handle)
    assert seen == [[], list_gpu_files()]


def list_gpu_files() -> list[str]:
    return sorted(path.name for path in Path("/dev").glob("nvidia*"))


async def test_a_sandboxed_job_says_so(host: EngineRig) -> None:
    info = await host.engine.probe()
    assert info.isolation == "bubblewrap"
    assert "sandbox of bubblewrap" in info.notes[0]


async def test_a_python_behind_links_is_found(host: EngineRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a virtual environment whose Python is a link through a folder that is itself a link, as uv makes them."""
    real = make_python_link(host.root.parent)
    monkeypatch.setattr(sys, "executable", str(real))
    handle = await host.start(host.spec(command=(str(real), "-c", "print('ran')")), {})
    assert stream_text(await host.read(handle)) == b"ran\n"
    await host.engine.remove(handle)


def make_python_link(folder: Path) -> Path:
    (folder / "pythons").mkdir()
    (folder / "pythons" / "minor").symlink_to(Path(sys.base_prefix))
    (folder / "env").mkdir()
    (folder / "env" / "python").symlink_to(folder / "pythons" / "minor" / "bin" / Path(sys.executable).resolve().name)
    return folder / "env" / "python"
