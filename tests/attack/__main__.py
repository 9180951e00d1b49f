"""`just attack`: play every attack of the penetration test against this checkout, and print a table.

    python -m tests.attack [--json] [PYTEST ARGS…]

A row is a finding: how many attacks were played, and how many got through. Attacks that need what this machine lacks (a
Docker engine, root) are counted as skipped. Exits 1 where one got through. With --json, stdout has the rows as JSON,
and pytest's own output goes to stderr.
"""

import ast
import json
import sys
from collections import Counter
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent
WORKERS = "4"
DEFENDED, SUCCEEDED, SKIPPED = "held", "through", "skipped"


def finding(module: Path) -> str:
    """Return what a module attacks: the first line of its docstring."""
    return (ast.get_docstring(ast.parse(module.read_text())) or module.stem).splitlines()[0]


class OutcomeCounter:
    """A pytest plugin that counts the outcomes of each module."""

    def __init__(self) -> None:
        self.of: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            outcome = SKIPPED
        elif report.failed:
            outcome = SUCCEEDED
        elif report.when == "call":
            outcome = DEFENDED
        else:
            return
        self.of.setdefault(report.nodeid.partition("::")[0], Counter())[outcome] += 1


def main() -> int:
    as_json = "--json" in sys.argv
    more = [word for word in sys.argv[1:] if word != "--json"]
    counts = OutcomeCounter()
    how = ["-q", "-n", WORKERS, "--dist", "loadfile", "--no-header", "--no-summary", "-p", "no:cacheprovider"]
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        code = pytest.main([*how, str(FOLDER), *more], plugins=[counts])
    rows = {finding(FOLDER.parents[1] / name): counted for name, counted in sorted(counts.of.items())}
    if as_json:
        words = (DEFENDED, SUCCEEDED, SKIPPED)
        told = [{"finding": name} | {word: counted[word] for word in words} for name, counted in rows.items()]
        sys.stdout.write(json.dumps(told) + "\n")
        return int(code)
    table = Table("finding", "attacks", SUCCEEDED, SKIPPED, "result")
    for name, counted in rows.items():
        result = "[red]got through[/]" if counted[SUCCEEDED] else "held" if counted[DEFENDED] else "not played"
        table.add_row(
            name, str(counted[DEFENDED] + counted[SUCCEEDED]), str(counted[SUCCEEDED]), str(counted[SKIPPED]), result
        )
    Console().print(table)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
