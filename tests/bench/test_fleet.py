"""The scenarios of `python -m bench fleet` in virtual time: the limits that CI holds."""

import pytest
from msgspec.structs import replace

from bench.fleet import CYCLES_LIMIT, SCENARIOS, describe, hindsight_optimum_s, play

BURST, SAWTOOTH, TRICKLE, NEVER_BOOTS, TWO_EDGES, *_ = SCENARIOS


def test_five_hundred_jobs_and_three_dark_hosts_are_three_starts_in_one_look() -> None:
    result = play(BURST)
    assert result.first_starts == 3
    assert [row.what for row in describe(result) if row.met is not True] == []


@pytest.mark.parametrize(
    "scenario",
    [replace(SAWTOOTH, hours=2.5), TRICKLE, replace(TWO_EDGES, hours=2.5)],
    ids=lambda scenario: scenario.name,
)
def test_cost_cycles_and_waits_are_within_their_limits(scenario) -> None:
    assert [row.what for row in describe(play(scenario)) if row.met is not True] == []


def test_a_host_that_never_boots_is_replaced() -> None:
    result = play(NEVER_BOOTS)
    assert result.first_starts == 3
    assert result.cycles <= CYCLES_LIMIT
    assert [row.what for row in describe(result) if row.met is not True] == []


@pytest.mark.parametrize(
    ("minutes", "hosts", "target_s", "hours_on"),
    [
        ([0], 1, 120.0, 120 + 20 + 60),  # boot, shutdown and one job
        ([0, 0, 0], 1, 300.0, 140 + 3 * 60),
        ([0, 0, 0], 3, 0.0, 3 * (140 + 60)),
        ([0, 1], 1, 60.0, 140 + 2 * 60),
        ([0, 10], 1, 60.0, 2 * (140 + 60)),  # it goes off in between
        ([0, 3], 1, 60.0, 140 + 3 * 60),  # the first job waits a minute, and it stays on for the second
    ],
)
def test_the_optimum_by_hand(minutes: list[int], hosts: int, target_s: float, hours_on: float) -> None:
    assert hindsight_optimum_s(minutes, hosts, target_s, hours=1.0) == hours_on
