"""Which words `./justw test` gives to pytest."""

import pytest

from tests.__main__ import pytest_words
from tests.parallel import sum_file_seconds

PARALLEL = ["-n", "5", "--dist", "loadfile", "--durations=10"]


@pytest.mark.parametrize(
    ("given", "called"),
    [
        ([], [*PARALLEL, "-m", "not long"]),
        (["-x"], [*PARALLEL, "-m", "not long", "-x"]),
        (["all"], PARALLEL),
        (["all", "-x"], [*PARALLEL, "-x"]),
        (["tests/test_docs.py"], ["tests/test_docs.py"]),
        (["tests/test_docs.py::test_python_in_the_readme_runs", "-x"],) * 2,
        (["-k", "two words"],) * 2,
        (["-m", "gpu"],) * 2,
    ],
    ids=" ".join,
)
def test_quick_without_a_choice_everything_with_all_and_pytests_own_with_one(given: list[str], called: list[str]):
    assert pytest_words(given, cores=2) == called


@pytest.mark.parametrize(("cores", "workers"), [(1, "4"), (2, "5"), (4, "10"), (64, "16")])
def test_a_machine_of_more_cores_runs_more_at_once(cores: int, workers: str):
    assert pytest_words(["all"], cores)[1] == workers


def test_the_table_of_files_that_take_long_is_made_of_all_that_a_test_does():
    def report(test: str, duration: float) -> pytest.TestReport:
        return pytest.TestReport(test, ("", 0, ""), {}, "passed", None, "call", duration=duration)

    reports = [report("a.py::one", 4.2), report("b.py::x", 30), report("a.py::two[p]", 3), report("c.py::y", 4.9)]
    assert sum_file_seconds([*reports, "a warning"]) == {"b.py": 30, "a.py": 7}
