"""Conditions of the broker under which new work is refused, and the remedy that the error names."""

from datetime import timedelta

import anyio
import pytest

from bus.health import BrokerStatus
from bus.interface import BrokerUnreachable
from edge.jobs.submission import BrokerReadiness
from schemas.problems import ProblemError
from tests.support.edge_services import START, FakeBusServicesRig

WELL = BrokerStatus(0.1, is_durable=True, version="")


@pytest.mark.parametrize(
    ("health", "code", "retry_after_s", "to_do"),
    [
        (WELL._replace(write_failed=True), "store_full", None, "make room on that disk"),
        (WELL._replace(used_share=0.8), "store_full", None, "give it more space"),
        (WELL._replace(is_durable=False), "unavailable", 5, "set sync_interval"),
        (WELL._replace(is_durable=None), "unavailable", 5, "set sync_interval"),
    ],
)
async def test_a_broker_that_is_not_well_takes_no_work(
    fake: FakeBusServicesRig,
    monkeypatch: pytest.MonkeyPatch,
    health: BrokerStatus,
    code: str,
    retry_after_s: int | None,
    to_do: str,
) -> None:
    async def answer() -> BrokerStatus:
        return health

    monkeypatch.setattr(fake.bus.health, "status", answer)
    with pytest.raises(ProblemError, match=to_do) as caught:
        await fake.readiness.check()
    assert (caught.value.code, caught.value.retry_after_s) == (code, retry_after_s)


async def test_a_broker_that_does_not_sync_takes_work_where_the_edge_allows_it(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer() -> BrokerStatus:
        return WELL._replace(is_durable=False, degraded=("broker-2 is down",))

    monkeypatch.setattr(fake.bus.health, "status", answer)
    readiness = BrokerReadiness(fake.bus.health, fake.time, allow_unsynced=True)
    assert readiness.degraded == ()
    await readiness.check()
    assert readiness.degraded == ("broker-2 is down",)


async def test_a_status_is_used_for_less_than_two_seconds(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, asks = START, 0

    async def answer() -> BrokerStatus:
        nonlocal asks
        asks += 1
        return WELL

    monkeypatch.setattr(fake.bus.health, "status", answer)
    readiness = BrokerReadiness(fake.bus.health, lambda: now)
    asked = []
    for microseconds in (0, 1_999_999, 2_000_000, 3_999_999, 1_999_999):  # the clock is set back at last
        now = START + timedelta(microseconds=microseconds)
        await readiness.check()
        asked.append(asks)
    assert asked == [1, 1, 2, 2, 3]


async def test_a_broker_that_is_there_and_cannot_be_used_is_not_called_away(fake: FakeBusServicesRig) -> None:
    fake.bus.health.cut()
    with pytest.raises(ProblemError, match="does not answer: try again"):
        await fake.readiness.check()
    fake.bus.health.fault = "the broker's store is too small: set max_file_store"
    with pytest.raises(ProblemError, match="set max_file_store"):
        await fake.readiness.check()
    fake.bus.health.heal()
    await fake.readiness.check()


async def test_a_burst_asks_the_broker_once_and_waits_only_for_what_is_too_old(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answered = anyio.Event(), anyio.Event()
    asks = checks = 0

    async def check() -> None:
        nonlocal checks
        await fake.readiness.check()
        checks += 1

    async def slow() -> BrokerStatus:
        nonlocal asks
        asks += 1
        asked.set()
        await answered.wait()
        return WELL

    await fake.readiness.check()
    monkeypatch.setattr(fake.bus.health, "status", slow)
    fake.time.advance(seconds=2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fake.readiness.check)
        await asked.wait()
        for _ in range(64):
            await fake.readiness.check()  # by the status of 2 s ago
        fake.time.advance(seconds=1.9)
        tasks.start_soon(check)
        await anyio.wait_all_tasks_blocked()
        assert checks == 1
        fake.time.advance(seconds=0.1)
        for _ in range(64):
            tasks.start_soon(check)
        await anyio.wait_all_tasks_blocked()
        assert checks == 1, "a status of 4 s ago is too old"
        answered.set()
    assert (asks, checks) == (1, 65)


async def test_who_waits_for_an_answer_that_does_not_come_asks_again(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent() -> BrokerStatus:
        raise BrokerUnreachable("no answer")

    monkeypatch.setattr(fake.bus.health, "status", silent)
    fake.time.advance(seconds=5)
    with pytest.raises(ProblemError, match="does not answer"):
        await fake.readiness.check()
    monkeypatch.undo()
    await fake.readiness.check()
