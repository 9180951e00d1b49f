"""Jobs that hold and print a secret, in a whole installation: every byte that is kept anywhere is searched for it."""

import subprocess
import sys
from base64 import b64encode
from functools import partial
from pathlib import Path

import anyio.to_thread
import pytest

from runner.assets.container_folders import open_secret_files
from runner.engines.port import FoundContainer
from schemas.events import Adopted
from schemas.job import Status
from schemas.job_view import JobView
from tests.support.byte_search import find_marks
from tests.support.command import run_lamplighter, write_settings
from tests.support.docker_images import BASE_IMAGE, build_image, run_docker
from tests.support.installation import HOST, ROOT, RunningInstallation, wait_until_ready
from tests.support.job_checks import read_history, wait_until_ended
from tests.support.wait import wait_for

VALUE = "hf_m4rk-of-a-secret-of-ann"
MASKED = "*" * len(VALUE)
MARKS = (VALUE, b64encode(VALUE.encode()).decode(), VALUE[::-1])
ENDPOINT = """
name = "leaky"
image = "lamplighter-test-leaky"
secrets = ["HF_TOKEN"]
[input]
type = "object"
[resources]
memory_mb = 64
[env]
GREETING = "good morning"
[process]
command = ["python3", "main.py"]
"""
PROGRAM = """
import base64, json, os, sys, time
from pathlib import Path
value = (Path(os.environ["LAMPLIGHTER_SECRETS"]) / "HF_TOKEN").read_text()
folder = Path(os.environ["LAMPLIGHTER_JOB"])
job = json.loads((folder / "job.json").read_text())
while "quiet" in job["input"]:
    print(json.dumps({"type": "progress", "fraction": 0, "stage": f"holds {len(value)} bytes"}), flush=True)
    time.sleep(0.2)
print(value, base64.b64encode(value.encode()).decode(), flush=True)
print("in the middle of " + value + " a line", file=sys.stderr, flush=True)
print(json.dumps({"type": "metric", "name": value, "value": 1}), flush=True)
print(json.dumps({"type": "progress", "fraction": 0.5, "stage": "printed " + value}), flush=True)
if "fail" in job["input"]:
    print(json.dumps({"type": "error", "code": "bad_input", "message": "refused " + value}), flush=True)
    sys.exit(65)
while "hold" in job["input"]:
    time.sleep(0.05)
result = {"token": value, "length": len(value), "greeting": os.environ["GREETING"]}
(folder / "out" / "output.json").write_text(json.dumps(result))
"""
DOCKERFILE = f'FROM {BASE_IMAGE}\nCOPY main.py /app/main.py\nWORKDIR /app\nCMD ["python3", "main.py"]\n'


