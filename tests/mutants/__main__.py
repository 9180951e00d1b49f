"""`just mutants`: change the modules of the plan, one place at a time, and count the changes that no test notices.

    python -m tests.mutants [MODULE…] [--sample N] [--seed S] [--jobs N] [--json] [--again FILE]

MODULE is a group of tests/mutants/plan.py, a path, or a path with a line (edge/jobs/service.py:120). By default SAMPLE
mutants of each group are tested, chosen by the seed; `--sample 0` tests all. A mutant that hangs counts as killed.
`--again` takes the output of an earlier run with --json: what was killed then counts and is not tested again.
Exits 1 when fewer than 90 % of the tested mutants are killed, in all or in one group.
"""

import argparse
import ast
import json
import os
import queue
import random
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.mutants.equivalents import EQUIVALENTS, Equivalent
from tests.mutants.operators import FUNCTIONS, Mutant, mutants_of
from tests.mutants.plan import GROUPS, ModuleGroup
from tests.mutants.workplace import ROOT, MutantOutcome, RecordedTest, Workplace

SAMPLE = 30
SEED = 13
LEAST_KILLED = 0.9
DEADLINE_FACTOR, DEADLINE_S = 5, 12  # a test gets DEADLINE_S, and DEADLINE_FACTOR times what it takes otherwise


class GroupChoice(NamedTuple):
    """The mutants of a group: the number of all, and of the sample those to test and those argued equivalent."""

    total: int
    tested: list[Mutant]
    equivalent: list[Mutant]


def find_equivalent(mutant: Mutant, equivalents: Iterable[Equivalent]) -> Equivalent | None:
    """Return the entry that says that `mutant` changes nothing."""
    return next((entry for entry in equivalents if entry[:3] == (mutant.path, mutant.function, mutant.change)), None)


def choose(name: str, group: ModuleGroup, sample: int, seed: int, lines: dict[str, set[int]]) -> GroupChoice:
    """Choose the mutants of a group; `lines` are the only ones, by path, where some are given."""
    every = [mutant for path in group.modules for mutant in mutants_of(path, (ROOT / path).read_bytes())]
    if lines:
        every = [mutant for mutant in every if mutant.line in lines.get(mutant.path, ())]
    chosen = every
    if 0 < sample < len(every):
        numbers = random.Random(f"{seed}/{name}").sample(range(len(every)), sample)
        chosen = [every[number] for number in sorted(numbers)]
    equivalent = [mutant for mutant in chosen if find_equivalent(mutant, EQUIVALENTS)]
    return GroupChoice(len(every), [mutant for mutant in chosen if mutant not in equivalent], equivalent)


def unmatched_equivalents() -> list[Equivalent]:
    """Return the entries that match no mutant: the code has changed."""
    every = {
        (mutant.path, mutant.function, mutant.change)
        for path in {entry.path for entry in EQUIVALENTS}
        for mutant in mutants_of(path, (ROOT / path).read_bytes())
    }
    return [entry for entry in EQUIVALENTS if entry[:3] not in every]


def choose_tests(mutant: Mutant, group: ModuleGroup, records: list[RecordedTest]) -> dict[str, float]:
    """Return the tests that can notice `mutant`, in the order to run them, each with its deadline in seconds.

    These are the tests that run one of its lines. What is outside of a function runs when a module is imported, so
    every test can notice it; the same holds where no test runs the line in its own process.
    """
    passing = [record for record in records if record.outcome == "passed"]
    places = {(mutant.path, line) for line in mutant.lines}
    running = [record for record in passing if record.lines & places] if in_function(mutant) else passing
    rank = {file: place for place, file in enumerate(group.tests)}
    ordered = sorted(running or passing, key=lambda record: (rank[record.name.partition("::")[0]], record.seconds))
    return {record.name: DEADLINE_S + DEADLINE_FACTOR * record.seconds for record in ordered}


def in_function(mutant: Mutant) -> bool:
    """Return whether the mutant is in the body of a function, and not in its `def` or outside of all functions."""
    for node in ast.walk(ast.parse((ROOT / mutant.path).read_bytes())):
        if isinstance(node, FUNCTIONS) and node.body[0].lineno <= mutant.line <= (node.end_lineno or 0):
            return True
    return False


Results = dict[str, list[tuple[Mutant, MutantOutcome]]]
KilledBefore = dict[tuple[str, int, str], MutantOutcome]


def read_killed(files: Iterable[Path]) -> KilledBefore:
    """Return the outcomes of the killed mutants in the output of earlier runs, by path, line and change."""
    rows = [row for file in files for row in json.loads(file.read_text())["mutants"] if row["killed"]]
    fields = MutantOutcome._fields
    return {
        (row["path"], row["line"], row["change"]): MutantOutcome(**{field: row[field] for field in fields})
        for row in rows
    }


