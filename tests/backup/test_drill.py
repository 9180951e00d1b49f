"""The drill: a backup while jobs come, run and end; the data folder burns; a new one out of the backup goes on."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread

import pytest

from lamplighter import Client
from lamplighter.cli.supervisor import ProcessIdentity, read_process_identity
from schemas.job import Status
from schemas.job_view import JobView
from tests.e2e.test_up import family_of, lamplighter, up, wait_until_gone
from tests.support.wait import wait_for_sync

PATIENCE_S = 90.0
EVERY_S = 0.2
SLOTS = 3


def client_of(said: dict[str, str], folder: Path) -> Client:
    return Client(said["url"], said["key"], cache=folder / "digests.json")


def reached(client: Client, job: JobView, status: Status) -> JobView:
    wait_for_sync(lambda: client.job(job.id).status is status, timeout_s=PATIENCE_S)
    return client.job(job.id)


def in_every_state(client: Client, file: Path) -> dict[Status, JobView]:
    """One job of each; those that are to wait are submitted when all slots are taken."""
    made = {Status.SUCCEEDED: client.submit("echo", wait=True, text="done", file=file)}
    bad = client.submit("echo", behave="exit", exit=65)
    made[Status.FAILED] = reached(client, bad, Status.FAILED)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    made[Status.SCHEDULED] = client.submit("echo", text="later", options={"options": {"not_before": tomorrow}})
    called_off = client.submit("echo", text="never", options={"options": {"not_before": tomorrow}})
    made[Status.CANCELLED] = client.cancel(called_off.id)
    stubborn = client.submit("echo", behave="ignore_term")
    runs = [client.submit("echo", behave="hang") for _ in range(SLOTS - 1)]
    for job in (stubborn, *runs):
        reached(client, job, Status.RUNNING)
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    late = client.submit("echo", text="too late", options={"options": {"deadline": soon}})
    made[Status.RUNNING] = runs[0]
    made[Status.QUEUED] = client.submit("echo", text="next", file=file)
    made[Status.EXPIRED] = reached(client, late, Status.EXPIRED)
    made[Status.CANCELLING] = stubborn  # it will be: it takes a while to end, and the backup should see it
    return made


class FollowedStream:
    """Somebody who goes on submitting; `accepted` are the ids that were answered."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = Event()
        self._thread = Thread(target=self._run)
        self.accepted: list[str] = []

    def __enter__(self) -> "FollowedStream":
        self._thread.start()
        wait_for_sync(lambda: len(self.accepted) >= 3, timeout_s=PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.accepted.append(self._client.submit("echo", text="of the stream", steps=1).id)
            self._stop.wait(EVERY_S)


def bytes_of(client: Client, job_id: str, folder: Path) -> dict[str, bool]:
    """Whether each output, downloaded, has the digest that the job promises."""
    job = client.job(job_id)
    assert job.output is not None
    found = {}
    for file in job.output.files:
        got = client.download(job, file.name, folder / f"{job_id}-{file.name}").read_bytes()
        found[file.name] = hashlib.sha256(got).hexdigest() == file.sha256.removeprefix("sha256:")
    return found


def containers_at(data: Path) -> list[ProcessIdentity]:
    """The process engine's containers of that data folder, which nobody's descendants are."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if str(data).encode() in (place / "cmdline").read_bytes():
                found.append(read_process_identity(int(place.name)))
    return [one for one in found if one is not None]


def destroy(process: subprocess.Popen[str], data: Path) -> None:
    """As a fire does it: all at once, with everything that was there."""
    family = family_of(process.pid)
    process.kill()
    process.wait()
    burn(family)
    while containers := containers_at(data):  # they outlive the runner, which started some until its end
        burn({one for container in containers for one in (container, *family_of(container.pid))})
    shutil.rmtree(data)


def burn(family: set[ProcessIdentity]) -> None:
    for one in family:
        with suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)
    wait_until_gone(family)


@pytest.mark.long(39)
@pytest.mark.timeout(400)
def test_everything_accepted_before_a_backup_is_there_after_a_fire(tmp_path: Path):
    first, second, file = tmp_path / "first", tmp_path / "second", tmp_path / "kept.zip"
    given = tmp_path / "given.txt"
    given.write_bytes(os.urandom(300_000))
    with up(first, "--slots", str(SLOTS)) as (process, said), client_of(said, tmp_path) as client:
        made = in_every_state(client, given)
        last_id = [event.id for event in client.follow(made[Status.SUCCEEDED].id)][-1]
        with FollowedStream(client) as stream:
            client.cancel(made[Status.CANCELLING].id)
            before = [*stream.accepted]
            done = lamplighter(first, "backup", file, "--assets", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["jobs"] >= len(made) + len(before)
        assert file.stat().st_mode & 0o077 == 0
        destroy(process, first)
    restored = lamplighter(second, "restore", file, "--json")
    assert restored.returncode == 0, restored.stderr
    assert json.loads(restored.stdout)["jobs"] == json.loads(done.stdout)["jobs"]
    with up(second, "--slots", str(SLOTS)) as (_, again), client_of(again, tmp_path) as client:
        assert again["key"] == said["key"]
        all_is_as_it_was(client, made, tmp_path)
        work_goes_on(client, made, before, tmp_path)
        # What is followed is told from the start: the ids of the feed that burnt mean nothing here.
        events = list(client.follow(made[Status.SUCCEEDED].id, after=last_id))
        assert events[-1].data["status"] == Status.SUCCEEDED
        assert events[-1].id.split("-")[0] != last_id.split("-")[0]
        busy = lamplighter(second, "restore", file, "--replace")
        assert (busy.returncode, "stop it first" in busy.stderr) == (4, True)
    refused = lamplighter(second, "restore", file)
    assert (refused.returncode, "not empty" in refused.stderr) == (4, True)


def all_is_as_it_was(client: Client, made: dict[Status, JobView], folder: Path) -> None:
    """What had ended, or is for tomorrow."""
    for status in (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED, Status.SCHEDULED):
        was, now = made[status], client.job(made[status].id)
        assert (now.status, now.revision, now.round) == (status, was.revision, was.round)
    assert set(bytes_of(client, made[Status.SUCCEEDED].id, folder).values()) == {True}
    assert client.logs(made[Status.SUCCEEDED].id)


def work_goes_on(client: Client, made: dict[Status, JobView], before: list[str], folder: Path) -> None:
    """What ran runs again, what was to be stopped is, and what waited has its turn."""
    reached(client, made[Status.CANCELLING], Status.CANCELLED)
    again = reached(client, made[Status.RUNNING], Status.RUNNING)
    wait_for_sync(lambda: client.job(again.id).attempt == 2, timeout_s=PATIENCE_S)
    reached(client, made[Status.QUEUED], Status.SUCCEEDED)
    assert set(bytes_of(client, made[Status.QUEUED].id, folder).values()) == {True}
    for job_id in before:
        wait_for_sync(lambda job_id=job_id: client.job(job_id).status is Status.SUCCEEDED, timeout_s=PATIENCE_S)  # type: ignore[misc]
    client.cancel(again.id)
    reached(client, again, Status.CANCELLED)
