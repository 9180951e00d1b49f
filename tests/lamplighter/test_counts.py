"""Counts as the command line prints them."""

import pytest

from lamplighter.cli.administration import COUNT_LABELS
from lamplighter.cli.display import format_count


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (0, ("job",), "0 jobs"),
        (1, ("job",), "1 job"),
        (2, ("job",), "2 jobs"),
        (1, COUNT_LABELS["deliveries"], "1 webhook delivery"),
        (3, COUNT_LABELS["deliveries"], "3 webhook deliveries"),
        (1, COUNT_LABELS["usage_rows"], "1 row of usage"),
    ],
)
def test_one_is_not_many(count: int, words: tuple[str, ...], said: str) -> None:
    assert format_count(count, *words) == said
