"""Three brokers on loopback: streams are kept on as many as is said, and what says nothing of it changes nothing."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from bus.connection import open_edge
from bus.port import BusError
from bus.server import program
from bus.settings import BrokerSettings
from bus.topology import STREAMS
from bus.users import Cluster, Place, blocks, listed, render
from tests.broker import until
from tests.bus.samples import key, recorded

NAMES = ("n1", "n2", "n3")
PASSWORDS = {"edge": "of-the-edge", "runner": "of-the-runner"}


def free_ports(count: int) -> list[int]:
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in listening]
    for one in listening:
        one.close()
    return ports


@pytest.fixture
async def settings(tmp_path: Path) -> AsyncIterator[BrokerSettings]:
    """How the edge reaches all three."""
    clients, monitors, routes = (free_ports(len(NAMES)) for _ in range(3))
    places = tuple(f"127.0.0.1:{port}" for port in routes)
    running = []
    for number, name in enumerate(NAMES):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "users.conf").write_text(listed(blocks(PASSWORDS)))
        place = Place(
            f"127.0.0.1:{clients[number]}",
            f"127.0.0.1:{monitors[number]}",
            str(folder / "jetstream"),
            "users.conf",
            cluster=Cluster(name, places[number], places, "between-us"),
        )
        (folder / "nats.conf").write_text(render(place))
        with (tmp_path / f"{name}.log").open("wb") as log:
            argv = [program(), "--config", str(folder / "nats.conf")]
            running.append(await anyio.open_process(argv, stdout=log, stderr=log))
    yield BrokerSettings(
        url=",".join(f"nats://127.0.0.1:{port}" for port in clients),
        user="edge",
        password=PASSWORDS["edge"],
        monitor=",".join(f"http://127.0.0.1:{port}" for port in monitors),
    )
    for process in running:
        process.kill()
        await process.wait()


async def replicas(settings: BrokerSettings) -> set[int]:
    """On how many servers the streams are kept, as an edge with these settings leaves it."""
    async with open_edge(settings) as bus:
        js = bus.queue._js  # type: ignore[attr-defined]
        return {(await js.info(stream.name)).config.num_replicas for stream in STREAMS}


async def test_replicas_are_raised_kept_and_lowered_as_the_setting_says(settings: BrokerSettings):
    async def formed() -> bool:
        try:
            return await replicas(settings) == {1}
        except BusError:
            return False

    await until(formed, within_s=60)
    async with open_edge(settings) as bus:
        await bus.records.create(key(), recorded())
        health = await bus.link.health()
        assert (health.synced, health.used < 0.1) == (True, True)
    assert await replicas(replace(settings, replicas=3)) == {3}
    assert await replicas(settings) == {3}
    with pytest.raises(BusError, match=r"lower \[broker\] replicas"):
        await replicas(replace(settings, replicas=5))
    assert await replicas(replace(settings, replicas=1)) == {1}
    async with open_edge(settings) as bus:
        assert await bus.records.read(key()) is not None
