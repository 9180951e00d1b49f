"""What a runner's settings come to."""

import pytest

from runner.engines.selection import docker_settings


@pytest.mark.parametrize("slots", [1, 256])
def test_every_slot_has_its_stream(slots: int) -> None:
    """A container that is followed holds a thread: with fewer threads than slots nothing could be stopped any more."""
    assert docker_settings(None, slots).streams > slots


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
    assert docker_settings(socket, 1).base_url == url
