"""The installations of tests/e2e, for things that are full or broken."""

from tests.e2e.conftest import (
    alone,
    docker_url,
    echo_image,
    endpoint_image,
    endpoints,
    engine,
    engine_url,
    home,
    home_folder,
    house,
    lit,
    served,
)

__all__ = [
    "alone",
    "docker_url",
    "echo_image",
    "endpoint_image",
    "endpoints",
    "engine",
    "engine_url",
    "home",
    "home_folder",
    "house",
    "lit",
    "served",
]
