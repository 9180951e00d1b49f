"""The contract of Ledger (bus/interface.py), on the fake and on a real broker."""

from datetime import timedelta

import anyio
import pytest
from msgspec.structs import replace

from bus.interface import BrokerUnreachable
from schemas.job import Status
from schemas.job_view import JobUsage, PowerUsage
from tests.support.bus_pairs import BusPair
from tests.support.bus_samples import NOW
from tests.support.wait import wait_for

JOB = JobUsage(
    owner="ann",
    id="a",
    round=1,
    revision=3,
    endpoint="echo",
    status=Status.SUCCEEDED,
    started_at=NOW,
    finished_at=NOW + timedelta(seconds=9),
    host="gpu-1",
    run_s=9.0,
    gpus=1,
    energy_j=120.5,
)
SPAN = PowerUsage(host="gpu-1", since=NOW, until=NOW + timedelta(hours=1), on_reason="a job waits for it", per_hour=1.8)
LONG_AGO = NOW - timedelta(days=500)


async def test_a_row_is_read_as_written(world: BusPair):
    ledger = world.edge.usage_log
    assert (await ledger.job_rows(LONG_AGO), await ledger.power_rows(LONG_AGO), await ledger.last_job_row()) == (
        [],
        [],
        None,
    )
    assert await ledger.add(JOB)
    assert await ledger.add(SPAN)
    assert await ledger.job_rows(LONG_AGO) == [JOB]
    assert await ledger.power_rows(LONG_AGO) == [SPAN]
    assert await ledger.last_job_row() == JOB


async def test_a_row_is_written_once_however_many_write_it(world: BusPair):
    ledger = world.edge.usage_log
    written: list[bool] = []

    async def write() -> None:
        written.append(await ledger.add(JOB))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(write)
    assert sorted(written) == [False] * 4 + [True]
    assert not await ledger.add(replace(JOB, run_s=1000.0))
    assert await ledger.job_rows(LONG_AGO) == [JOB]


async def test_it_is_once_over_a_restart_of_the_broker_too(world: BusPair):
    await world.edge.usage_log.add(JOB)
    await world.restart()

    async def refused() -> bool:
        try:
            return not await world.edge.usage_log.add(JOB)
        except BrokerUnreachable:
            return False

    await wait_for(refused)
    assert await world.edge.usage_log.job_rows(LONG_AGO) == [JOB]


async def test_a_retried_round_and_a_reused_name_are_rows_of_their_own(world: BusPair):
    ledger = world.edge.usage_log
    rows = [JOB, replace(JOB, round=2, revision=7), replace(JOB, revision=20)]
    assert [await ledger.add(row) for row in rows] == [True] * 3
    assert await ledger.job_rows(LONG_AGO) == rows
    assert await ledger.last_job_row() == rows[-1]


async def test_what_an_owner_used_is_erased_and_nothing_else(world: BusPair):
    ledger = world.edge.usage_log
    others = [replace(JOB, owner="ann2"), replace(JOB, owner="bob")]
    for row in (JOB, *others, replace(JOB, id="b"), SPAN):
        await ledger.add(row)
    await ledger.delete_owner("ann")
    await ledger.delete_owner("nobody")
    assert await ledger.job_rows(LONG_AGO) == others
    assert await ledger.power_rows(LONG_AGO) == [SPAN]
    assert await ledger.add(JOB)


@pytest.mark.parametrize("subject", ["usage.job.ann.a.1", "usage.power.gpu-1.1"])
async def test_rubbish_is_passed_over(world: BusPair, subject: str):
    await world.corrupt(subject, b"no row")
    await world.edge.usage_log.add(JOB)
    assert await world.edge.usage_log.job_rows(LONG_AGO) == [JOB]
    assert await world.edge.usage_log.power_rows(LONG_AGO) == []
