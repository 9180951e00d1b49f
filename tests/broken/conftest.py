"""The installations of tests/e2e, for things that are full or broken."""

from tests.e2e.conftest import (
    alone,
    docker_url,
    echo_image,
    engine,
    engine_url,
    home,
    house,
    lit,
    served,
)

__all__ = ["alone", "docker_url", "echo_image", "engine", "engine_url", "home", "house", "lit", "served"]
