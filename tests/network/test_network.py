"""A link that fails between a host and its edge: an end is reported once, and no job runs twice.

The faults last seconds; `NETWORK_CUT_S=600 NETWORK_ROUND_TRIP_S=2 pytest tests/network` makes them worse. Whether the
connections survive the fault is up to both ends: they were not told.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from schemas.events import AttemptReleased, Started, Succeeded
from schemas.job import FINAL_STATUSES
from schemas.job_view import JobView
from tests.network.conftest import SeparatedInstallation
from tests.network.network_faults import FAULTS, LOSSY, apply_rules
from tests.support.installation import IMAGES, RunningInstallation
from tests.support.job_checks import (
    assert_one_end_a_round,
    events_of,
    read_history,
    submit_job,
    wait_until_clean,
    wait_until_running,
)
from tests.support.tcp_proxy import run_proxy
from tests.support.wait import wait_for

CUT_S = float(os.environ.get("NETWORK_CUT_S", "5"))
GIVEN_UP_S = 600.0  # a host that is silent for so long loses its claim; it resumes the job if no other host has it
STREAM_TIMEOUT_S = 90.0
ROUND_TRIP_S = float(os.environ.get("NETWORK_ROUND_TRIP_S", "0.3"))
POLICY = {"execution_timeout_s": CUT_S + 600, "stall_timeout_s": CUT_S + 600}
pytestmark = [pytest.mark.long(11), pytest.mark.timeout(CUT_S + 200)]


async def submit_with_file(running: RunningInstallation, folder: Path, seconds: float) -> JobView:
    """Submit a job with a file, so that its result goes to the edge and its end to the broker."""
    file = folder / "film.bin"
    file.write_bytes(os.urandom(200_000))
    return await submit_job(running, POLICY, file=file, seconds=seconds, text="once")


@asynccontextmanager
async def follow_all(running: RunningInstallation, *jobs: JobView) -> AsyncIterator[dict[str, list[str]]]:
    """Follow the jobs and collect the final states of each; the streams have ended when the block ends."""
    final_states: dict[str, list[str]] = {job.id: [] for job in jobs}

    async def follow(job_id: str) -> None:
        async for event in running.ann.follow(job_id):
            if event.kind == "state" and event.data["status"] in FINAL_STATUSES:
                final_states[job_id].append(event.data["status"])

    with anyio.fail_after(CUT_S + STREAM_TIMEOUT_S):
        async with anyio.create_task_group() as tasks:
            for job in jobs:
                tasks.start_soon(follow, job.id)
            yield final_states


async def assert_ran_once(running: RunningInstallation, job: JobView) -> None:
    entries = await read_history(running, job.id)
    assert len(events_of(entries, Started)) == 1
    assert len(events_of(entries, Succeeded)) == 1
    assert_one_end_a_round(entries)
    released = [event.code for event in events_of(entries, AttemptReleased)]
    assert released == [] or (CUT_S >= GIVEN_UP_S and released == ["host_lost"])


async def exited(running: RunningInstallation, job: JobView) -> None:
    """Wait until the job's container has ended, whether or not its runner can report it."""

    async def over() -> bool:
        found = [one for one in await running.installation.containers() if one.identity.job == job.id]
        return all(one.state == "exited" for one in found)

    await wait_for(over, timeout_s=30)


@pytest.mark.parametrize("name", FAULTS)
async def test_what_ends_while_the_wire_is_cut_is_reported_once_and_not_run_again(
    separated: SeparatedInstallation, name: str, tmp_path: Path
):
    running = separated.running
    ends, goes_on = await submit_with_file(running, tmp_path, 1.5), await submit_with_file(running, tmp_path, CUT_S + 2)
    async with follow_all(running, ends, goes_on) as final_states:
        for job in (ends, goes_on):
            await wait_until_running(running, job.id)
        with apply_rules(separated.net, FAULTS[name](separated.ports)):
            mended = anyio.current_time() + CUT_S
            await exited(running, ends)
            await anyio.sleep_until(mended)
    assert list(final_states.values()) == [["succeeded"], ["succeeded"]]
    for job in (ends, goes_on):
        await assert_ran_once(running, job)
    await wait_until_clean(running)


async def test_a_wire_that_loses_every_twentieth_packet_costs_time_and_no_job(
    separated: SeparatedInstallation, tmp_path: Path
):
    running = separated.running
    with apply_rules(separated.net, LOSSY(separated.ports)):
        jobs = [await submit_with_file(running, tmp_path, 0.3) for _ in range(9)]
        async with follow_all(running, *jobs) as final_states:
            pass
    assert list(final_states.values()) == [["succeeded"]] * len(jobs)
    for job in jobs:
        await assert_ran_once(running, job)
    await wait_until_clean(running)


async def test_a_host_300_ms_away_does_the_same_work(separated: SeparatedInstallation, tmp_path: Path):
    running, installation = separated.running, separated.running.installation
    near = installation.runners["gpu-1"]
    await near.stop()
    address = installation.url.removeprefix("http://").partition(":")[0]
    async with (
        run_proxy(address, separated.ports.broker, delay_s=ROUND_TRIP_S / 2) as broker,
        run_proxy(address, separated.ports.edge, delay_s=ROUND_TRIP_S / 2) as edge,
    ):
        await installation.start_runner(
            "far",
            broker=f"nats://127.0.0.1:{broker.port}",
            endpoints=(IMAGES / "echo",),
            LAMPLIGHTER_EDGE__URL=f"http://127.0.0.1:{edge.port}",
            LAMPLIGHTER_SLOTS="3",
        )
        jobs = [await submit_with_file(running, tmp_path, 0.3) for _ in range(3)]
        async with follow_all(running, *jobs) as final_states:
            pass
        assert list(final_states.values()) == [["succeeded"]] * len(jobs)
        for job in jobs:
            await assert_ran_once(running, job)
            assert (await running.ann.job(job.id)).host == "far"
        await wait_until_clean(running, "far")
        await installation.runners["far"].stop()
    await near.start()
