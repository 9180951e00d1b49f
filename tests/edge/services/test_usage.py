"""Usage: shares spelled out, rows written once despite crashes and two edges, and the report."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edge.usage import TimeRange, UsageRecorder, UsageReports, allocate_costs
from schemas import events as e
from schemas.host_config import PowerPrice
from schemas.job import AttemptUsage, Claim, Output, Status
from schemas.job_view import Cost, JobUsage, PowerUsage
from schemas.power import OnInterval, PowerChange, PowerRecord, PowerState
from schemas.problems import ProblemError
from tests.support.edge_services import START, FakeBusServicesRig, fake_bus_services, run_services

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
DAY = TimeRange(NOON - timedelta(hours=12), NOON + timedelta(hours=12))


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def ran(name: str, start: float, run_minutes: float, **more: Any) -> JobUsage:
    return JobUsage(
        **{
            "owner": "ann",
            "id": name,
            "round": 1,
            "revision": 1,
            "endpoint": "echo",
            "status": Status.SUCCEEDED,
            "started_at": at(start),
            "finished_at": at(start + run_minutes),
            "host": "gpu-1",
            "run_s": run_minutes * 60,
            "gpus": 1,
            **more,
        }
    )


def lit(start: float, end: float, **more: Any) -> PowerUsage:
    return PowerUsage(
        **{"host": "gpu-1", "since": at(start), "until": at(end), "per_hour": 6.0, "currency": "EUR", **more}
    )


def shares(
    jobs: list[JobUsage], spans: list[PowerUsage], within: TimeRange = DAY
) -> dict[str, tuple[float, float, str]]:
    """Return minutes of on-time, cost and currency by job."""
    parts = allocate_costs(jobs, spans, within).shares
    return {part.job.id: (round(part.on_s / 60, 3), round(part.cost, 3), part.currency) for part in parts}


def test_wake_and_idle_tail_go_to_the_jobs_by_their_run_seconds() -> None:
    jobs = [ran("long", 2, 30), ran("short", 32, 10)]
    assert shares(jobs, [lit(0, 60)]) == {"long": (45.0, 4.5, "EUR"), "short": (15.0, 1.5, "EUR")}


def test_each_span_is_shared_by_its_own_jobs() -> None:
    jobs = [ran("one", 1, 5), ran("two", 121, 5), ran("other", 2, 5, host="gpu-2")]
    spans = [lit(0, 20), lit(120, 160), lit(0, 10, host="gpu-2", per_hour=1.2)]
    assert shares(jobs, spans) == {"one": (20.0, 2.0, "EUR"), "two": (40.0, 4.0, "EUR"), "other": (10.0, 0.2, "EUR")}


def test_a_span_of_nobody_counts_in_the_whole_and_in_no_share() -> None:
    whole = allocate_costs([], [lit(0, 30)], DAY)
    assert (whole.shares, dict(whole.on_s), whole.costs) == ((), {"gpu-1": 1800.0}, {"EUR": 3.0})


def test_a_range_cuts_spans_and_takes_the_jobs_that_ended_in_it() -> None:
    jobs = [ran("before", -30, 10), ran("in", 5, 10), ran("after", 50, 20)]
    within = TimeRange(NOON, at(60))
    assert shares(jobs, [lit(-60, 120)], within) == {"in": (60.0, 6.0, "EUR")}
    assert allocate_costs(jobs, [lit(-60, 120)], within).costs == {"EUR": 6.0}


@pytest.mark.parametrize("spans", [[], [lit(0, 60, per_hour=None, currency="")]])
def test_without_a_price_a_job_costs_what_its_runner_reckoned(spans: list[PowerUsage]) -> None:
    jobs = [ran("told", 1, 10, cost=0.4), ran("untold", 11, 10)]
    minutes = 30.0 if spans else 0.0
    assert shares(jobs, spans) == {"told": (minutes, 0.4, "CNY"), "untold": (minutes, 0.0, "CNY")}
    assert allocate_costs(jobs, spans, DAY).costs == {"CNY": 0.4}


def test_a_job_that_never_ran_is_counted_and_pays_nothing() -> None:
    never = ran("never", 0, 0, started_at=None, host=None, gpus=0)
    assert shares([never, ran("one", 1, 5)], [lit(0, 20)])["never"] == (0.0, 0.0, "CNY")


def test_a_job_that_seems_to_start_just_before_its_host_came_on_is_of_that_span() -> None:
    assert shares([ran("early", -0.05, 5)], [lit(-60, -30), lit(0, 20)]) == {"early": (20.0, 2.0, "EUR")}


RECORD = PowerRecord(state=PowerState.OFF, since=START)


def books(world: FakeBusServicesRig, records: Mapping[str, PowerRecord] | None = None) -> UsageRecorder:
    prices = {"gpu-1": PowerPrice(per_hour=6.0, currency="EUR")}
    return UsageRecorder(world.bus.usage_log, world.index, lambda: records or {}, prices)


async def used(world: FakeBusServicesRig) -> list[tuple[str, int, str, float]]:
    return [(row.id, row.round, str(row.status), row.run_s) for row in await world.bus.usage_log.job_rows(START)]


async def finish(world: FakeBusServicesRig, name: str, seconds: float, owner: str = "ann") -> None:
    job = await world.submit(owner, job_id=name)
    await world.write_event(job.key, e.Started(Claim("gpu-1", "i1", 1, "GPU-1")))
    world.time.advance(seconds=seconds)
    done = await world.write_event(job.key, e.Succeeded(Output(), AttemptUsage(run_s=seconds, gpu_energy_j=10.0)))
    await world.bus.job_queue.remove(done.pointer)


async def test_every_round_that_ends_is_one_row_however_often_it_is_reported(fake: FakeBusServicesRig) -> None:
    made = books(fake)
    await made.load_position()
    await finish(fake, "good", 9.0)
    job = await fake.submit(job_id="bad")
    await fake.jobs.cancel(job.key)
    await fake.wait_until_indexed()
    await fake.jobs.retry(job.key)
    await fake.jobs.cancel(job.key)
    await fake.wait_until_indexed()
    await made.write_pending()
    expected = [("good", 1, "succeeded", 9.0), ("bad", 1, "cancelled", 0.0), ("bad", 2, "cancelled", 0.0)]
    assert await used(fake) == expected
    again = books(fake)  # as after a crash before anything was written
    again._pending = made._pending
    await again.write_pending()
    assert await used(fake) == expected


async def test_what_ended_while_no_edge_was_up_is_written_by_the_next(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    first = books(fake)
    await first.load_position()
    await finish(fake, "one", 1.0)
    await first.write_pending()
    await finish(fake, "two", 2.0)  # and the edge dies before it writes this
    after = FakeBusServicesRig(tmp_path / "next", fake.broker, fake.time)
    second = books(after)
    await second.load_position()
    assert second.written_revision == first.written_revision > 0
    async with run_services(after):
        await after.wait_until_indexed()
        assert [row.id for row in second._pending] == ["two"]
        await second.write_pending()
    assert await used(fake) == [("one", 1, "succeeded", 1.0), ("two", 1, "succeeded", 2.0)]


async def test_two_edges_write_a_row_once(fake: FakeBusServicesRig, tmp_path: Path) -> None:
    async with fake_bus_services(tmp_path / "other", fake.broker, fake.time) as other:
        both = [books(fake), books(other)]
        await finish(fake, "one", 1.0)
        await other.wait_until_indexed()
        for one in both:
            await one.write_pending()
    assert await used(fake) == [("one", 1, "succeeded", 1.0)]


async def test_a_broker_that_is_away_only_puts_it_off(
    fake: FakeBusServicesRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = books(fake)
    await finish(fake, "one", 1.0)
    fake.broker.stop()

    async def back(_: float) -> None:
        fake.broker.start()

    monkeypatch.setattr("edge.usage.sleep", back)
    await made.write_pending()
    assert len(await used(fake)) == 1


async def test_spans_with_power_are_written_once_at_the_price_of_the_day(fake: FakeBusServicesRig) -> None:
    span = OnInterval(START, START + timedelta(hours=1), "a job waits for it")
    made = books(fake, {"gpu-1": replace(RECORD, on_intervals=(span,))})
    for _ in range(2):
        await made.write_on_intervals()
        made._written_intervals.clear()
    [row] = await fake.bus.usage_log.power_rows(START)
    assert (row.since, row.until, row.on_reason, row.per_hour, row.currency) == (*_times(span), span.why, 6.0, "EUR")


def _times(span: OnInterval) -> tuple[datetime, datetime]:
    return span.since, span.until


async def test_the_report_of_an_owner_and_of_everybody(fake: FakeBusServicesRig) -> None:
    """An hour on with 30 minutes of Ann and 10 of Bob, and a current interval without a job."""
    host = replace(RECORD, on_since=START, on_reason="a job waits for it", state=PowerState.ONLINE)
    records = {"gpu-1": replace(host, history=(PowerChange(START - timedelta(hours=1), PowerState.OFF, "new"),))}
    prices = {"gpu-1": PowerPrice(per_hour=6.0, currency="EUR")}
    made = UsageRecorder(fake.bus.usage_log, fake.index, lambda: records, prices)
    accounts = UsageReports(fake.bus.usage_log, lambda: records, prices, fake.time)
    fake.time.advance(minutes=5)
    await finish(fake, "one", 1800.0)
    await finish(fake, "two", 600.0, "bob")
    fake.time.advance(minutes=15)
    await made.write_pending()
    ann, everybody = await accounts.report("ann"), await accounts.report(None)
    assert (ann.jobs, ann.gpu_s, ann.energy_j, everybody.jobs, everybody.gpu_s) == (1, 1800.0, 10.0, 2, 2400.0)
    assert (ann.hours_on, everybody.hours_on) == (pytest.approx(0.75, 1e-3), pytest.approx(1.0, 1e-3))
    assert ann.cost == Cost(pytest.approx(4.5, 1e-3), "EUR")
    assert everybody.costs == (Cost(pytest.approx(6.0, 1e-3), "EUR"),)
    assert (ann.hours_saved, everybody.hours_saved) == (pytest.approx(0.75, 1e-3), pytest.approx(1.0, 1e-3))
    [share] = ann.by_endpoint
    assert (share.endpoint, share.jobs, share.hours_on) == ("echo", 1, ann.hours_on)
    nobody = await accounts.report("eve")
    assert (nobody.jobs, nobody.cost, nobody.hours_on, nobody.by_endpoint) == (0, Cost(0.0, "CNY"), 0.0, ())


async def test_a_range_without_length_is_refused(fake: FakeBusServicesRig) -> None:
    accounts = UsageReports(fake.bus.usage_log, dict, {}, fake.time)
    for since, until in ((START, START), (START + timedelta(days=1), None)):
        with pytest.raises(ProblemError) as refused:
            await accounts.report(None, since, until)
        assert refused.value.code == "input_invalid"
