"""Run every fuzz target on random changes of valid inputs."""

import pytest
from hypothesis import given

from tests.fuzz.mutations import fuzzing, mutate
from tests.fuzz.targets import TARGETS, FuzzTarget

EXAMPLES = 500  # about 2 s a target; `just fuzz` runs more


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_no_input_breaks_a_parser(target: FuzzTarget):
    for seed in target.seeds:
        target.check(seed)

    @fuzzing(EXAMPLES, derandomize=True)
    @given(mutate(target.seeds, target.words))
    def over(data: bytes) -> None:
        target.check(data)

    over()
