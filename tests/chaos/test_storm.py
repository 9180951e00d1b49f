"""Half a minute of random disturbances from a fixed seed; `just chaos --minutes N` is the long run."""

from pathlib import Path

import pytest

from tests.chaos.storm import run_storm

SECONDS = 30


@pytest.mark.long(50)
@pytest.mark.timeout(400)
async def test_no_promise_is_broken_by_disturbances(tmp_path: Path, seed: int):
    report = await run_storm(tmp_path, SECONDS, seed)
    assert report.violations == [], f"just chaos --minutes {SECONDS / 60:g} --seed {seed} shows it again"
    assert report.jobs > SECONDS
    assert sum(report.counts.values()) >= 3
