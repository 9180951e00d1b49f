"""Which words `./justw test` gives to pytest."""

import pytest

from tests.__main__ import pytest_words

PARALLEL = ["-n", "4", "--dist", "loadfile", "--durations=10"]


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


@pytest.mark.parametrize(("cores", "workers"), [(1, "4"), (2, "4"), (8, "16"), (64, "16")])
def test_a_machine_of_more_cores_runs_more_at_once(cores: int, workers: str):
    assert pytest_words(["all"], cores)[1] == workers
