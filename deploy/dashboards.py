"""Grafana dashboards: one table of panels, from which the JSON files in deploy/grafana are made by `just docs`.

`python -m deploy.dashboards` writes the files. A test compares every metric and label in a query with the table of
metrics, and runs every query in a real Prometheus over the data of a real run.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
SCHEMA_VERSION = 39  # of Grafana 10 and later
GRID_COLUMNS = 24
ROW_HEIGHT = 1
PANEL_HEIGHT = 8
STAT_HEIGHT = 4
PanelType = Literal["timeseries", "stat", "state-timeline", "bargauge"]
Unit = Literal[
    "short", "s", "percentunit", "bytes", "reqps", "celsius", "watt", "kwatth", "h", "dtdurations", "bool_yes_no"
]


class Query(Struct, frozen=True):
    """A PromQL expression, and the name of its series. `$__rate_interval` and `$__range` are Grafana's."""

    expression: str
    legend: str = ""


class Panel(Struct, frozen=True):
    """One panel. `width`: columns of 24."""

    title: str
    queries: tuple[Query, ...]
    unit: Unit = "short"
    type: PanelType = "timeseries"
    width: int = 8
    description: str = ""


class Row(Struct, frozen=True):
    """A heading with the panels below it."""

    title: str
    panels: tuple[Panel, ...]


class Dashboard(Struct, frozen=True):
    """One dashboard. Its file has the name of `uid`."""

    uid: str
    title: str
    rows: tuple[Row, ...]
    range: str = "now-6h"

    @property
    def panels(self) -> tuple[Panel, ...]:
        """The panels of all rows, in order."""
        return tuple(panel for row in self.rows for panel in row.panels)


def _stat(title: str, expression: str, unit: Unit = "short", description: str = "", width: int = 4) -> Panel:
    return Panel(title, (Query(expression),), unit, "stat", width, description)


def _series(title: str, unit: Unit, *queries: Query, width: int = 8, description: str = "") -> Panel:
    return Panel(title, queries, unit, "timeseries", width, description)


def _rate(counter: str, *labels: str, matchers: str = "") -> str:
    """Return the rate of a counter that every process counts for itself."""
    return f"sum by ({', '.join(labels)}) (rate({counter}{matchers}[$__rate_interval]))"


def _shared_rate(counter: str, *labels: str) -> str:
    """Return the rate of a counter of the installation: every edge counts it, so the largest is taken."""
    return f"sum by ({', '.join(labels)}) (max without (instance) (rate({counter}[$__rate_interval])))"


def _shared_increase(counter: str, *labels: str, window: str = "$__range") -> str:
    """Return the increase of a counter of the installation in the time range of the dashboard."""
    return f"sum by ({', '.join(labels)}) (max without (instance) (increase({counter}[{window}])))"


def _quantiles(histogram: str, *labels: str) -> tuple[Query, ...]:
    """Return the median and the 95th percentile of a histogram."""
    names = "".join(f" {{{{{label}}}}}" for label in labels)
    rates = f"sum by ({', '.join(('le', *labels))}) (rate({histogram}_bucket[$__rate_interval]))"
    return (
        Query(f"histogram_quantile(0.5, {rates})", f"median{names}"),
        Query(f"histogram_quantile(0.95, {rates})", f"p95{names}"),
    )


