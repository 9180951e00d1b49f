"""A wire that fails between a host and its edge: what ended meanwhile is told once, and nothing is run again.

Seconds here; `NETWORK_CUT_S=600 NETWORK_ROUND_TRIP_S=2 pytest tests/network` is as bad as one likes. Whether the mended
connections are those of before, or new ones, is up to both ends: they were told nothing.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from schemas.events import Released, Started, Succeeded
from schemas.view import JobView
from schemas.words import FINAL
from tests.e2e.conftest import Lit
from tests.e2e.installation import IMAGES, until
from tests.e2e.looking import assert_one_end_a_round, events, history, nothing_left, submit, working
from tests.network.conftest import Apart
from tests.network.faults import FAULTS, LOSSY, befallen
from tests.network.slow import distant

CUT_S = float(os.environ.get("NETWORK_CUT_S", "5"))
GIVEN_UP_S = 600.0  # a host that is silent for so long loses its claim; it takes it up again when nobody else did
PATIENCE_S = 90.0
ROUND_TRIP_S = float(os.environ.get("NETWORK_ROUND_TRIP_S", "0.3"))
POLICY = {"execution_timeout_s": CUT_S + 600, "stall_timeout_s": CUT_S + 600}
pytestmark = [pytest.mark.long(11), pytest.mark.timeout(CUT_S + 200)]


async def sent(lit: Lit, folder: Path, seconds: float) -> JobView:
    """A job with a file, so that its result goes to the edge and its end to the broker."""
    file = folder / "film.bin"
    file.write_bytes(os.urandom(200_000))
    return await submit(lit, POLICY, file=file, seconds=seconds, text="once")


@asynccontextmanager
async def followed(lit: Lit, *jobs: JobView) -> AsyncIterator[dict[str, list[str]]]:
    """The final states that a follower of each job is given; the streams have ended when the block has."""
    heard: dict[str, list[str]] = {job.id: [] for job in jobs}

    async def follow(job_id: str) -> None:
        async for event in lit.ann.follow(job_id):
            if event.kind == "state" and event.data["status"] in FINAL:
                heard[job_id].append(event.data["status"])

    with anyio.fail_after(CUT_S + PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            for job in jobs:
                tasks.start_soon(follow, job.id)
            yield heard


async def assert_ran_once(lit: Lit, job: JobView) -> None:
    entries = await history(lit, job.id)
    assert len(events(entries, Started)) == 1
    assert len(events(entries, Succeeded)) == 1
    assert_one_end_a_round(entries)
    released = [event.code for event in events(entries, Released)]
    assert released == [] or (CUT_S >= GIVEN_UP_S and released == ["host_lost"])


async def exited(lit: Lit, job: JobView) -> None:
    """Wait until the job's container has ended; whether its runner could tell anybody is another matter."""

    async def over() -> bool:
        found = [one for one in await lit.installation.containers() if one.identity.job == job.id]
        return all(one.state == "exited" for one in found)

    await until(over, 30)


@pytest.mark.parametrize("name", FAULTS)
async def test_what_ends_while_the_wire_is_cut_is_told_once_and_not_run_again(apart: Apart, name: str, tmp_path: Path):
    lit = apart.lit
    ends, goes_on = await sent(lit, tmp_path, 1.5), await sent(lit, tmp_path, CUT_S + 2)
    async with followed(lit, ends, goes_on) as heard:
        for job in (ends, goes_on):
            await working(lit, job.id)
        with befallen(apart.net, FAULTS[name](apart.ports)):
            mended = anyio.current_time() + CUT_S
            await exited(lit, ends)
            await anyio.sleep_until(mended)
    assert list(heard.values()) == [["succeeded"], ["succeeded"]]
    for job in (ends, goes_on):
        await assert_ran_once(lit, job)
    await nothing_left(lit)


async def test_a_wire_that_loses_every_twentieth_packet_costs_time_and_no_job(apart: Apart, tmp_path: Path):
    lit = apart.lit
    with befallen(apart.net, LOSSY(apart.ports)):
        jobs = [await sent(lit, tmp_path, 0.3) for _ in range(9)]
        async with followed(lit, *jobs) as heard:
            pass
    assert list(heard.values()) == [["succeeded"]] * len(jobs)
    for job in jobs:
        await assert_ran_once(lit, job)
    await nothing_left(lit)


async def test_a_host_300_ms_away_does_the_same_work(apart: Apart, tmp_path: Path):
    lit, installation = apart.lit, apart.lit.installation
    near = installation.runners["gpu-1"]
    await near.stop()
    address = installation.url.removeprefix("http://").partition(":")[0]
    async with (
        distant(address, apart.ports.broker, ROUND_TRIP_S / 2) as broker,
        distant(address, apart.ports.edge, ROUND_TRIP_S / 2) as edge,
    ):
        await installation.start_runner(
            "far",
            broker=f"nats://127.0.0.1:{broker}",
            endpoints=(IMAGES / "echo",),
            LAMPLIGHTER_EDGE__URL=f"http://127.0.0.1:{edge}",
            LAMPLIGHTER_SLOTS="3",
        )
        jobs = [await sent(lit, tmp_path, 0.3) for _ in range(3)]
        async with followed(lit, *jobs) as heard:
            pass
        assert list(heard.values()) == [["succeeded"]] * len(jobs)
        for job in jobs:
            await assert_ran_once(lit, job)
            assert (await lit.ann.job(job.id)).host == "far"
        await nothing_left(lit, "far")
        await installation.runners["far"].stop()
    await near.start()
