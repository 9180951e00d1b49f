"""Read the text format of Prometheus."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from schemas.metrics import METRIC_BY_NAME

Series = tuple[str, ...]
"""The name of a sample, then its label values in the order of the table."""


def parse_samples(text: str) -> dict[Series, float]:
    """Return the value of each series. Raises ValueError for text that is not in the format."""
    return {
        (sample.name, *_label_values(family.name, sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def series_of(samples: Mapping[Series, float], name: str) -> dict[Series, float]:
    """Return the series of one sample name, by label values."""
    return {series[1:]: value for series, value in samples.items() if series[0] == name}


def _label_values(family: str, labels: Mapping[str, str]) -> list[str]:
    """Return the values in the order of the table: the text has the labels in alphabetical order."""
    metric = METRIC_BY_NAME.get(family) or METRIC_BY_NAME.get(f"{family}_total")
    ordered = [] if metric is None else [label.name for label in metric.labels]
    return [labels[name] for name in ordered] + [value for name, value in labels.items() if name not in ordered]