_NOW = Row(
    "Now",
    (
        _stat("Edge answers", 'min(up{job="lamplighter-edge"})', "bool_yes_no"),
        _stat("Accepts jobs", "min(lamplighter_edge_ready)", "bool_yes_no", "As /readyz says."),
        _stat("Jobs waiting", 'sum(max without (instance) (lamplighter_jobs{status="queued"}))'),
        _stat("Jobs running", 'sum(max without (instance) (lamplighter_jobs{status="running"}))'),
        _stat("Oldest wait", "max(lamplighter_queue_oldest_wait_seconds)", "s"),
        _stat("Broker store used", "max(lamplighter_broker_store_used_ratio)", "percentunit"),
    ),
)
_JOBS = Row(
    "Jobs",
    (
        _series(
            "Jobs waiting by endpoint",
            "short",
            Query('max by (endpoint) (lamplighter_jobs{status="queued"})', "{{endpoint}}"),
        ),
        _series(
            "Oldest wait by endpoint",
            "s",
            Query("max by (endpoint) (lamplighter_queue_oldest_wait_seconds)", "{{endpoint}}"),
        ),
        _series(
            "Submits",
            "reqps",
            Query(_rate("lamplighter_submits_total", "endpoint"), "{{endpoint}}"),
            Query(_rate("lamplighter_submit_replays_total", "endpoint"), "{{endpoint}}, again"),
            Query(_rate("lamplighter_submit_refusals_total", "code"), "refused: {{code}}"),
        ),
        _series("Ends", "reqps", Query(_shared_rate("lamplighter_jobs_ended_total", "status"), "{{status}}")),
        _series("Failures", "reqps", Query(_shared_rate("lamplighter_job_failures_total", "code"), "{{code}}")),
        _series(
            "Attempts",
            "reqps",
            Query(_shared_rate("lamplighter_attempts_started_total", "endpoint"), "{{endpoint}} started"),
            Query(_shared_rate("lamplighter_attempts_adopted_total", "endpoint"), "{{endpoint}} adopted"),
            Query(_shared_rate("lamplighter_attempts_released_total", "code"), "released: {{code}}"),
        ),
        _series("Time in the queue", "s", *_quantiles("lamplighter_job_wait_seconds", "endpoint"), width=12),
        _series("Run time", "s", *_quantiles("lamplighter_job_run_seconds", "endpoint"), width=12),
    ),
)
_HTTP = Row(
    "HTTP",
    (
        _series("Requests", "reqps", Query(_rate("lamplighter_http_requests_total", "status"), "{{status}}")),
        _series("Answer time", "s", *_quantiles("lamplighter_http_request_duration_seconds")),
        _series("Refusals", "reqps", Query(_rate("lamplighter_http_refusals_total", "code"), "{{code}}")),
        _series("Open streams", "short", Query("sum by (kind) (lamplighter_open_streams)", "{{kind}}")),
        _series(
            "Webhook attempts", "reqps", Query(_rate("lamplighter_webhook_attempts_total", "outcome"), "{{outcome}}")
        ),
        _series(
            "Webhook outbox",
            "short",
            Query("max(lamplighter_webhook_outbox_deliveries)", "deliveries"),
            Query("max(lamplighter_webhook_outbox_oldest_age_seconds)", "age of the oldest in seconds"),
        ),
    ),
)
_HOSTS = Row(
    "Hosts",
    (
        Panel(
            "Power state",
            (Query("max by (host, state) (lamplighter_host_power_state) == 1", "{{host}} {{state}}"),),
            type="state-timeline",
        ),
        _series("Hosts by state", "short", Query("max by (state) (lamplighter_hosts) > 0", "{{state}}")),
        _series(
            "Slots and running jobs",
            "short",
            Query("sum by (instance) (lamplighter_runner_slots)", "slots {{instance}}"),
            Query("sum by (instance) (lamplighter_runner_jobs)", "jobs {{instance}}"),
        ),
        _series("GPU utilization", "percentunit", Query("lamplighter_gpu_utilization_ratio", "{{instance}} {{gpu}}")),
        _series("GPU temperature", "celsius", Query("lamplighter_gpu_temperature_celsius", "{{instance}} {{gpu}}")),
        _series(
            "GPU memory used",
            "percentunit",
            Query("lamplighter_gpu_memory_used_bytes / lamplighter_gpu_memory_size_bytes", "{{instance}} {{gpu}}"),
        ),
        _series(
            "GPUs by health", "short", Query("max by (host, fitness) (lamplighter_host_gpus)", "{{host}} {{fitness}}")
        ),
        _series(
            "Inputs from the cache",
            "percentunit",
            Query(
                "sum(rate(lamplighter_runner_cache_hits_total[$__rate_interval])) "
                "/ sum(rate(lamplighter_runner_cache_hits_total[$__rate_interval]) "
                "+ rate(lamplighter_runner_cache_misses_total[$__rate_interval]))",
                "cache hits",
            ),
            description="No value while no job has files.",
        ),
        _series(
            "Warm containers",
            "reqps",
            Query(_rate("lamplighter_runner_warm_hits_total", "endpoint"), "{{endpoint}} warm"),
            Query(_rate("lamplighter_runner_warm_misses_total", "endpoint"), "{{endpoint}} cold"),
        ),
        _series("Container start", "s", *_quantiles("lamplighter_runner_engine_start_duration_seconds"), width=12),
        _series(
            "Age of the last heartbeat",
            "s",
            Query("max by (host) (lamplighter_host_heartbeat_age_seconds)", "{{host}}"),
            width=12,
        ),
    ),
)
_SERVER = Row(
    "Broker and disks",
    (
        _series(
            "Broker store",
            "bytes",
            Query("max(lamplighter_broker_store_used_bytes)", "used"),
        ),
        _series(
            "Messages that wait",
            "short",
            Query("max by (consumer) (lamplighter_broker_pending_messages)", "{{consumer}}"),
        ),
        _series(
            "Disk free",
            "percentunit",
            Query("lamplighter_edge_disk_free_bytes / lamplighter_edge_disk_size_bytes", "edge {{instance}}"),
            Query("lamplighter_runner_disk_free_bytes / lamplighter_runner_disk_size_bytes", "runner {{instance}}"),
        ),
        _series(
            "Clock of the edge less that of the broker",
            "s",
            Query("lamplighter_edge_clock_offset_seconds", "{{instance}}"),
        ),
        _stat("Broker syncs writes", "min(lamplighter_broker_durable)", "bool_yes_no"),
        _stat("Broker connected", "min(lamplighter_broker_connected)", "bool_yes_no"),
        _stat(
            "First certificate ends in",
            "min(lamplighter_certificate_expiry_timestamp_seconds) - time()",
            "dtdurations",
            width=8,
        ),
        _stat("Last backup", "time() - max(lamplighter_backup_last_success_timestamp_seconds)", "dtdurations", width=8),
    ),
)
_TOTALS = Row(
    "In the time range",
    (
        _stat("Hours on", _shared_increase("lamplighter_host_on_seconds_total", "host") + " / 3600", "h", width=6),
        _stat(
            "Cost",
            _shared_increase("lamplighter_host_cost_total", "currency"),
            description="Of the hours on, in the currency of the host.",
            width=6,
        ),
        _stat("GPU hours of jobs", _shared_increase("lamplighter_job_gpu_seconds_total") + " / 3600", "h", width=6),
        _stat(
            "Energy of jobs",
            _shared_increase("lamplighter_job_gpu_energy_joules_total") + " / 3600000",
            "kwatth",
            "As far as the GPUs report it.",
            width=6,
        ),
    ),
)
_COST = Row(
    "Cost",
    (
        _series(
            "Cost an hour",
            "short",
            Query(
                _shared_rate("lamplighter_host_cost_total", "host", "currency") + " * 3600", "{{host}} in {{currency}}"
            ),
            width=12,
        ),
        _series(
            "Cost of an ended job",
            "short",
            Query(
                f"{_shared_increase('lamplighter_host_cost_total', 'currency')} "
                f"/ on () group_left () {_shared_increase('lamplighter_jobs_ended_total')}",
                "{{currency}}",
            ),
            width=12,
            description="All cost of the time range, idle hours included, divided by the jobs that ended in it.",
        ),
        _series(
            "Share of time on",
            "percentunit",
            Query(_shared_rate("lamplighter_host_on_seconds_total", "host"), "{{host}}"),
        ),
        _series(
            "Share of the time on in which jobs had a GPU",
            "percentunit",
            Query(
                f"{_shared_increase('lamplighter_job_gpu_seconds_total')} "
                f"/ {_shared_increase('lamplighter_host_on_seconds_total')}",
                "all hosts",
            ),
            description="More than 100 % if several GPUs or hosts without a power driver work.",
        ),
        Panel(
            "On without work",
            (Query("max by (host) (lamplighter_host_up) - max by (host) (lamplighter_host_busy) == 1", "{{host}}"),),
            type="state-timeline",
        ),
    ),
)
_POWER = Row(
    "Power and energy",
    (
        _series("GPU power", "watt", Query("lamplighter_gpu_power_watts", "{{instance}} {{gpu}}")),
        _series(
            "Energy of jobs by endpoint",
            "watt",
            Query(_shared_rate("lamplighter_job_gpu_energy_joules_total", "endpoint"), "{{endpoint}}"),
            description="Energy is counted when a job ends.",
        ),
        _series(
            "GPU time by endpoint",
            "short",
            Query(_shared_rate("lamplighter_job_gpu_seconds_total", "endpoint"), "{{endpoint}}"),
            description="GPUs that the ended jobs had, on average.",
        ),
        Panel(
            "Power state",
            (Query("max by (host, state) (lamplighter_host_power_state) == 1", "{{host}} {{state}}"),),
            type="state-timeline",
        ),
        _series(
            "Wakes",
            "short",
            Query(_shared_increase("lamplighter_wakes_total", "host", window="1h"), "{{host}}, last hour"),
            Query(
                _shared_increase("lamplighter_wake_failures_total", "host", window="1h"),
                "{{host}} failed, last hour",
            ),
        ),
        _series("Wake duration", "s", *_quantiles("lamplighter_wake_duration_seconds", "host")),
    ),
)

