"""The selection of hosts to wake, spelled out."""

from typing import Any

import pytest

from edge.power.wake_selection import WakeCandidate, select_hosts_to_wake
from schemas.power import PowerState as S


def host(name: str, rank: int = 1, pools: str = "a", state: S = S.OFF, for_s: float = 0.0) -> WakeCandidate:
    return WakeCandidate(name, rank, frozenset(pools), state, for_s, fallback_after=600.0)


NEVER_SEEN = WakeCandidate("new", 1, None, S.OFF, 0.0, 600.0)


@pytest.mark.parametrize(
    ("pools", "served", "hosts", "woken"),
    [
        ("", "", [host("x")], ""),
        ("a", "", [host("x")], "x"),
        ("a", "a", [host("x")], ""),
        ("b", "", [host("x")], ""),
        ("a", "", [host("x", 2), host("y", 1)], "y"),
        ("a", "", [host("y"), host("x")], "x"),
        ("ab", "", [host("x", pools="a"), host("y", pools="b")], "xy"),
        ("ab", "a", [host("x", pools="a"), host("y", pools="b")], "y"),
        ("a", "", [host("x", state=S.BLOCKED, for_s=599.0), host("y", 2)], "x"),
        ("a", "", [host("x", state=S.BLOCKED, for_s=600.0), host("y", 2)], "xy"),
        ("a", "", [host("x", state=S.FAULT), host("y", 2)], "xy"),
        ("a", "", [host("x", state=S.FAULT), host("y", 2, state=S.WAKING), host("z", 3)], "xy"),
        ("a", "", [host("x", state=S.STOPPING), host("y", 2)], "x"),
    ],
)
def test_the_lowest_rank_is_called_and_the_next_when_it_cannot(
    pools: str, served: str, hosts: list[WakeCandidate], woken: str
) -> None:
    assert select_hosts_to_wake(set(pools), set(served), hosts) == set(woken)


@pytest.mark.parametrize("pool", ["a", "anything"])
def test_a_host_that_was_never_seen_may_offer_anything(pool: str, **_: Any) -> None:
    assert select_hosts_to_wake({pool}, set(), [NEVER_SEEN]) == {"new"}
