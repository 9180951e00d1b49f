"""A few minutes of mixed load without faults; `just soak --minutes 60` is the long run."""

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from tests.chaos.soak import SoakSample, find_leaks, run_soak

SECONDS = 45
FIRST = SoakSample(
    jobs=24,
    rss_mb={"edge": 100.0, "broker": 30.0},
    handles={"edge": 40, "broker": 20},
    consumers=2,
    containers=0,
    index_kb=200.0,
)


def after(jobs: int, **grown: Any) -> SoakSample:
    return structs.replace(FIRST, jobs=jobs, **grown)


GROWN = {
    "edge RSS": {"rss_mb": {"edge": 140.0, "broker": 30.0}},
    "broker RSS": {"rss_mb": {"edge": 100.0, "broker": 60.0}},
    "edge descriptors": {"handles": {"edge": 60, "broker": 20}},
    "broker descriptors": {"handles": {"edge": 40, "broker": 200}},
    "consumers": {"consumers": 3},
    "containers": {"containers": 1},
    "index": {"index_kb": 20_000.0},
}


@pytest.mark.parametrize("what", GROWN)
def test_what_grows_is_named_and_nothing_else(what: str) -> None:
    (named,) = find_leaks([FIRST, after(48), after(72), after(96, **GROWN[what])])
    assert named.startswith(what)


def test_what_wanders_is_no_leak() -> None:
    last = after(96, rss_mb={"edge": 108.0, "broker": 35.0}, handles={"edge": 44, "broker": 22}, index_kb=700.0)
    assert find_leaks([FIRST, after(48), after(72), last]) == []


def test_one_high_moment_of_a_collected_heap_is_no_leak_and_a_risen_floor_is() -> None:
    def series(*broker_mb: float) -> list[SoakSample]:
        return [after(24 * (at + 1), rss_mb={"edge": 100.0, "broker": mb}) for at, mb in enumerate(broker_mb)]

    assert find_leaks(series(*[30.0] * 11, 90.0)) == []
    assert find_leaks(series(*[30.0] * 10, 90.0, 90.0)) == ["broker RSS, MB: 30, then 90"]


@pytest.mark.long(63)
@pytest.mark.timeout(400)
async def test_nothing_grows_under_load(tmp_path: Path, seed: int) -> None:
    report = await run_soak(tmp_path, SECONDS, seed)
    assert report.violations == []
    assert report.leaks == []
