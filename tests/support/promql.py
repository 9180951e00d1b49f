"""Which names of metrics and labels a PromQL expression uses, compared with the table of metrics."""

import re
from collections.abc import Iterator

from schemas.metrics import METRIC_BY_NAME, Metric, MetricType

_SELECTOR = re.compile(r"\b(lamplighter_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_HISTOGRAM_SUFFIX = re.compile(r"_(bucket|sum|count)$")
SCRAPE_LABELS = frozenset({"job", "instance", "le"})  # added by Prometheus and by histograms


def find_unknown_names(expression: str) -> list[str]:
    """Return what the expression names and the table of metrics does not have: metrics, labels, and their values."""
    return sorted(set(_unknown_names(expression)))


def _unknown_names(expression: str) -> Iterator[str]:
    used: set[str] = set()
    for name, matchers in _SELECTOR.findall(expression):
        metric = _find_metric(name)
        if metric is None:
            yield name
            continue
        labels = {label.name: label for label in metric.labels}
        used |= labels.keys()
        for label, operator, text in _MATCHER.findall(matchers):
            if label not in labels:
                yield f"{name}{{{label}}}"
            elif values := labels[label].values:
                known = set(map(str, values))
                yield from (
                    f'{name}{{{label}="{value}"}}'
                    for value in (text.split("|") if operator.endswith("~") else [text])
                    if value not in known
                )
    for grouping in _GROUPING.findall(expression):
        for label in filter(None, re.split(r"[,\s]+", grouping)):
            if label not in used | SCRAPE_LABELS:
                yield f"({label})"


def _find_metric(name: str) -> Metric | None:
    """Return the metric of a series. A histogram is used by the names of its parts only."""
    if (metric := METRIC_BY_NAME.get(name)) is not None:
        return None if metric.type is MetricType.HISTOGRAM else metric
    metric = METRIC_BY_NAME.get(_HISTOGRAM_SUFFIX.sub("", name))
    return metric if metric and metric.type is MetricType.HISTOGRAM else None
