"""docs/sizing.md quotes figures of docs/performance.md."""

import re

import pytest

from tests.support.doc_pages import DOCS

# bench, what -> a phrase of sizing.md that holds the row's value
QUOTED = {
    ("waiting", "edge peak memory"): "| edge, 100,000 waiting jobs | {value} |",
    ("strangers", "edge peak memory beside them"): "1,000 streaming connections | {value} |",
    ("gateway", "edge memory per socket"): "| edge, for each open socket of the gateway | {value} |",
    ("assets", "edge memory above its start"): "| edge, more for an upload of 1 GB | {value} |",
    ("assets", "PUT of 1 GB against `sha256sum`"): "moved {value} on two cores",
    ("submit", "202s at 1 connection"): "{value} submits a second",
}
ROW = re.compile(r"^\| (\w+) \| ([^|]+) \| ([^|]+) \|[^|]*\|[^|]*\|(.*)\|$", re.MULTILINE)


@pytest.mark.parametrize("row", QUOTED, ids=" ".join)
def test_a_figure_is_the_measured_one(row: tuple[str, str]) -> None:
    rows = {(bench, what.strip()): (value.strip(), more.strip()) for bench, what, value, more in read_rows()}
    value, more = rows[row]
    if row == ("assets", "PUT of 1 GB against `sha256sum`"):
        value = more.partition(" against")[0]
    expected = QUOTED[row].format(value=value.removesuffix(" /s"))
    assert expected in " ".join((DOCS / "sizing.md").read_text().split())


def read_rows() -> list[tuple[str, ...]]:
    return ROW.findall((DOCS / "performance.md").read_text())
