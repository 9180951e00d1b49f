"""Settings of the Docker engine that follow from the runner's."""

import pytest

from runner.engines.docker import DockerSettings
from runner.engines.selection import docker_url


@pytest.mark.parametrize("slots", [1, 256])
def test_every_slot_has_its_stream(slots: int) -> None:
    """Check that there are more threads than slots: a followed container holds one, and a stop needs another."""
    assert DockerSettings.for_slots("unix:///run/x.sock", slots).streams > slots


@pytest.mark.parametrize(
    ("socket", "host", "url"),
    [
        ("/run/x.sock", "unix:///run/y.sock", "unix:///run/x.sock"),
        (None, "tcp://127.0.0.1:2375", "tcp://127.0.0.1:2375"),
        (None, "", "unix:///var/run/docker.sock"),
    ],
)
def test_where_docker_is(monkeypatch: pytest.MonkeyPatch, socket: str | None, host: str, url: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    assert docker_url(socket) == url
