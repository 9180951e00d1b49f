"""Print docs/metrics.md from the table in `schemas.metrics`: `just docs` writes the page, a test compares it."""

from collections.abc import Iterable

from schemas.metrics import METRICS, SERIES_LIMIT, Label, Metric, MetricOwner

HEAD = f"""# Metrics

`just docs` makes the tables of this page from [`schemas/metrics.py`](../schemas/metrics.py); a test keeps them current.
[`deploy/prometheus/prometheus.yml`](../deploy/prometheus/prometheus.yml) scrapes all three:

- **The edge** answers `GET /metrics` to a key with the scope `hosts:read`. With `power` or `admin` the key sees
  everything. Another key sees the metrics that are marked with a star, and of jobs those of its own owner.
- **A runner** answers `GET /metrics` at `[metrics] listen` ([settings.md](settings.md)), which is off unless it is set.
  It asks for no key. A port alone means 127.0.0.1.
- **The broker** is read [through an exporter](#the-broker).

Edge and runner also answer the `process_…` and `python_…` metrics of Prometheus' Python client.

**Several edges.** A metric of the scope *process* has what passed through that process: add the values of several.
A metric of the scope *installation* has the same value at every edge: take the largest,
`max without (instance) (…)`. Counters and histograms of that scope have what the edge saw since it started. Each edge
counts each job once.

**How many series.** No label has the id of a job. A label has at most {SERIES_LIMIT} values that are not listed here.
Everything beyond them counts as `other`. Owners are labels only with `[metrics] owners = true`.
"""

BROKER = """## The broker

The edge answers how full the broker's store is, whether the broker syncs its writes, and what waits in it. The broker
itself tells more: connections, memory, slow consumers, and each stream. nats-server answers JSON at its monitor, which
Prometheus cannot read. The [exporter of the NATS project](https://github.com/nats-io/prometheus-nats-exporter) turns it
into metrics. Run it on the broker's machine. `nats.conf` has the monitor's port in `http` and its path in
`http_base_path`. The path is a secret ([decision 061](decisions/061-the-monitor-s-path-is-a-secret.md)). Every user of
the machine can read the exporter's command line, so run it where no one else logs in.

```text
prometheus-nats-exporter -addr 127.0.0.1 -port 7777 -varz -healthz -jsz=streams http://127.0.0.1:8222/PATH
```
"""
LISTED_VALUES_LIMIT = 10


def format_label(label: Label) -> str:
    """Return a label with its values, or with what bounds them."""
    values = " ".join(f"`{value}`" for value in label.values[:LISTED_VALUES_LIMIT])
    more = " …" if len(label.values) > LISTED_VALUES_LIMIT else ""
    return f"`{label.name}`: {label.bound or values + more}"


def format_row(metric: Metric) -> str:
    """Return the table row of one metric."""
    labels = "; ".join(format_label(label) for label in metric.labels)
    mark = " *" if metric.for_all_keys else ""
    return f"| `{metric.name}`{mark} | {metric.type} | {metric.unit} | {metric.scope} | {metric.help} | {labels} |"


def format_table(title: str, metrics: Iterable[Metric]) -> str:
    """Return the table of one process."""
    head = f"## {title}\n\n| metric | type | unit | scope | meaning | labels |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(format_row(metric) for metric in metrics)])


def document() -> str:
    """Return docs/metrics.md as it has to be."""
    edge = [metric for metric in METRICS if metric.owner is MetricOwner.EDGE]
    runner = [metric for metric in METRICS if metric.owner is MetricOwner.RUNNER]
    return "\n".join([HEAD, format_table("The edge", edge), "", format_table("The runner", runner), "", BROKER])


if __name__ == "__main__":
    print(document(), end="")
