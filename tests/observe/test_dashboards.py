"""The Grafana dashboards: their files are those of the table, and their queries name metrics that exist."""

import json
from pathlib import Path

import pytest
import yaml

from deploy.dashboards import DASHBOARDS, FOLDER, Dashboard, to_json
from tests.support.prometheus_tools import run_promtool
from tests.support.promql import find_unknown_names


def test_there_is_a_file_for_each_dashboard_and_no_other():
    assert {file.name for file in FOLDER.iterdir()} == {f"{dashboard.uid}.json" for dashboard in DASHBOARDS}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_a_file_is_what_the_table_says(dashboard: Dashboard):
    assert (FOLDER / f"{dashboard.uid}.json").read_text() == to_json(dashboard), "run: just docs"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_every_name_in_a_query_is_in_the_table_of_metrics(dashboard: Dashboard):
    queries = [query.expression for panel in dashboard.panels for query in panel.queries]
    assert queries
    assert {query: unknown for query in queries if (unknown := find_unknown_names(query))} == {}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_panels_do_not_overlap_and_each_has_its_own_number(dashboard: Dashboard):
    panels = json.loads(to_json(dashboard))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own


def test_prometheus_can_read_every_query(tmp_path: Path):
    queries = {query.expression for board in DASHBOARDS for panel in board.panels for query in panel.queries}
    rules = [
        {"record": f"query_{number}", "expr": query.replace("$__rate_interval", "1m").replace("$__range", "1h")}
        for number, query in enumerate(sorted(queries))
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(queries)} rules found" in run_promtool("check", "rules", file)


@pytest.mark.parametrize(
    ("expression", "unknown"),
    [
        ('sum by (endpoint) (lamplighter_jobs{status="queued"})', []),
        ("rate(lamplighter_job_wait_seconds_bucket[5m])", []),
        ("lamplighter_job_wait_seconds", ["lamplighter_job_wait_seconds"]),
        ("lamplighter_renamed_total", ["lamplighter_renamed_total"]),
        ('lamplighter_jobs{state="queued"}', ["lamplighter_jobs{state}"]),
        ('lamplighter_jobs{status=~"queued|waiting"}', ['lamplighter_jobs{status="waiting"}']),
        ("sum by (host) (lamplighter_jobs)", ["(host)"]),
    ],
)
def test_a_name_that_is_not_in_the_table_is_found(expression: str, unknown: list[str]):
    assert find_unknown_names(expression) == unknown
