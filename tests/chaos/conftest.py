"""Fixtures of the chaos tests: own Docker engines, and the seed that selects the cells."""

import os

import pytest

from tests.support.docker_engine import why_no_engine as no_engine
from tests.support.docker_images import docker_url, echo_image, skip_or_fail

__all__ = ["docker_url", "echo_image"]

SEED = 27


@pytest.fixture(scope="session")
def seed() -> int:
    """Return CHAOS_SEED, or a fixed seed."""
    return int(os.environ.get("CHAOS_SEED", SEED))


@pytest.fixture(scope="session")
def own_engines(echo_image: str) -> None:
    """Require that Docker engines can be started here, with the image that they run."""
    if why := no_engine():
        skip_or_fail(why)