DASHBOARDS = (
    Dashboard("lamplighter-operations", "Lamplighter: operations", (_NOW, _JOBS, _HTTP, _HOSTS, _SERVER)),
    Dashboard("lamplighter-cost", "Lamplighter: cost and energy", (_TOTALS, _COST, _POWER), "now-7d"),
)


def to_json(dashboard: Dashboard) -> str:
    """Return the JSON that Grafana imports."""
    model = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["lamplighter"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "refresh": "30s",
        "time": {"from": dashboard.range, "to": "now"},
        "templating": {"list": [_datasource_variable()]},
        "panels": list(_lay_out(dashboard)),
    }
    return json.dumps(model, indent=1) + "\n"


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _lay_out(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    """Place the panels of each row from left to right."""
    y, number = 0, 0
    for row in dashboard.rows:
        number += 1
        yield {"id": number, "type": "row", "title": row.title, "panels": [], "gridPos": _place(0, y, GRID_COLUMNS, 1)}
        y += ROW_HEIGHT
        x = height = 0
        for panel in row.panels:
            if x + panel.width > GRID_COLUMNS:
                x, y = 0, y + height
                height = 0
            number += 1
            tall = STAT_HEIGHT if panel.type == "stat" else PANEL_HEIGHT
            yield _panel(panel, number) | {"gridPos": _place(x, y, panel.width, tall)}
            x, height = x + panel.width, max(height, tall)
        y += height


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": DATASOURCE,
            "expr": query.expression,
            "legendFormat": query.legend or "__auto",
        }
        for index, query in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.type,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
    }


def write(folder: Path = FOLDER) -> None:
    """Write the JSON file of every dashboard."""
    folder.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        (folder / f"{dashboard.uid}.json").write_text(to_json(dashboard))


if __name__ == "__main__":
    write()
