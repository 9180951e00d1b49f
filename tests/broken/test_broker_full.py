"""A broker whose store is nearly full: new jobs are rejected while there is still room for the results of others."""

from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest

from bus.nats import topology
from bus.server.process import NatsServer
from edge.jobs.submission import STORE_USED_LIMIT_RATIO
from schemas.events import AttemptReleased, Started, Succeeded
from tests.broken import small_streams
from tests.broken.raw_publish import publish_raw
from tests.support.installation import IMAGES, Installation, RunningInstallation, run_installation
from tests.support.job_checks import (
    LONG_TIMEOUTS,
    events_of,
    read_history,
    submit_job,
    wait_until_clean,
    wait_until_ended,
    wait_until_running,
)
from tests.support.wait import wait_for

MIB = 1 << 20
STORE = 24 * MIB
BALLAST = "usage.job.ballast.{}.1"


@pytest.fixture
def shrunken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "STREAMS", small_streams.shrink_streams())


@pytest.fixture
async def tight(tmp_path: Path, shrunken: None) -> AsyncIterator[RunningInstallation]:
    installation = Installation(tmp_path, "process", None, {"edge": "tests.broken.small_streams"})
    installation.server = NatsServer(tmp_path / "broker", store_bytes=STORE)
    async with run_installation(installation, (IMAGES / "echo",)) as running:
        await installation.start_runner(endpoints=(IMAGES / "echo",), LAMPLIGHTER_SLOTS="2")
        yield running
        print(installation.tail())  # noqa: T201 - shown by pytest when the test failed


async def used(running: RunningInstallation) -> float:
    return (await running.bus.health.status()).used_share


async def fill(running: RunningInstallation, names: Iterator[int], share: float, size: int = MIB) -> None:
    """Fill `share` of the store, or until the broker accepts no more."""
    while await used(running) < share:
        if b'"error"' in await publish_raw(running, BALLAST.format(next(names)), bytes(size)):
            return


async def is_rejecting(running: RunningInstallation) -> bool:
    """Return whether a new job is rejected with 507."""
    answer = await running.ann._http.post("/v1/jobs", json={"endpoint": "echo", "input": {"text": "more"}})
    assert answer.status_code in {202, 507}, answer.text
    assert answer.status_code == 202 or answer.json()["code"] == "store_full"
    return answer.status_code == 507


@pytest.mark.long(19)
@pytest.mark.timeout(80)
async def test_a_full_broker_refuses_new_work_and_loses_no_result(tight: RunningInstallation):
    early, late = await submit_job(tight, LONG_TIMEOUTS, seconds=3), await submit_job(tight, LONG_TIMEOUTS, seconds=8)
    for job in (early, late):
        await wait_until_running(tight, job.id)
    names = count()
    await fill(tight, names, STORE_USED_LIMIT_RATIO)
    await wait_for(lambda: is_rejecting(tight), timeout_s=20)
    assert (await wait_until_ended(tight.ann, early.id)).status == "succeeded"  # there is room for the jobs that run

    for size in (MIB, 1 << 14, 1 << 8):
        await fill(tight, names, 2.0, size)

    async def exited() -> bool:
        found = [one for one in await tight.installation.containers() if one.identity.job == late.id]
        return [one.state for one in found] == ["exited"]

    await wait_for(exited, timeout_s=40)
    assert await is_rejecting(tight)
    assert await tight.bus.usage_log.delete_owner("ballast")
    assert (await wait_until_ended(tight.ann, late.id)).status == "succeeded"
    for job in (early, late):
        entries = await read_history(tight, job.id)
        assert [len(events_of(entries, kind)) for kind in (Started, AttemptReleased, Succeeded)] == [1, 0, 1]

    async def taken() -> bool:
        return not await is_rejecting(tight)

    await wait_for(taken, timeout_s=20)
    await wait_until_clean(tight)
