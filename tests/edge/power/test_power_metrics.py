"""What is counted of wakes, driver calls and the time with power, by every edge that sees the records."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from edge.core.metrics import EdgeMetrics, MetricsSettings
from edge.power.state_machine import initial_record
from edge.record_metrics import PowerMetrics, seconds_on
from schemas.host_config import PowerPrice
from schemas.power import OnInterval
from schemas.power import PowerState as S
from tests.edge.power.power_rig import HOST, PowerRig, run_power_rig
from tests.support.edge_services import START
from tests.support.metric_samples import Series, parse_samples, series_of

RULES = {"gpu-1": replace(HOST, price=PowerPrice(per_hour=3.0, currency="EUR"))}


class MeteredEdge:
    """The metrics of one edge of the rig."""

    def __init__(self, made: PowerRig, index: int = 0) -> None:
        self.metrics = EdgeMetrics(MetricsSettings())
        self.power_metrics = PowerMetrics(made.edges[index].power, RULES, self.metrics, made.time)

    def scrape(self) -> dict[Series, float]:
        snapshot = self.metrics.registry.snapshot()
        self.power_metrics.read(snapshot)
        return parse_samples(self.metrics.registry.render(snapshot).decode())


async def test_each_edge_counts_a_wake_its_duration_and_the_time_with_power(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, RULES, edges=2) as made:
        metered = [MeteredEdge(made, index) for index in range(2)]
        await made.edge.world.submit()
        online = await made.wait_for_state(S.ONLINE)
        await made.run_all_jobs()
        await made.wait_for_state(S.OFF)
        record = await made.record()
        for one in metered:
            found = one.scrape()
            assert found["lamplighter_wakes_total", "gpu-1"] == 1
            assert not series_of(found, "lamplighter_wake_failures_total")
            assert found["lamplighter_wake_duration_seconds_count", "gpu-1"] == 1
            assert found["lamplighter_wake_duration_seconds_sum", "gpu-1"] == pytest.approx(online.wake_durations_s[0])
            calls = {("gpu-1", "start", "done"): 1, ("gpu-1", "stop", "done"): 1}
            assert series_of(found, "lamplighter_host_power_calls_total") == calls
            interval = record.on_intervals[-1]
            on_s = (interval.until - interval.since).total_seconds()
            assert found["lamplighter_host_on_seconds_total", "gpu-1"] == pytest.approx(on_s)
            assert found["lamplighter_host_cost_total", "gpu-1", "EUR"] == pytest.approx(on_s / 3600 * 3.0)
            assert one.scrape()["lamplighter_host_on_seconds_total", "gpu-1"] == pytest.approx(on_s), "counted once"


async def test_a_boot_that_fails_is_a_failed_wake(tmp_path: Path) -> None:
    async with run_power_rig(tmp_path, RULES) as made:
        metered = MeteredEdge(made)
        made.runners["gpu-1"].crashed = True
        await made.edge.world.submit()
        await made.wait_for_state(S.FAULT)
        found = metered.scrape()
        assert found["lamplighter_wakes_total", "gpu-1"] == 2
        assert found["lamplighter_wake_failures_total", "gpu-1"] == 2
        assert found["lamplighter_host_power_state", "gpu-1", "fault"] == 1
        assert found["lamplighter_host_power_state", "gpu-1", "online"] == 0


def test_the_time_with_power_is_that_of_the_part_of_each_interval_in_the_span() -> None:
    def at(seconds: float) -> datetime:
        return START + timedelta(seconds=seconds)

    ended = (OnInterval(at(0), at(10), ""), OnInterval(at(20), at(30), ""))
    record = replace(initial_record(START), on_intervals=ended, on_since=at(40))
    assert seconds_on(record, at(5), at(50)) == 5 + 10 + 10
    assert seconds_on(record, at(30), at(40)) == 0
