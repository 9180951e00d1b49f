"""Skip a test for what the machine lacks, with the reason; fail it where a REQUIRE_* variable promises it."""

import os

import pytest


def require(why_missing: str | None, variable: str) -> None:
    """Skip the test for the reason `why_missing`, or fail it where `variable` is 1. None: nothing is missing."""
    if why_missing is None:
        return
    if os.environ.get(variable) == "1":
        pytest.fail(f"{variable}=1, but {why_missing}", pytrace=False)
    pytest.skip(why_missing)
