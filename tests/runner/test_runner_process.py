"""A runner as a process over a real broker, real HTTP and the process engine: killed, drained, adopted."""

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from schemas.events import LogEndMessage, LogMessage, ProgressMessage
from schemas.job import FINAL_STATUSES, Status
from tests.runner.runner_processes import RunnerProcesses, place
from tests.support.wait import wait_for

__all__ = ["place"]


def rising(notes: list[Any]) -> bool:
    offsets = [note.position.offset for note in notes]
    return len(offsets) > 0 and offsets == sorted(set(offsets))


async def test_killed_while_the_job_runs_it_is_adopted(place: RunnerProcesses) -> None:
    content = os.urandom(100_000)
    sha256 = await place.edge.add(content)
    key = await place.submit(file=f"sha256:{sha256}", text="hello", seconds=3, steps=30)
    async with place.runner() as first:
        await place.wait_for_progress(key, 3)
        first.send_signal(signal.SIGKILL)
        await first.wait()
    async with place.runner():
        job = await place.wait_until_ended(key)
    assert (job.status, job.attempt, job.free_releases) == (Status.SUCCEEDED, 1, {})
    assert job.output is not None
    assert job.output.data == {"text": "hello"}
    assert [file.sha256 for file in job.output.files] == [sha256]
    logs = await place.notes(key, LogMessage)
    assert rising(logs)
    assert rising(await place.notes(key, ProgressMessage))
    said = "".join(note.text for note in logs)
    assert [line for line in said.splitlines() if line.startswith("step")] == [
        f"step {number} of 30" for number in range(1, 31)
    ]
    assert len(await place.notes(key, LogEndMessage)) == 1


async def test_killed_and_back_after_the_job_has_exited_it_is_collected(place: RunnerProcesses) -> None:
    key = await place.submit(text="hello", seconds=1, steps=5)
    async with place.runner() as first:
        await place.wait_for_progress(key, 1)
        first.send_signal(signal.SIGKILL)
        await first.wait()
        ends = list((place.folder / "runner" / "jobs").glob("*/job/out"))

        async def exited() -> bool:
            return all((out / "output.json").exists() for out in ends)

        await wait_for(exited)
    async with place.runner():
        job = await place.wait_until_ended(key)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)
    types = [type(entry.record.event).__name__ for entry in await place.bus.job_store.history(key)]
    assert types == ["Submitted", "Started", "Adopted", "Succeeded"]


async def test_a_drain_stops_the_child_process_and_gives_the_job_back(place: RunnerProcesses) -> None:
    key = await place.submit(seconds=600, steps=6000)
    async with place.runner() as first:
        await place.wait_for_progress(key, 1)
        first.send_signal(signal.SIGTERM)
        with anyio.fail_after(20):
            assert await first.wait() == 0
    job = await place.job(key)
    assert (job.status, job.charged_attempts, job.free_releases) == (Status.QUEUED, 0, {"drained": 1})
    assert not list((place.folder / "runner" / "jobs").iterdir())
    assert await place.bus.heartbeats.get("gpu-1") is None


async def test_the_broker_killed_during_a_job_costs_nothing(place: RunnerProcesses) -> None:
    key = await place.submit(text="hello", seconds=3, steps=30)
    async with place.runner():
        await place.wait_for_progress(key, 2)
        await place.server.kill()
        await place.server.start()

        async def back() -> bool:
            return place.bus.health.is_connected

        await wait_for(back)
        job = await place.wait_until_ended(key)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)
    logs = await place.notes(key, LogMessage)
    assert rising(logs)
    assert "step 30 of 30" in logs[-1].text


def peak_rss_mb(pid: int) -> float:
    """Return VmHWM of proc(5)."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


async def test_a_flood_of_output_is_cut_short_and_costs_no_memory(place: RunnerProcesses) -> None:
    key = await place.submit(behave="flood")
    async with place.runner() as process:
        job = await place.wait_until_ended(key)
        peak = peak_rss_mb(process.pid)
    assert job.status in FINAL_STATUSES
    assert peak < 200


async def test_a_running_job_is_cancelled(place: RunnerProcesses) -> None:
    key = await place.submit(seconds=600, steps=6000)
    async with place.runner():
        await place.wait_for_progress(key, 1)
        await place.cancel(key)
        job = await place.wait_until_ended(key)
    assert job.status is Status.CANCELLED
