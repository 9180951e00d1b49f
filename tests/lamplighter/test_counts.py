"""Counts as the command line prints them."""

import pytest

from lamplighter.cli.owners import WORDS
from lamplighter.cli.show import counted


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (0, ("job",), "0 jobs"),
        (1, ("job",), "1 job"),
        (2, ("job",), "2 jobs"),
        (1, WORDS["deliveries"], "1 webhook delivery"),
        (3, WORDS["deliveries"], "3 webhook deliveries"),
        (1, WORDS["usage_rows"], "1 row of usage"),
    ],
)
def test_one_is_not_many(count: int, words: tuple[str, ...], said: str) -> None:
    assert counted(count, *words) == said
