"""A broker whose disk is full below its own limit: accepted jobs wait, and go on once the broker is restarted.

After a write that found no room, nats-server stores nothing more until it is restarted (tests/bus/test_full_disk.py
shows this). `up` restarts it by itself; elsewhere /readyz and `doctor` tell the operator to.
"""

import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio.to_thread
import httpx2
import pytest

from lamplighter import Client
from lamplighter.api import Busy
from schemas.events import AttemptReleased, Started, Succeeded
from schemas.job_view import JobView
from tests.e2e.test_up import up
from tests.support import small_disk
from tests.support.command import run_lamplighter
from tests.support.installation import IMAGES, Installation, RunningInstallation, run_installation, wait_until_ready
from tests.support.job_checks import (
    LONG_TIMEOUTS,
    events_of,
    read_history,
    submit_job,
    wait_until_clean,
    wait_until_ended,
    wait_until_running,
)
from tests.support.wait import wait_for, wait_for_sync

BROKER_MB, DATA_MB = 48, 256
SPACIOUS = {"LAMPLIGHTER_GPU__PLACEMENT__DISK_RESERVE_MB": "0"}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mount a small disk for the broker's store."""
    small_disk.require_mounts()
    with small_disk.mount_small_disk(tmp_path / "broker", BROKER_MB):
        yield tmp_path


@pytest.fixture
async def tight(small: Path) -> AsyncIterator[RunningInstallation]:
    async with run_installation(Installation(small, "process", None), (IMAGES / "echo",)) as running:
        await running.installation.start_runner(endpoints=(IMAGES / "echo",), LAMPLIGHTER_SLOTS="2")
        yield running
        print(running.installation.tail())  # noqa: T201 - shown by pytest when the test failed


async def submit_one(running: RunningInstallation, accepted: list[str]) -> httpx2.Response:
    """Submit one more job; note its id where the answer is 202."""
    answer = await running.ann._http.post("/v1/jobs", json={"endpoint": "echo", "input": {"text": "more"}}, timeout=30)
    assert answer.status_code in {202, 503, 507}, answer.text
    if answer.status_code == 202:
        accepted.append(answer.json()["id"])
    return answer


async def wait_until_rejected(running: RunningInstallation, accepted: list[str]) -> None:
    """Wait until the edge rejects new jobs and its error says why."""

    async def full() -> bool:
        answer = await submit_one(running, accepted)
        return answer.status_code != 202 and any(word in answer.json()["detail"] for word in ("restart", "/readyz"))

    await wait_for(full, timeout_s=60)


async def exited(running: RunningInstallation, job: JobView) -> None:
    async def over() -> bool:
        found = [one for one in await running.installation.containers() if one.identity.job == job.id]
        return [one.state for one in found] == ["exited"]

    await wait_for(over, timeout_s=60)


async def told_what_to_do(running: RunningInstallation) -> None:
    """Return what /readyz says, and the line of `doctor` about it."""

    async def said() -> bool:
        answer = await running.ann._http.get("/readyz", timeout=30)
        return answer.status_code == 503 and any("restart nats-server" in one for one in answer.json()["why"])

    await wait_for(said, timeout_s=30)
    folder = str(running.installation.folder)
    done = await run_lamplighter("doctor", "--json", "--url", running.installation.url, "--data", folder)
    (broker,) = [one for one in json.loads(done.stdout) if one["name"] == "broker"]
    assert (done.returncode, broker["verdict"]) == (1, "fail")
    assert broker["mend"].startswith("make room on that disk, then restart nats-server")


@pytest.mark.long(26)
@pytest.mark.timeout(240)
async def test_a_broker_whose_disk_is_full_loses_no_job_and_no_result(tight: RunningInstallation):
    running, waiting = (
        await submit_job(tight, LONG_TIMEOUTS, seconds=6),
        await submit_job(tight, LONG_TIMEOUTS, seconds=6),
    )
    for job in (running, waiting):
        await wait_until_running(tight, job.id)
    behind = await submit_job(tight, text="behind them")
    ballast = small_disk.fill_disk(tight.installation.folder / "broker")
    accepted = [running.id, waiting.id, behind.id]
    await wait_until_rejected(tight, accepted)
    await exited(tight, running)
    await told_what_to_do(tight)
    ballast.unlink()
    await wait_until_rejected(tight, accepted)  # free space alone does not help it
    await tight.installation.server.stop()
    await tight.installation.server.start()
    await wait_until_ready(tight.ann, 60)
    for job_id in accepted:
        assert (await wait_until_ended(tight.ann, job_id)).status == "succeeded"
    for job in (running, waiting):
        entries = await read_history(tight, job.id)
        assert [len(events_of(entries, kind)) for kind in (Started, AttemptReleased, Succeeded)] == [1, 0, 1]
    assert (await submit_one(tight, accepted)).status_code == 202
    assert (await wait_until_ended(tight.ann, accepted[-1])).status == "succeeded"
    await wait_until_clean(tight)


@pytest.mark.long(20)
@pytest.mark.timeout(240)
async def test_up_on_a_disk_that_was_full_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small_disk.require_mounts()
    data = tmp_path / "data"
    for name, value in SPACIOUS.items():
        monkeypatch.setenv(name, value)
    with small_disk.mount_small_disk(data, DATA_MB):
        await anyio.to_thread.run_sync(_filled_and_emptied, data)


def _filled_and_emptied(data: Path) -> None:
    """Run `up` with everything on one disk: broker, index, logs, jobs; fill the disk and empty it."""
    with up(data) as (process, said), Client(said["url"], said["key"], cache=data.parent / "digests.json") as client:
        soon = (datetime.now(UTC) + timedelta(seconds=10)).isoformat()
        accepted = [client.submit("echo", text="before", options={"options": {"not_before": soon}}).id]
        ballast = small_disk.fill_disk(data)

        def full() -> bool:
            try:
                accepted.append(client.submit("echo", text="more").id)
            except Busy as busy:
                return busy.problem.code == "store_full"
            return False

        wait_for_sync(full)
        assert httpx2.get(f"{said['url']}/readyz", timeout=60).status_code == 503
        ballast.unlink()
        wait_for_sync(lambda: httpx2.get(f"{said['url']}/readyz", timeout=60).status_code == 200)
        accepted.append(client.submit("echo", text="after").id)
        assert {client.wait(job_id).status for job_id in accepted} == {"succeeded"}
        assert process.poll() is None
