"""What the chaos tests need of the machine, and the seed that chooses what they play."""

import os
from pathlib import Path

import pytest

from tests.chaos.engines import cannot as no_engine
from tests.engine_host import build, cannot, docker_url, echo_image

__all__ = ["docker_url", "echo_image"]

STAMPED = Path(__file__).parent / "endpoints" / "stamped"
SEED = 27


@pytest.fixture(scope="session")
def seed() -> int:
    """Of CHAOS_SEED, or always the same."""
    return int(os.environ.get("CHAOS_SEED", SEED))


@pytest.fixture(scope="session")
def stamped_image(docker_url: str, echo_image: str) -> str:
    """The image that the test's own engines are given."""
    if why := no_engine():
        cannot(why)
    return build(docker_url, "lamplighter-test-stamped", str(STAMPED))
