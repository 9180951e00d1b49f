"""The start of the runner: the settings of the Docker engine, and a broker that does not answer."""

from pathlib import Path

import pytest

from bus.interface import BrokerUnreachable
from bus.settings import BrokerSettings
from runner.app import serve
from runner.engines.docker import DockerSettings
from runner.engines.selection import docker_url
from runner.settings import RunnerSettings


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


async def test_a_runner_that_ends_when_idle_does_not_wait_for_a_broker_for_ever(tmp_path: Path) -> None:
    """Check that a pilot whose broker cannot be reached gives its machine back, and says why."""
    settings = RunnerSettings(
        data=tmp_path / "data", engine="process", until_idle_s=0.01, broker=BrokerSettings(url="nats://127.0.0.1:1")
    )
    refused = pytest.RaisesExc(
        BrokerUnreachable, match=r"for 0.01 s, after .*: no broker answers at nats://127.0.0.1:1"
    )
    with pytest.RaisesGroup(refused, flatten_subgroups=True):
        await serve(settings, say=lambda _: None)