class MutationRun:
    """A run over groups, on several workplaces at once."""

    def __init__(self, choices: dict[str, GroupChoice], folder: Path, jobs: int, before: KilledBefore) -> None:
        self._choices = choices
        self._before = before
        self._jobs = jobs
        self._idle: queue.Queue[Workplace] = queue.Queue()
        self._places = [Workplace(folder / str(number)) for number in range(jobs)]
        for place in self._places:
            self._idle.put(place)
        self._total = sum(not self._was_killed(mutant) for choice in choices.values() for mutant in choice.tested)
        self._done = 0

    def __enter__(self) -> "MutationRun":
        return self

    def __exit__(self, *_: object) -> None:
        for place in self._places:
            place.close()

    def _was_killed(self, mutant: Mutant) -> MutantOutcome | None:
        return self._before.get((mutant.path, mutant.line, mutant.change))

    def results(self) -> Results:
        """Test every chosen mutant."""
        work = [(name, mutant) for name, choice in self._choices.items() for mutant in choice.tested]
        groups = {name for name, mutant in work if not self._was_killed(mutant)}
        with ThreadPoolExecutor(self._jobs) as threads:
            records = dict(threads.map(self._record, sorted(groups)))
            outcomes = threads.map(
                lambda one: self._was_killed(one[1]) or self._test(one[0], one[1], records[one[0]]), work
            )
            results: Results = {name: [] for name in self._choices}
            for (name, mutant), outcome in zip(work, outcomes, strict=True):
                results[name].append((mutant, outcome))
        return results

    def _record(self, name: str) -> tuple[str, list[RecordedTest]]:
        group, place = GROUPS[name], self._idle.get()
        try:
            started = time.monotonic()
            records, libraries = place.record(group.modules, group.tests, group.keyword)
            _say(f"{name}: {len(records)} tests without a mutant, {time.monotonic() - started:.0f} s")
            place.preload(libraries)
        finally:
            self._idle.put(place)
        return name, records

    def _test(self, name: str, mutant: Mutant, records: list[RecordedTest]) -> MutantOutcome:
        place = self._idle.get()
        try:
            outcome = place.test(mutant, GROUPS[name].tests, choose_tests(mutant, GROUPS[name], records))
        finally:
            self._idle.put(place)
        self._done += 1
        word = "killed" if outcome.killed else "SURVIVED"
        how = " (it hangs)" if outcome.hang else ""
        _say(f"[{self._done:>4}/{self._total}] {word:<8} {outcome.seconds:>5.1f} s  {describe(mutant)}{how}")
        return outcome


def describe(mutant: Mutant, limit: int = 200) -> str:
    """Return the place and the change, in one line."""
    change = mutant.change if len(mutant.change) <= limit else f"{mutant.change[:limit]}…"
    return f"{mutant.path}:{mutant.line} {mutant.function or '(module)'}: {change}"


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class GroupCounts(NamedTuple):
    """The counts of a group."""

    group: str
    mutants: int
    equivalent: int
    tested: int
    killed: int
    survived: int

    @property
    def share(self) -> float:
        return self.killed / self.tested if self.tested else 1.0


def rows_of(choices: dict[str, GroupChoice], results: Results) -> list[GroupCounts]:
    """Return one row a group, and their sum."""
    rows = []
    for name, choice in choices.items():
        outcomes = [outcome for _, outcome in results[name]]
        killed = sum(outcome.killed for outcome in outcomes)
        rows.append(
            GroupCounts(name, choice.total, len(choice.equivalent), len(outcomes), killed, len(outcomes) - killed)
        )
    return [*rows, GroupCounts("all", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True)))]


def table(rows: list[GroupCounts]) -> str:
    """Return the rows as a table for a page."""
    lines = ["| group | mutants | equivalent | tested | killed | survived | share |", "|---|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(map(str, row))} | {row.share:.0%} |" for row in rows]
    return "\n".join(lines)


def as_json(results: Results, rows: list[GroupCounts]) -> dict[str, Any]:
    mutants = [
        {
            "group": name,
            "path": mutant.path,
            "line": mutant.line,
            "function": mutant.function,
            "change": mutant.change,
            **outcome._asdict(),
        }
        for name, pairs in results.items()
        for mutant, outcome in pairs
    ]
    return {"groups": [row._asdict() | {"share": round(row.share, 4)} for row in rows], "mutants": mutants}


def asked_groups(words: list[str]) -> tuple[dict[str, ModuleGroup], dict[str, set[int]]]:
    """Return the groups that the words name, and the lines, by path, where they name some."""
    lines: dict[str, set[int]] = {}
    groups: dict[str, ModuleGroup] = {}
    for word in words:
        path, _, line = word.partition(":")
        found = {name: group for name, group in GROUPS.items() if path == name or path in group.modules}
        if not found:
            raise SystemExit(f"mutants: {word} is not in tests/mutants/plan.py; the groups are {', '.join(GROUPS)}")
        if line:
            lines.setdefault(path, set()).add(int(line))
        for name, group in found.items():
            only = (path,) if path in group.modules else group.modules
            before = groups[name].modules if name in groups else ()
            groups[name] = group._replace(modules=tuple(dict.fromkeys([*before, *only])))
    return groups or GROUPS, lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="just mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="a group, a path, path:line; default: all")
    parser.add_argument(
        "--sample", type=int, default=SAMPLE, help="mutants of each group, 0: all (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the choice of mutants (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="tests at once (default: the CPU cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--again", type=Path, action="append", default=[], help="output of an earlier run with --json")
    asked = parser.parse_args()
    if rotten := unmatched_equivalents():
        for entry in rotten:
            _say(f"mutants: no mutant matches this entry of equivalents.py: {entry.path} {entry.change}")
        return 2
    groups, lines = asked_groups(asked.modules)
    choices = {name: choose(name, group, asked.sample, asked.seed, lines) for name, group in groups.items()}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        Path(folder).chmod(0o711)  # jobs of the process engine run as another user
        with MutationRun(choices, Path(folder).resolve(), asked.jobs, read_killed(asked.again)) as run:
            results = run.results()
    rows = rows_of(choices, results)
    if asked.json:
        sys.stdout.write(json.dumps(as_json(results, rows)) + "\n")
    else:
        for name, pairs in results.items():
            for mutant, outcome in pairs:
                if not outcome.killed:
                    sys.stdout.write(f"survived ({name}): {describe(mutant)}\n")
        sys.stdout.write(table(rows) + "\n")
    return int(any(row.share < LEAST_KILLED for row in rows))


if __name__ == "__main__":
    sys.exit(main())
