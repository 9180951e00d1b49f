"""Three brokers on loopback that are one, each with a port of its own; any of them can be killed."""

import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
from msgspec import Struct

from bus.accounts import accounts
from bus.connection import open_keeper
from bus.port import BusError
from bus.server import program
from bus.settings import BrokerSettings
from bus.users import Cluster, Place, render
from tests.broker import until
from tests.ports import reserved_ports

NAMES = ("n1", "n2", "n3")
PASSWORDS = {"edge": "of-the-edge", "runner": "of-the-runner"}
FORMED_S = 60.0


class Three(Struct, frozen=True):
    """`settings`: how the edge reaches all three, which keep their data over `kill` and `start`."""

    folder: Path
    settings: BrokerSettings
    running: dict[str, subprocess.Popen[bytes]]

    def start(self, name: str) -> None:
        """It finds the others by itself. Blocking."""
        argv = [program(), "--config", str(self.folder / name / "nats.conf")]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(argv, stdout=log, stderr=log)

    async def kill(self, name: str) -> None:
        """SIGKILL."""
        await self._end(name, signal.SIGKILL)

    async def stop(self, name: str) -> None:
        """In good order."""
        await self._end(name, signal.SIGTERM)

    async def _end(self, name: str, how: signal.Signals) -> None:
        process = self.running.pop(name)
        process.send_signal(how)
        await anyio.to_thread.run_sync(process.wait)


def _places(folder: Path, ports: Sequence[int]) -> dict[str, Place]:
    """`ports`: three of each, for clients, for monitors and for routes."""
    places = tuple(f"127.0.0.1:{port}" for port in ports)
    clients, monitors, routes = places[0::3], places[1::3], places[2::3]
    return {
        name: Place(
            clients[number],
            monitors[number],
            str(folder / name / "jetstream"),
            ("accounts.conf", "hosts.conf"),
            cluster=Cluster(name, routes[number], routes, "between-us"),
        )
        for number, name in enumerate(NAMES)
    }


def _set_up(home: Path, place: Place) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "accounts.conf").write_text(accounts(PASSWORDS))
    (home / "hosts.conf").touch()
    (home / "nats.conf").write_text(render(place))


@asynccontextmanager
async def three(folder: Path) -> AsyncIterator[Three]:
    """Nothing is in them yet; they have found each other."""
    with reserved_ports(3 * len(NAMES)) as ports:
        async with _three(folder, _places(folder, ports)) as made:
            yield made


@asynccontextmanager
async def _three(folder: Path, places: dict[str, Place]) -> AsyncIterator[Three]:
    settings = BrokerSettings(
        url=",".join(f"nats://{place.listen}" for place in places.values()),
        user="edge",
        password=PASSWORDS["edge"],
        monitor=",".join(f"http://{place.monitor}" for place in places.values()),
    )
    made = Three(folder, settings, {})
    try:
        for name, place in places.items():
            _set_up(folder / name, place)
            made.start(name)
        await until(_formed(settings), within_s=FORMED_S)
        yield made
    finally:
        for name in list(made.running):
            await made.kill(name)


def _formed(settings: BrokerSettings):
    async def formed() -> bool:
        try:
            async with open_keeper(settings) as (_, snapshots):
                return await snapshots.held() == {}
        except BusError:
            return False

    return formed
