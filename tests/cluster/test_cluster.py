"""The stream leader, an edge, a runner and a whole machine fail under load, and no promise is broken."""

from pathlib import Path
from random import Random

import pytest

from tests.cluster.__main__ import play
from tests.cluster.cluster_installation import COUNT
from tests.cluster.failures import CLUSTER_FAILURES
from tests.cluster.namespace_machines import create_machines

SEED = 6


@pytest.mark.long(66)
@pytest.mark.timeout(500)
async def test_a_cluster_loses_and_doubles_nothing_whoever_of_it_goes(tmp_path: Path):
    coming = list(CLUSTER_FAILURES)

    def next_failure(_: Random) -> str | None:
        return coming.pop(0) if coming else None

    with create_machines(COUNT) as machines:
        report = await play(tmp_path, machines, next_failure, SEED)
    assert report.violations == []
    assert [gaps.failure for gaps in report.gaps] == list(CLUSTER_FAILURES)
