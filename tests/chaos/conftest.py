"""What the chaos tests need of the machine, and the seed that chooses what they play."""

import os

import pytest

from tests.support.docker_engine import why_no_engine as no_engine
from tests.support.docker_images import docker_url, echo_image, skip_or_fail

__all__ = ["docker_url", "echo_image"]

SEED = 27


@pytest.fixture(scope="session")
def seed() -> int:
    """Of CHAOS_SEED, or always the same."""
    return int(os.environ.get("CHAOS_SEED", SEED))


@pytest.fixture(scope="session")
def own_engines(echo_image: str) -> None:
    """Docker engines of the test's own can be started, and be given what they run."""
    if why := no_engine():
        skip_or_fail(why)
