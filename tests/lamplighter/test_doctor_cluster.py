"""`doctor` tells of a broker's server that is ill while the others work, and calls nothing broken."""

from pathlib import Path

import httpx2
import pytest

from lamplighter.cli.context import EdgeAddress
from lamplighter.cli.doctor import CheckStatus, DoctorTarget, Finding, check_readiness

WELL = Finding("broker", CheckStatus.OK, "reachable, synced, and its store has room")


@pytest.mark.parametrize(
    ("status", "said", "found"),
    [
        (200, {"status": "ok"}, [WELL]),
        (
            200,
            {"degraded": ["n1 is full: make room"]},
            [WELL, Finding("broker", CheckStatus.WARN, "n1 is full", "make room")],
        ),
        (503, {"why": ["it is full: make room"]}, [Finding("broker", CheckStatus.FAIL, "it is full", "make room")]),
    ],
)
def test_what_is_broken_fails_and_what_is_ill_warns(status: int, said: dict, found: list[Finding]):
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, json=said)

    with httpx2.Client(base_url="http://edge", transport=httpx2.MockTransport(answer)) as client:
        assert list(check_readiness(DoctorTarget(EdgeAddress("http://edge", None), Path(), client))) == found
