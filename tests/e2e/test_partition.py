"""A runner that is cut off from the broker for longer than the gone rule, while another one takes its jobs."""

import pytest

from schemas.events import Cancelled, Released, Started, Succeeded
from schemas.job import JobKey
from tests.e2e.conftest import Lit, docker_only
from tests.e2e.installation import until
from tests.e2e.looking import (
    UNHURRIED,
    assert_one_end_a_round,
    ended,
    events,
    history,
    left,
    nothing_left,
    submit,
    working,
)
from tests.e2e.proxy import proxied

TAKEN_S = 100.0  # a lease of 30 s runs out, and who takes over must have been connected for 30 s
SECONDS = 12  # of work: the zombie is back, and would have told its result, before the other one has one
BACK_S = 25.0  # to dial again, and to look at the record: each heartbeat does, every 10 s


async def on_host(lit: Lit, job_id: str) -> str | None:
    """The host of the job's claim."""
    entry = await lit.bus.records.read(JobKey("ann", job_id))
    assert entry is not None
    claim = entry.recorded.job.claim
    return claim.host if claim else None


@docker_only  # the fence is not the engine's; once is enough for something so slow
@pytest.mark.long(60)
@pytest.mark.timeout(240)
async def test_a_runner_that_was_cut_off_ends_nothing_and_clears_away_when_it_is_back(lit: Lit):
    address, _, port = lit.installation.server.url.removeprefix("nats://").partition(":")
    async with proxied(address, int(port)) as proxy:
        through = f"nats://127.0.0.1:{proxy.port}"
        await lit.installation.start_runner("cut", broker=through, LAMPLIGHTER_SLOTS="2")
        finishes = await submit(lit, UNHURRIED, text="once", seconds=SECONDS)
        goes_on = await submit(lit, UNHURRIED, behave="hang")
        for job in (finishes, goes_on):
            await working(lit, job.id)
        await lit.installation.start_runner("other", LAMPLIGHTER_SLOTS="2")
        proxy.cut()

        async def taken() -> bool:
            return {await on_host(lit, finishes.id), await on_host(lit, goes_on.id)} == {"other"}

        await until(taken, TAKEN_S, every_s=0.5)
        # Cut off, it has ended nothing and thrown nothing away: one container has exited, the other one runs.
        assert sorted(found.state for found in await lit.installation.containers("cut")) == ["exited", "running"]

        proxy.heal()  # while the other one is still at both

        async def cleared() -> bool:
            return not await left(lit, ("cut",), messages=False)

        await until(cleared, BACK_S)
        assert (await lit.ann.job(goes_on.id)).status == "running"
        done = await ended(lit.ann, finishes.id)
        assert (done.output.data, done.host, done.attempt) == ({"text": "once"}, "other", 2)
        assert (
            done.finished_at - done.started_at
        ).total_seconds() >= SECONDS  # the other one's result, not the zombie's
        await lit.ann.cancel(goes_on.id)
        assert (await ended(lit.ann, goes_on.id)).status == "cancelled"
        await nothing_left(lit, "cut", "other")
        for job, end in ((finishes, Succeeded), (goes_on, Cancelled)):
            entries = await history(lit, job.id)
            assert [event.claim.host for event in events(entries, Started)] == ["cut", "other"]
            assert [event.code for event in events(entries, Released)] == ["host_lost"]
            assert len(events(entries, end)) == 1
            assert_one_end_a_round(entries)
        after = await submit(lit, text="works again")
        assert (await ended(lit.ann, after.id)).status == "succeeded"
