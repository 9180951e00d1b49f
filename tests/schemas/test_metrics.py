"""The table of metrics: names by the conventions of Prometheus, and labels that are bounded."""

import re
from pathlib import Path

import pytest

from schemas.metrics import METRIC_BY_NAME, METRICS, Metric, MetricType

ROOT = Path(__file__).parents[2]
UNITS = ("seconds", "bytes", "ratio", "joules", "watts", "celsius")


def test_every_name_stands_once():
    assert len(METRIC_BY_NAME) == len(METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_name_keeps_the_conventions_of_prometheus(metric: Metric):
    assert re.fullmatch(r"lamplighter(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.type is MetricType.COUNTER)
    stem = metric.name.removesuffix("_total")
    assert [unit for unit in UNITS if stem.endswith(f"_{unit}")] == ([metric.unit] if metric.unit else [])
    assert bool(metric.buckets) == (metric.type is MetricType.HISTOGRAM)
    assert not metric.help.endswith(".")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_label_is_bounded_and_none_names_a_job(metric: Metric):
    names = [label.name for label in metric.labels]
    assert len(set(names)) == len(names)
    assert not {"job", "job_id", "id", "instance", "le"} & set(names)
    assert all(bool(label.values) != bool(label.bound) for label in metric.labels)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_is_fed_by_its_owner(metric: Metric):
    sources = (path.read_text() for path in (ROOT / metric.owner).rglob("*.py"))
    assert any(f'"{metric.name}"' in source for source in sources)
