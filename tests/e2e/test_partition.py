"""A runner is cut off from the broker until its host counts as gone, while another host takes over its jobs."""

import pytest

from schemas.events import AttemptReleased, Cancelled, Started, Succeeded
from schemas.job import JobKey
from tests.e2e.conftest import docker_only
from tests.support.installation import RunningInstallation
from tests.support.job_checks import (
    LONG_TIMEOUTS,
    assert_one_end_a_round,
    events_of,
    find_leftovers,
    read_history,
    submit_job,
    wait_until_clean,
    wait_until_ended,
    wait_until_running,
)
from tests.support.tcp_proxy import run_proxy
from tests.support.wait import wait_for

TAKEN_S = 100.0  # a lease expires after 30 s; an edge must be connected for 30 s to judge
SECONDS = 12  # of work: the cut-off runner is back with a result before the other one has one
BACK_S = 25.0  # to reconnect, and to read the record, as each heartbeat does every 10 s


async def on_host(running: RunningInstallation, job_id: str) -> str | None:
    """Return the host of the job's claim."""
    entry = await running.bus.job_store.read(JobKey("ann", job_id))
    assert entry is not None
    claim = entry.record.job.claim
    return claim.host if claim else None


@docker_only  # the fence does not depend on the engine; one run is enough for a slow test
@pytest.mark.long(60)
@pytest.mark.timeout(240)
async def test_a_runner_that_was_cut_off_ends_nothing_and_clears_away_when_it_is_back(running: RunningInstallation):
    address, _, port = running.installation.server.url.removeprefix("nats://").partition(":")
    async with run_proxy(address, int(port)) as proxy:
        through = f"nats://127.0.0.1:{proxy.port}"
        await running.installation.start_runner("cut", broker=through, LAMPLIGHTER_SLOTS="2")
        finishes = await submit_job(running, LONG_TIMEOUTS, text="once", seconds=SECONDS)
        goes_on = await submit_job(running, LONG_TIMEOUTS, behave="hang")
        for job in (finishes, goes_on):
            await wait_until_running(running, job.id)
        await running.installation.start_runner("other", LAMPLIGHTER_SLOTS="2")
        proxy.cut()

        async def taken() -> bool:
            return {await on_host(running, finishes.id), await on_host(running, goes_on.id)} == {"other"}

        await wait_for(taken, timeout_s=TAKEN_S, interval_s=0.5)
        # The cut-off runner has recorded and removed nothing: one container has exited, the other one runs.
        assert sorted(found.state for found in await running.installation.containers("cut")) == ["exited", "running"]

        proxy.heal()  # while the other host still runs both

        async def cleared() -> bool:
            return not await find_leftovers(running, ("cut",), messages=False)

        await wait_for(cleared, timeout_s=BACK_S)
        assert (await running.ann.job(goes_on.id)).status == "running"
        done = await wait_until_ended(running.ann, finishes.id)
        assert (done.output.data, done.host, done.attempt) == ({"text": "once"}, "other", 2)
        assert (
            done.finished_at - done.started_at
        ).total_seconds() >= SECONDS  # the other host's result, not that of the cut-off one
        await running.ann.cancel(goes_on.id)
        assert (await wait_until_ended(running.ann, goes_on.id)).status == "cancelled"
        await wait_until_clean(running, "cut", "other")
        for job, end in ((finishes, Succeeded), (goes_on, Cancelled)):
            entries = await read_history(running, job.id)
            assert [event.claim.host for event in events_of(entries, Started)] == ["cut", "other"]
            assert [event.code for event in events_of(entries, AttemptReleased)] == ["host_lost"]
            assert len(events_of(entries, end)) == 1
            assert_one_end_a_round(entries)
        after = await submit_job(running, text="works again")
        assert (await wait_until_ended(running.ann, after.id)).status == "succeeded"
