"""The delays of `Backoff`, by hand."""

import pytest

from schemas.backoff import Backoff


@pytest.mark.parametrize(
    ("failures", "jitter", "delay_s"),
    [
        (0, 0.0, 2.0),
        (1, 0.0, 4.0),
        (7, 0.0, 256.0),
        (8, 0.0, 300.0),
        (10**9, 0.0, 300.0),
        (0, 0.5, 3.0),
        (10**9, 0.5, 450.0),
    ],
)
def test_a_delay_doubles_up_to_its_limit_and_the_jitter_is_added(failures: int, jitter: float, delay_s: float):
    assert Backoff(first_s=2.0, limit_s=300.0).delay_s(failures, jitter) == delay_s


def test_the_first_delay_is_never_longer_than_the_limit():
    assert Backoff(first_s=10.0, limit_s=3.0).delay_s(0) == 3.0
