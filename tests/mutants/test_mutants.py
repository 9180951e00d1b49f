"""The tool of `just mutants`: the changes that it makes, its tables, and one run over two mutants."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.__main__ import choose, choose_tests, unmatched_equivalents
from tests.mutants.equivalents import EQUIVALENTS
from tests.mutants.operators import mutants_of
from tests.mutants.plan import GROUPS, ModuleGroup
from tests.mutants.workplace import ROOT, RecordedTest, Workplace


def changes_of(source: str) -> list[str]:
    mutants = mutants_of("module.py", source.encode())
    for mutant in mutants:
        changed = mutant.apply(source.encode()).decode()
        assert changed != source
        compile(changed, "module.py", "exec")
    return [mutant.change for mutant in mutants]


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("a < b", ["a < b → a <= b", "a < b → a >= b"]),
        ("a is not b", ["a is not b → a is b"]),
        ("a and b", ["a and b → a", "a and b → a or b", "a and b → b"]),
        ("not a", ["not a → a"]),
        ("a - b", ["a - b → a + b"]),
        ("n = 8", ["8 → 7", "8 → 9"]),
        ("f(shield=True)", ["f(shield=True) → pass", "shield=True → shield=False"]),
        ("d = {'round': 1}", ["'round': 1 → 'round': 0", "'round': 1 → 'round': 2"]),
        ("def f(a, b=True):\n    pass", ["True → False"]),
        ("def f(a):\n    return a", ["return a → return None"]),
        ("def f(a):\n    raise a", ["raise a → pass"]),
        ("def f(a):\n    a = a.b\n    c = a", ["a = a.b → pass"]),
        ("a.b = c", ["a.b = c → pass"]),
        ("if a:\n    f()", ["if a → if not a", "f() → pass"]),
        ("async def f(a):\n    await a.b()", ["await a.b() → pass"]),
        ("for a in b:\n    break", ["break → pass"]),
        ("x = (\n    aé >\n    b  # why\n)", ["aé > b → aé <= b", "aé > b → aé >= b"]),
    ],
)
def test_a_change_is_made_and_shown(source: str, changes: list[str]) -> None:
    assert sorted(changes_of(source)) == sorted(changes)


@pytest.mark.parametrize(
    "source",
    [
        '"""1 < 2"""',
        "n: Literal[8]",
        "f'{1}'",
        "_log.info('a', n=1)",
        "class A(frozen=True):\n    pass",
        "n = a",
        "None",
    ],
)
def test_what_is_not_changed(source: str) -> None:
    assert changes_of(source) == []


def test_a_mutant_names_its_function_and_the_lines_of_its_statement() -> None:
    source = "class A:\n    async def f(self, b):\n        if (\n            b\n        ):\n            g(1)\n"
    assert [(one.function, one.line, one.lines) for one in mutants_of("module.py", source.encode())] == [
        ("A.f", 4, range(3, 6)),
        *[("A.f", 6, range(6, 7))] * 3,
    ]


def test_the_plan_names_what_there_is() -> None:
    named = [name for group in GROUPS.values() for name in (*group.modules, *group.tests)]
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_equivalent_matches_a_mutant_and_gives_its_reason() -> None:
    assert unmatched_equivalents() == []
    assert len({entry[:3] for entry in EQUIVALENTS}) == len(EQUIVALENTS)
    assert all(entry.reason for entry in EQUIVALENTS)


def test_a_sample_depends_on_its_seed_alone() -> None:
    group = GROUPS["lifecycle"]
    first, again, other = (choose("lifecycle", group, 10, seed, {}).tested for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 10


def test_a_run_tells_killed_from_survived_and_leaves_the_checkout_alone(tmp_path: Path) -> None:
    module, tests = "schemas/lifecycle.py", ("tests/schemas/test_retry_policy.py",)
    source = (ROOT / module).read_bytes()
    limit = next(mutant for mutant in mutants_of(module, source) if mutant.change == "10 → 11")
    place = Workplace(tmp_path)
    try:
        records, libraries = place.record((module,), tests)
        deadlines = choose_tests(limit, ModuleGroup((module,), tests), records)
        killed, survived = (place.test(limit._replace(text=text), tests, deadlines) for text in ("11", "(10)"))
    finally:
        place.close()
    assert (ROOT / module).read_bytes() == source
    assert (killed.killed, killed.hang, survived.killed) == (True, False, False)
    assert killed.test.startswith("tests/schemas/test_retry_policy.py::")
    assert deadlines.keys() == {record.name for record in records}
    assert "msgspec" in libraries
    assert "schemas.lifecycle" not in libraries


def test_only_tests_that_run_the_statement_are_chosen() -> None:
    source = (ROOT / "schemas/backoff.py").read_bytes()
    mutant = next(one for one in mutants_of("schemas/backoff.py", source) if one.change.startswith("return"))
    group = ModuleGroup(("schemas/backoff.py",), ("first.py", "second.py"))
    runs_it = frozenset({("schemas/backoff.py", mutant.line)})
    records = [
        RecordedTest("second.py::a", 2.0, "passed", runs_it),
        RecordedTest("first.py::b", 3.0, "passed", runs_it),
        RecordedTest("first.py::c", 1.0, "passed", runs_it),
        RecordedTest("first.py::skipped", 1.0, "skipped", runs_it),
        RecordedTest("first.py::elsewhere", 1.0, "passed", frozenset()),
    ]
    chosen = choose_tests(mutant, group, records)
    assert list(chosen) == ["first.py::c", "first.py::b", "second.py::a"]
    assert all(chosen[record.name] > record.seconds for record in records if record.name in chosen)


def test_a_test_that_hangs_kills_its_mutant(tmp_path: Path) -> None:
    module, tests = "schemas/backoff.py", ("tests/schemas/test_backoff.py",)
    mutant = next(one for one in mutants_of(module, (ROOT / module).read_bytes()) if one.change.startswith("return"))
    place = Workplace(tmp_path)
    try:
        records, _ = place.record((module,), tests)
        hangs = mutant._replace(text="import time; time.sleep(60)")
        outcome = place.test(hangs, tests, dict.fromkeys((record.name for record in records), 0.5))
    finally:
        place.close()
    assert (outcome.killed, outcome.hang) == (True, True)


@pytest.mark.parametrize("word", ["no_such_group", "edge/app.py"])
def test_a_module_that_is_not_in_the_plan_is_refused(word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutants", word], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert word in done.stderr
    assert "lifecycle" in done.stderr
