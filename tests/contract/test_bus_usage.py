"""The contract of Ledger (bus/ledger.py), on the fake and on a real broker."""

from datetime import timedelta

import anyio
import pytest
from msgspec.structs import replace

from bus.port import Unreachable
from schemas.usage import JobUse, PowerUse
from schemas.words import Status
from tests.broker import until
from tests.bus.samples import NOW
from tests.contract.bus_worlds import World

JOB = JobUse(
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
SPAN = PowerUse(host="gpu-1", since=NOW, until=NOW + timedelta(hours=1), why="a job waits for it", per_hour=1.8)
LONG_AGO = NOW - timedelta(days=500)


async def test_a_row_is_read_as_written(world: World):
    ledger = world.edge.usage
    assert (await ledger.jobs(LONG_AGO), await ledger.spans(LONG_AGO), await ledger.last()) == ([], [], None)
    assert await ledger.put(JOB)
    assert await ledger.put(SPAN)
    assert await ledger.jobs(LONG_AGO) == [JOB]
    assert await ledger.spans(LONG_AGO) == [SPAN]
    assert await ledger.last() == JOB


async def test_a_row_is_written_once_however_many_write_it(world: World):
    ledger = world.edge.usage
    written: list[bool] = []

    async def write() -> None:
        written.append(await ledger.put(JOB))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(write)
    assert sorted(written) == [False] * 4 + [True]
    assert not await ledger.put(replace(JOB, run_s=1000.0))
    assert await ledger.jobs(LONG_AGO) == [JOB]


async def test_it_is_once_over_a_restart_of_the_broker_too(world: World):
    await world.edge.usage.put(JOB)
    await world.restart()

    async def refused() -> bool:
        try:
            return not await world.edge.usage.put(JOB)
        except Unreachable:
            return False

    await until(refused)
    assert await world.edge.usage.jobs(LONG_AGO) == [JOB]


async def test_a_retried_round_and_a_reused_name_are_rows_of_their_own(world: World):
    ledger = world.edge.usage
    rows = [JOB, replace(JOB, round=2, revision=7), replace(JOB, revision=20)]
    assert [await ledger.put(row) for row in rows] == [True] * 3
    assert await ledger.jobs(LONG_AGO) == rows
    assert await ledger.last() == rows[-1]


async def test_what_an_owner_used_is_erased_and_nothing_else(world: World):
    ledger = world.edge.usage
    others = [replace(JOB, owner="ann2"), replace(JOB, owner="bob")]
    for row in (JOB, *others, replace(JOB, id="b"), SPAN):
        await ledger.put(row)
    await ledger.erase("ann")
    await ledger.erase("nobody")
    assert await ledger.jobs(LONG_AGO) == others
    assert await ledger.spans(LONG_AGO) == [SPAN]
    assert await ledger.put(JOB)


@pytest.mark.parametrize("subject", ["usage.job.ann.a.1", "usage.power.gpu-1.1"])
async def test_rubbish_is_passed_over(world: World, subject: str):
    await world.vandalise(subject, b"no row")
    await world.edge.usage.put(JOB)
    assert await world.edge.usage.jobs(LONG_AGO) == [JOB]
    assert await world.edge.usage.spans(LONG_AGO) == []
