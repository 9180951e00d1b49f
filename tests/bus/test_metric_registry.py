"""Instruments from the table: bounded labels, and text that Prometheus reads."""

import pytest

from bus.metric_registry import MetricRegistry, render_for_any_key
from schemas.metrics import SERIES_LIMIT, MetricOwner
from tests.support.metric_samples import Series, parse_samples, series_of


def rendered(registry: MetricRegistry) -> dict[Series, float]:
    return parse_samples(registry.render(registry.snapshot()).decode())


def test_what_was_counted_is_answered():
    registry = MetricRegistry(MetricOwner.EDGE)
    submits = registry.counter("lamplighter_submits_total")
    submits.inc("echo")
    submits.inc("echo", amount=2)
    waits = registry.histogram("lamplighter_job_wait_seconds")
    waits.observe(3.0, "echo")
    waits.observe(-1.0, "echo")
    streams = registry.gauge("lamplighter_open_streams")
    streams.inc("sse")
    streams.inc("sse", amount=-1)
    found = rendered(registry)
    assert found["lamplighter_submits_total", "echo"] == 3
    assert found["lamplighter_job_wait_seconds_count", "echo"] == 2
    assert found["lamplighter_job_wait_seconds_sum", "echo"] == 3
    assert found["lamplighter_open_streams", "sse"] == 0
    assert found["process_start_time_seconds",] > 0
    assert not [series for series in found if series[0].endswith("_created")]


def test_values_beyond_the_limit_and_unknown_codes_are_counted_as_other():
    registry = MetricRegistry(MetricOwner.EDGE)
    submits = registry.counter("lamplighter_submits_total")
    refusals = registry.counter("lamplighter_submit_refusals_total")
    waits = registry.histogram("lamplighter_job_wait_seconds")
    for number in range(3 * SERIES_LIMIT):
        submits.inc(f"endpoint-{number}")
        refusals.inc(f"code-{number}")
        waits.observe(1.0, f"endpoint-{number}")
    refusals.inc("not_found")
    found = rendered(registry)
    assert len(series_of(found, "lamplighter_submits_total")) == SERIES_LIMIT + 1
    assert found["lamplighter_submits_total", "other"] == 2 * SERIES_LIMIT
    assert series_of(found, "lamplighter_submit_refusals_total") == {
        ("other",): 3 * SERIES_LIMIT,
        ("not_found",): 1,
    }
    assert found["lamplighter_job_wait_seconds_count", "other"] == 2 * SERIES_LIMIT


def test_a_snapshot_has_what_was_read_for_it_and_a_part_of_that_for_every_key():
    registry = MetricRegistry(MetricOwner.EDGE)
    registry.counter("lamplighter_submits_total").inc("echo")
    snapshot = registry.snapshot()
    snapshot.set("lamplighter_jobs", 2, "echo", "queued")
    snapshot.set("lamplighter_broker_connected", 1)
    snapshot.set("lamplighter_host_on_seconds_total", 9.5, "gpu-1")
    found = parse_samples(registry.render(snapshot).decode())
    assert found["lamplighter_jobs", "echo", "queued"] == 2
    assert found["lamplighter_broker_connected",] == 1
    assert found["lamplighter_host_on_seconds_total", "gpu-1"] == 9.5
    assert found["lamplighter_submits_total", "echo"] == 1
    assert parse_samples(render_for_any_key(snapshot).decode()) == {("lamplighter_jobs", "echo", "queued"): 2}


def test_a_name_that_is_not_in_the_table_is_refused():
    registry = MetricRegistry(MetricOwner.EDGE)
    with pytest.raises(KeyError):
        registry.counter("lamplighter_submit_total")
    with pytest.raises(ValueError, match="of the runner"):
        registry.counter("lamplighter_runner_warm_hits_total")
    with pytest.raises(ValueError, match="has 2 labels"):
        registry.snapshot().set("lamplighter_jobs", 1, "echo")
