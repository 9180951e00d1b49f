"""The fixtures of tests/e2e, for tests of full disks and broken parts."""

from tests.e2e.conftest import (
    docker_url,
    echo_image,
    endpoint_image,
    endpoints,
    engine,
    engine_url,
    home_folder,
    installation_with_runner,
    running,
    shared_idle,
    shared_installation,
    shared_running,
)

__all__ = [
    "docker_url",
    "echo_image",
    "endpoint_image",
    "endpoints",
    "engine",
    "engine_url",
    "home_folder",
    "installation_with_runner",
    "running",
    "shared_idle",
    "shared_installation",
    "shared_running",
]
