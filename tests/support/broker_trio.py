"""Three brokers on loopback that are one, each with a port of its own; any of them can be killed."""

import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
from msgspec import Struct

from bus.interface import BusError
from bus.open import open_for_backup
from bus.server.config import ClusterConfig, ServerConfig, render_accounts, render_config
from bus.server.process import find_program
from bus.settings import BrokerSettings
from tests.support.reserved_ports import reserve_ports
from tests.support.wait import wait_for

NAMES = ("n1", "n2", "n3")
PASSWORDS = {"edge": "of-the-edge", "runner": "of-the-runner"}
FORM_TIMEOUT_S = 60.0


class BrokerTrio(Struct, frozen=True):
    """`settings`: how the edge reaches all three, which keep their data over `kill` and `start`."""

    folder: Path
    settings: BrokerSettings
    running: dict[str, subprocess.Popen[bytes]]

    def start(self, name: str) -> None:
        """It finds the others by itself. Blocking."""
        argv = [find_program(), "--config", str(self.folder / name / "nats.conf")]
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


def _addresses(folder: Path, ports: Sequence[int]) -> dict[str, ServerConfig]:
    """`ports`: three of each, for clients, for monitors and for routes."""
    places = tuple(f"127.0.0.1:{port}" for port in ports)
    clients, monitors, routes = places[0::3], places[1::3], places[2::3]
    return {
        name: ServerConfig(
            clients[number],
            monitors[number],
            str(folder / name / "jetstream"),
            ("accounts.conf", "hosts.conf"),
            cluster=ClusterConfig(name, routes[number], routes, "between-us"),
        )
        for number, name in enumerate(NAMES)
    }


def _write_config(home: Path, place: ServerConfig) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "accounts.conf").write_text(render_accounts(PASSWORDS))
    (home / "hosts.conf").touch()
    (home / "nats.conf").write_text(render_config(place))


@asynccontextmanager
async def run_broker_trio(folder: Path) -> AsyncIterator[BrokerTrio]:
    """Nothing is in them yet; they have found each other."""
    with reserve_ports(3 * len(NAMES)) as ports:
        async with _start_trio(folder, _addresses(folder, ports)) as made:
            yield made


@asynccontextmanager
async def _start_trio(folder: Path, places: dict[str, ServerConfig]) -> AsyncIterator[BrokerTrio]:
    settings = BrokerSettings(
        url=",".join(f"nats://{place.listen}" for place in places.values()),
        user="edge",
        password=PASSWORDS["edge"],
        monitor=",".join(f"http://{place.monitor}" for place in places.values()),
    )
    made = BrokerTrio(folder, settings, {})
    try:
        for name, place in places.items():
            _write_config(folder / name, place)
            made.start(name)
        await wait_for(_is_formed(settings), timeout_s=FORM_TIMEOUT_S)
        yield made
    finally:
        for name in list(made.running):
            await made.kill(name)


def _is_formed(settings: BrokerSettings):
    async def formed() -> bool:
        try:
            async with open_for_backup(settings) as (_, snapshots):
                return await snapshots.message_counts() == {}
        except BusError:
            return False

    return formed
