"""What a test needs of the machine is said by its marker; what is missing is said by the skip, or fails in CI."""

import contextlib
import functools
import os
import socket

import docker
import pytest
from docker.errors import DockerException

HOW = "start one (deploy/docker/engine.sh) or set DOCKER_HOST"


@functools.cache
def engine_missing() -> str | None:
    """Why no Docker engine answers, in one line; None where one does."""
    scheme, _, place = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").partition("://")
    try:
        if scheme == "unix":  # asked first by hand: docker-py leaves the socket open when nobody listens
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(place)
        with contextlib.closing(docker.from_env(version="1.41", timeout=10)) as client:
            client.ping()
    except (DockerException, OSError) as error:
        return f"no Docker engine answers at {scheme}://{place} ({type(error).__name__}): {HOW}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("docker") and (why := engine_missing()):
        if os.environ.get("REQUIRE_DOCKER") == "1":
            pytest.fail(f"REQUIRE_DOCKER=1, but {why}", pytrace=False)
        pytest.skip(why)
