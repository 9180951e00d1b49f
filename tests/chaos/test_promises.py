"""docs/promises.md promises nothing that no test attacks."""

import re

from tests.chaos.checker import RULES
from tests.chaos.matrix import PAGE

LINK = re.compile(r"\[`(test_\w+)`\]\(([^)]+)\)")


def test_every_test_that_the_page_names_exists():
    links = LINK.findall(PAGE.read_text())
    assert links
    for name, path in links:
        assert re.search(rf"^(async )?def {name}\(", (PAGE.parent / path).read_text(), re.MULTILINE), (
            f"{name} in {path}"
        )


def test_every_promise_names_the_test_that_attacks_it():
    section = PAGE.read_text().split("## Promised")[1].split("## Not promised")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert rows
    assert [row for row in rows if not LINK.search(row)] == []


def test_the_page_says_what_the_checker_checks():
    named = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert named == list(RULES)
