"""Print docs/metrics.md from the table in `schemas.metrics`: `./justw docs` writes the page, a test compares it."""

from collections.abc import Iterable

from schemas.metrics import METRICS, SERIES_LIMIT, Label, Metric, MetricOwner

HEAD = f"""# Metrics

`./justw docs` makes the tables of this page from [`schemas/metrics.py`](../schemas/metrics.py); a test keeps them
current. There are three sources, and
[`deploy/prometheus/prometheus.yml`](../deploy/prometheus/prometheus.yml) scrapes them all:

- **The edge** answers `GET /metrics` to a key with the scope `hosts:read`. A key that also has `power` or `admin` sees
  everything. Any other key sees only the metrics marked with a star, and only jobs of its own owner.
- **A runner** answers `GET /metrics` at `[metrics] listen` ([settings.md](settings.md)), which is off unless it is set.
  It asks for no key. A port alone means 127.0.0.1.
- **The broker** is read [through an exporter](#the-broker).

Edge and runner also answer the `process_…` and `python_…` metrics of Prometheus' Python client.

**Several edges.** The column "scope" says what a value is about. *process*: the one process that answers. Add the
counters, histograms and open streams of several edges; read each other gauge by itself. *installation*: every edge
measures the whole installation, so take the largest value, `max without (instance) (…)`. Counters and histograms start
at 0 when the process starts.

**How many series.** No label contains job ids. Some labels have values that are not known beforehand, such as endpoint
names. Such a label gets at most {SERIES_LIMIT} values, and everything beyond them counts as `other`. "…" stands for
more codes, which are all in [errors.md](errors.md). Owners are labels only with `[metrics] owners = true`.
"""

BROKER = """## The broker

The metrics of the edge include how full the broker's store is, whether the broker syncs its writes, and how many
messages wait. The broker itself measures more: connections, memory, slow consumers, and each stream. nats-server
answers this as JSON at its monitoring port, which Prometheus cannot read. An exporter turns it into metrics: the
[exporter of the NATS project](https://github.com/nats-io/prometheus-nats-exporter).

Run the exporter on the broker's machine. The URL below has the monitoring port (`http` in `nats.conf`) and its path
(`http_base_path`). The path is a secret ([decision 061](decisions/061-the-monitor-s-path-is-a-secret.md)). Every user
of the machine can read the exporter's command line, so run it where no one else logs in.

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
