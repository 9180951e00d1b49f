"""docs/promises.md, docs/protocols.md and SECURITY.md promise nothing without a test."""

import re
from pathlib import Path

import pytest

from tests.chaos.checker import RULES
from tests.chaos.matrix import PAGE, ROOT

LINK = re.compile(r"\[`(test_\w+)`\]\(([^)]+)\)")


@pytest.mark.parametrize("page", [PAGE, ROOT / "docs/protocols.md", ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_every_test_that_the_page_names_exists(page: Path):
    links = LINK.findall(page.read_text())
    assert links
    for name, path in links:
        assert re.search(rf"^(async )?def {name}\(", (page.parent / path).read_text(), re.MULTILINE), (
            f"{name} in {path}"
        )


def test_every_promise_names_the_test_that_attacks_it():
    section = PAGE.read_text().split("## Promised")[1].split("## Not promised")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert rows
    assert [row for row in rows if not LINK.search(row)] == []


def test_every_promise_to_clients_names_the_test_that_keeps_it():
    rows = [line for line in (ROOT / "docs/protocols.md").read_text().splitlines() if line.startswith("| ")]
    promises = [row for row in rows if row != "| promise | kept by |"]
    assert len(promises) >= 80
    assert [row for row in promises if not LINK.search(row)] == []


def test_every_attack_of_the_threat_model_names_the_test_that_plays_it():
    rows = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")]
    attacks = [row for row in rows if row not in {"| must not | test |", "| attacks | tests |"}]
    assert len(attacks) >= 30
    assert [row for row in attacks if not LINK.search(row)] == []


def test_the_page_says_what_the_checker_checks():
    named = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert named == list(RULES)
