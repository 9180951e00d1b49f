"""Idle hosts that are woken at once: the one that loses the race stands back, and none fetches more than it must."""

from collections import defaultdict
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from bus.interface import Lane, QueueMessage
from runner.claiming.loop import LOST_RACE_DELAY_S, LOST_RACE_LIMIT, ClaimLoop
from schemas.job import Priority, Status
from tests.support.runner_environment import RunnerEnvironment
from tests.support.wait import wait_for


@pytest.fixture
def world(tmp_path: Path) -> RunnerEnvironment:
    return RunnerEnvironment(tmp_path)


class ObservedLoops:
    """What each claim loop did: a list of its fetches for each call of `_fetch_next`, and who won the wakes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: defaultdict[ClaimLoop, list[list[str]]] = defaultdict(list)
        self.races: defaultdict[ClaimLoop, list[tuple[bool, int]]] = defaultdict(list)
        fetch_next, fetch_woken, order_lanes = ClaimLoop._fetch_next, ClaimLoop._fetch_woken, ClaimLoop._order_lanes
        fetching: set[ClaimLoop] = set()

        async def next_one(loop: ClaimLoop) -> QueueMessage | None:
            self.calls[loop].append([])
            fetching.add(loop)
            try:
                return await fetch_next(loop)
            finally:
                fetching.remove(loop)

        async def woken(loop: ClaimLoop, lanes: list[Lane]) -> QueueMessage | None:
            self.calls[loop][-1].append("woken")
            delivery = await fetch_woken(loop, lanes)
            self.races[loop].append((delivery is not None, loop._lost_races))
            return delivery

        def ordered(loop: ClaimLoop, pools: list[str]) -> list[Lane]:
            if loop in fetching:  # the prefetch, while a job runs, orders lanes too
                self.calls[loop][-1].append("all")
            return order_lanes(loop, pools)

        monkeypatch.setattr(ClaimLoop, "_fetch_next", next_one)
        monkeypatch.setattr(ClaimLoop, "_fetch_woken", woken)
        monkeypatch.setattr(ClaimLoop, "_order_lanes", ordered)


async def test_a_host_that_lost_a_race_counts_it_and_a_win_forgets_it(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = ObservedLoops(monkeypatch)
    async with world.run_runner("i1"), world.run_runner("i2", host="gpu-2"):
        number = 0

        async def both_raced() -> bool:
            nonlocal number
            number += 1
            key = await world.submit("well", f"j{number}")
            assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
            races = [race for races in observed.races.values() for race in races]
            return {won for won, _ in races} == {True, False}

        await wait_for(both_raced)
    for races in observed.races.values():
        lost = 0
        for won, counted in races:
            lost = 0 if won else lost + 1
            assert counted == min(lost, LOST_RACE_LIMIT)


async def test_after_a_wake_only_its_lane_is_fetched(world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    observed = ObservedLoops(monkeypatch)
    world.pace = replace(world.pace, idle_s=3600.0)  # within it all lanes are fetched once
    async with world.run_runner():
        for priority in (Priority.NORMAL, Priority.LOW):
            key = await world.submit("well", f"job-{priority.value}", priority=priority)
            assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED
    ((loop, calls),) = observed.calls.items()
    assert loop.jobs_started == 2
    assert ["all"] in calls
    assert all(set(call) != {"woken", "all"} for call in calls)


async def test_a_message_without_a_wake_is_fetched_while_others_are_woken(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_idle = anyio.Event()

    async def always_woken(loop: ClaimLoop, pools: list[str], timeout_s: float) -> frozenset[Lane]:
        is_idle.set()
        await anyio.sleep(world.pace.idle_s)
        return frozenset(Lane(pool, Priority.HIGH) for pool in pools)  # where other hosts take every message

    monkeypatch.setattr(ClaimLoop, "_wait_for_messages", always_woken)
    async with world.run_runner():
        await is_idle.wait()
        key = await world.submit("well", "without-a-wake", priority=Priority.LOW)
        assert (await world.wait_until_ended(key)).status is Status.SUCCEEDED


async def test_all_lanes_are_fetched_again_soon_after_a_job_and_then_at_the_idle_interval(
    world: RunnerEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    wait_for_messages = ClaimLoop._wait_for_messages

    async def note_wait(loop: ClaimLoop, pools: list[str], timeout_s: float) -> frozenset[Lane]:
        waits.append(timeout_s)
        return await wait_for_messages(loop, pools, 3600.0 if len(waits) == 6 else 0.0)

    monkeypatch.setattr(ClaimLoop, "_wait_for_messages", note_wait)
    world.pace = replace(world.pace, idle_s=0.7, ahead_s=3600.0)

    async def has_waited(times: int) -> None:
        async def waited() -> bool:
            return len(waits) >= times

        await wait_for(waited)

    async with world.run_runner():
        await has_waited(6)
        assert waits[:6] == pytest.approx([0.1, 0.2, 0.4, 0.7, 0.7, 0.7])
        del waits[:]
        assert (await world.wait_until_ended(await world.submit("well"))).status is Status.SUCCEEDED
        await has_waited(3)
    assert waits[:3] == pytest.approx([0.1, 0.2, 0.4])


def test_a_host_stands_back_for_less_time_than_a_wake_is_waited_for() -> None:
    assert LOST_RACE_LIMIT * LOST_RACE_DELAY_S < 0.05
