"""The metrics of one process: instruments made from the table in `schemas.metrics`, and the text that Prometheus reads.

Events are counted as they happen. What can be read at any time, such as the length of a queue, is read for each scrape
and given as a `MetricSnapshot`.

Edge and runner share this module. Instruments may be used from several threads.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from schemas.metrics import METRIC_BY_NAME, OTHER, SERIES_LIMIT, Metric, MetricOwner, MetricType

CONTENT_TYPE = CONTENT_TYPE_LATEST

disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter, which only says when the process started


class LabelFolder:
    """Bounds the label values of one metric: a value that the table does not allow becomes `other`."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._seen: tuple[set[str], ...] = tuple(set() for _ in metric.labels)

    def fold(self, values: tuple[str, ...]) -> tuple[str, ...]:
        """Return the values of the series to use. Raises ValueError for a wrong number of values."""
        if len(values) != len(self._metric.labels):
            raise ValueError(f"{self._metric.name} has {len(self._metric.labels)} labels, not {len(values)}")
        return tuple(self._fold_one(index, value) for index, value in enumerate(values))

    def _fold_one(self, index: int, value: str) -> str:
        allowed, seen = self._metric.labels[index].values, self._seen[index]
        if allowed:
            return str(value) if value in allowed else OTHER
        if value in seen:
            return value
        if len(seen) >= SERIES_LIMIT:
            return OTHER
        seen.add(value)
        return value


class CounterFamily:
    """A counter of the table, with one series for each combination of label values."""

    def __init__(self, metric: Metric, registry: CollectorRegistry) -> None:
        names = [label.name for label in metric.labels]
        self._counter = Counter(metric.name, metric.help, names, registry=registry)
        self._folder = LabelFolder(metric)
        self._series: dict[tuple[str, ...], Counter] = {}

    def inc(self, *values: str, amount: float = 1.0) -> None:
        """Add `amount` to the series with these label values."""
        series = self._series.get(values)
        if series is None:
            folded = self._folder.fold(values)
            series = self._counter.labels(*folded) if folded else self._counter
            if folded == values:  # any other value is found by its fold, so that this dict is bounded too
                self._series[values] = series
        series.inc(amount)


class HistogramFamily:
    """A histogram of the table, with one series for each combination of label values."""

    def __init__(self, metric: Metric, registry: CollectorRegistry) -> None:
        names = [label.name for label in metric.labels]
        self._histogram = Histogram(metric.name, metric.help, names, buckets=metric.buckets, registry=registry)
        self._folder = LabelFolder(metric)
        self._series: dict[tuple[str, ...], Histogram] = {}

    def observe(self, value: float, *values: str) -> None:
        """Count `value` in the series with these label values. A clock that was set back gives no negative value."""
        series = self._series.get(values)
        if series is None:
            folded = self._folder.fold(values)
            series = self._histogram.labels(*folded) if folded else self._histogram
            if folded == values:
                self._series[values] = series
        series.observe(max(0.0, value))


class GaugeFamily:
    """A gauge of the table that goes up and down with events."""

    def __init__(self, metric: Metric, registry: CollectorRegistry) -> None:
        self._gauge = Gauge(metric.name, metric.help, [label.name for label in metric.labels], registry=registry)
        self._folder = LabelFolder(metric)

    def inc(self, *values: str, amount: float = 1.0) -> None:
        """Add `amount`, which may be negative, to the series with these label values."""
        self._gauge.labels(*self._folder.fold(values)).inc(amount)


class MetricSnapshot:
    """The values that are read for one scrape."""

    def __init__(self, owner: MetricOwner) -> None:
        self._owner = owner
        self._values: dict[str, dict[tuple[str, ...], float]] = {}
        self._folders: dict[str, LabelFolder] = {}

    def set(self, name: str, value: float, *values: str) -> None:
        """Set a series of the metric `name`. Values of series that fold into one are added."""
        metric = _metric_of(name, self._owner)
        folder = self._folders.setdefault(name, LabelFolder(metric))
        folded, series = folder.fold(values), self._values.setdefault(name, {})
        series[folded] = series.get(folded, 0.0) + float(value)

    def families(self, *, for_all_keys: bool = False) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Yield the metrics, or those that every key may see."""
        for name, series in self._values.items():
            metric = METRIC_BY_NAME[name]
            if for_all_keys and not metric.for_all_keys:
                continue
            family_type = CounterMetricFamily if metric.type is MetricType.COUNTER else GaugeMetricFamily
            family = family_type(name, metric.help, labels=[label.name for label in metric.labels])
            for values, value in series.items():
                family.add_metric(values, value)
            yield family


class _SnapshotCollector(Collector):
    """Answers a snapshot that `take` makes for each scrape."""

    def __init__(self, take: Callable[[], Iterable[GaugeMetricFamily | CounterMetricFamily]]) -> None:
        self._take = take

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        return self._take()

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()  # otherwise the registry takes a snapshot to learn the names


class MetricRegistry:
    """All metrics of one process of the kind `owner`. `collectors`: the same, as Prometheus' client has them."""

    def __init__(self, owner: MetricOwner) -> None:
        self._owner = owner
        self.collectors = CollectorRegistry()
        ProcessCollector(registry=self.collectors)
        PlatformCollector(registry=self.collectors)

    def counter(self, name: str) -> CounterFamily:
        """Return the counter `name` of the table."""
        return CounterFamily(_metric_of(name, self._owner), self.collectors)

    def histogram(self, name: str) -> HistogramFamily:
        """Return the histogram `name` of the table."""
        return HistogramFamily(_metric_of(name, self._owner), self.collectors)

    def gauge(self, name: str) -> GaugeFamily:
        """Return the gauge `name` of the table."""
        return GaugeFamily(_metric_of(name, self._owner), self.collectors)

    def snapshot(self) -> MetricSnapshot:
        """Return an empty snapshot for one scrape."""
        return MetricSnapshot(self._owner)

    def read_at_scrapes(self, read: Callable[[MetricSnapshot], None]) -> None:
        """Let `read` add its values to every scrape of `serve_metrics`. It is called in another thread."""

        def take() -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
            snapshot = self.snapshot()
            read(snapshot)
            return snapshot.families()

        self.collectors.register(_SnapshotCollector(take))

    def render(self, snapshot: MetricSnapshot) -> bytes:
        """Return everything in the text format of Prometheus."""
        return generate_latest(self.collectors) + _render(snapshot.families())


def render_for_any_key(snapshot: MetricSnapshot) -> bytes:
    """Return the metrics that every key may see."""
    return _render(snapshot.families(for_all_keys=True))


@contextmanager
def serve_metrics(registry: MetricRegistry, host: str, port: int) -> Iterator[int]:
    """Answer scrapes over HTTP during the block, in threads; yield the port. Raises OSError if it is taken."""
    server, thread = start_http_server(port, host, registry.collectors)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _render(families: Iterable[GaugeMetricFamily | CounterMetricFamily]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(lambda: families))
    return generate_latest(registry)


def _metric_of(name: str, owner: MetricOwner) -> Metric:
    metric = METRIC_BY_NAME[name]
    if metric.owner is not owner:
        raise ValueError(f"{name} is a metric of the {metric.owner}")
    return metric