@pytest.fixture
def leaky(tmp_path: Path, engine: str, engine_url: str | None) -> Path:
    """Return the folder of an endpoint whose program prints its secret."""
    folder = tmp_path / "images" / "leaky"
    folder.mkdir(parents=True)
    for name, text in (("endpoint.toml", ENDPOINT), ("main.py", PROGRAM), ("Dockerfile", DOCKERFILE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)
    if engine_url is not None:
        build_image(engine_url, "lamplighter-test-leaky", str(folder))
    return folder


def find_in_processes(mark: str) -> list[str]:
    """Return the processes of this machine whose command line or environment has `mark`."""
    found = []
    for path in (*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")):
        try:
            if mark.encode() in path.read_bytes():
                found.append(str(path))
        except OSError:  # it has ended
            continue
    return found


async def set_secret(running: RunningInstallation) -> None:
    """Set the secret of ann with the command line, which gets the value on stdin."""
    argv = [sys.executable, "-m", "lamplighter", "secrets", "set", "HF_TOKEN", "--url", running.installation.url]
    run = partial(
        subprocess.run,
        [*argv, "--key", running.installation.keys["ann"]],
        input=f"{VALUE}\n",
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    done = await anyio.to_thread.run_sync(run)
    assert (done.returncode, done.stdout) == (0, "secret HF_TOKEN is set\n"), done.stderr


def file_in_memory(running: RunningInstallation, folder: str) -> Path:
    """Return the file of the secret of the container with this folder, on a file system without a disk."""
    files = open_secret_files(running.installation.folder / HOST, None, "process", is_memory_shared=False)
    assert files.is_in_memory
    return files.folder(Path(folder)) / "HF_TOKEN"


async def start_and_find(running: RunningInstallation, stage: str, **given: bool) -> FoundContainer:
    """Start a job, and return its container when it has reported this stage."""
    job = await running.ann.submit("leaky", **given)

    async def has_come_there() -> bool:
        progress = (await running.ann.job(job.id)).progress
        return progress is not None and progress.stage == stage

    await wait_for(has_come_there, timeout_s=60)
    (container,) = await running.installation.containers()
    return container


async def cancel(running: RunningInstallation, container: FoundContainer) -> None:
    await running.ann.cancel(container.identity.job)
    assert (await wait_until_ended(running.ann, container.identity.job)).status is Status.CANCELLED


def find_on_disk(running: RunningInstallation, container: FoundContainer, url: str | None) -> set[str]:
    """Return the files with the value in any form below the folders of installation and engine."""
    places = [running.installation.folder]
    if url is not None:
        root = run_docker(url, "info", "--format", "{{.DockerRootDir}}").stdout.strip()
        places.append(Path(root) / "containers" / container.handle)
    return {place.rpartition(":")[0] for folder in places for place in find_marks(folder, MARKS)}


async def start_without_edge(running: RunningInstallation, adopted_id: str) -> None:
    """Start the runner while the edge is dead: it gets no secret until the edge is back.

    It claims the job, and waits for the secret; or it notices first that the edge is away, and claims nothing.
    """
    installation = running.installation
    await installation.edge.kill()
    await installation.runners[HOST].start()

    async def is_adopted() -> bool:
        return isinstance((await read_history(running, adopted_id))[-1].record.event, Adopted)

    await wait_for(is_adopted, timeout_s=60)
    assert find_marks(installation.folder, MARKS) == {}
    await installation.start_edge()
    await wait_until_ready(running.ann)


async def check_while_it_runs(running: RunningInstallation, url: str | None) -> JobView:
    """Run jobs that hold and print their secret, and look around.

    Runner and edge are killed in the middle. Return the job that was submitted before and ran afterwards.
    """
    quiet = await start_and_find(running, f"holds {len(VALUE)} bytes", quiet=True)
    file = file_in_memory(running, quiet.identity.folder)
    assert file.read_text() == VALUE
    assert find_on_disk(running, quiet, url) == set()
    assert find_in_processes(VALUE) == []
    if url is not None:
        inspected = run_docker(url, "inspect", quiet.handle).stdout
        assert "/run/secrets" in inspected
        assert VALUE not in inspected
    runner = running.installation.runners[HOST]
    await runner.kill()
    (file.parent.parent / "ann.gone.1.1").mkdir()  # of a job that another crash left
    (file.parent.parent / "ann.gone.1.1" / "HF_TOKEN").write_text(VALUE)
    waiting = await running.ann.submit("leaky")
    await start_without_edge(running, quiet.identity.job)
    done = await wait_until_ended(running.ann, waiting.id)
    assert (done.status, done.attempt) == (Status.SUCCEEDED, 1), done.error
    events = [type(entry.record.event).__name__ for entry in await read_history(running, done.id)]
    assert events == ["Submitted", "Started", "Succeeded"]
    await cancel(running, quiet)

    async def is_removed() -> bool:
        return not await anyio.Path(file.parent).exists()

    await wait_for(is_removed, timeout_s=60)
    assert not (file.parent.parent / "ann.gone.1.1").exists()
    printed = await start_and_find(running, f"printed {MASKED}", hold=True)
    names = {"stdout", "stderr"}  # what the program itself prints is on the disk of its engine while it runs
    of_engine = {f"{HOST}/processes/{printed.handle}/{name}" for name in names}
    assert url is not None or find_on_disk(running, printed, url) == of_engine
    await cancel(running, printed)
    return done


async def read_all_of(running: RunningInstallation, job_id: str) -> str:
    """Return everything that the API tells of a job."""
    http, paths = running.ann._http, ("", "/history", "/logs", "/deliveries")
    answers = [(await http.get(f"/v1/jobs/{job_id}{path}")).text for path in paths]
    return "\n".join([*answers, str([event async for event in running.ann.follow(job_id)])])


@pytest.mark.long(20)
async def test_no_byte_of_a_secret_is_kept_anywhere(
    running: RunningInstallation, leaky: Path, engine_url: str | None, tmp_path_factory: pytest.TempPathFactory
):
    installation = running.installation
    await set_secret(running)
    await installation.start_runner(endpoints=(leaky,), LAMPLIGHTER_SLOTS="2", LAMPLIGHTER_PACE__HEARTBEAT_S="1")

    async def is_offered() -> bool:
        return (await running.ann._http.get("/v1/endpoints/leaky")).is_success

    await wait_for(is_offered, timeout_s=60)
    done = await check_while_it_runs(running, engine_url)
    assert done.output is not None
    assert done.output.data == {"token": MASKED, "length": len(VALUE), "greeting": "good morning"}
    failed = await wait_until_ended(running.ann, (await running.ann.submit("leaky", fail=True)).id)
    assert failed.error is not None
    assert failed.error.message == f"refused {MASKED}"
    told = [await read_all_of(running, job.id) for job in (done, failed)]
    assert not [text for text in told if VALUE in text]
    assert all(f"in the middle of {MASKED} a line" in text for text in told)
    listed = await running.ann._http.get("/v1/secrets")
    assert [secret["name"] for secret in listed.json()["secrets"]] == ["HF_TOKEN"]
    assert VALUE not in listed.text
    elsewhere = tmp_path_factory.mktemp("backup")
    config = write_settings(elsewhere, installation.broker_settings("edge"))
    saved = await run_lamplighter("backup", elsewhere / "kept.zip", "--config", config)
    assert saved.returncode == 0, saved.stderr
    await installation.clear()
    key = (installation.folder / "edge" / "secrets.key").read_text().splitlines()[-1]
    assert find_marks(installation.folder, MARKS) == {}
    assert find_marks(elsewhere, (*MARKS, key)) == {}
    assert list(find_marks(installation.folder, [key])) == [f"edge/secrets.key: {key}"]
    assert not file_in_memory(running, "any").parent.parent.exists()
