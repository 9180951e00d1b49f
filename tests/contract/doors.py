"""The broker's list of hosts, as a fake and as the file of a real nats-server."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import bcrypt

from bus.connection import open_edge, open_runner
from bus.port import Denied
from bus.roster import NotReloaded, Roster
from bus.settings import BrokerSettings
from edge.services.joining import Door
from tests.broker import Broker, broker


class FakeDoor(Door):
    """`deaf`: so many lists are not taken over. `lists`: all that were written."""

    def __init__(self) -> None:
        self.lists: list[dict[str, str]] = []
        self.deaf = 0
        self._in: dict[str, str] = {}

    async def write(self, hashes: Mapping[str, str]) -> None:
        self.lists.append(dict(hashes))
        if self.deaf:
            self.deaf -= 1
            raise NotReloaded("the broker has not taken over its list of hosts")
        self._in = dict(hashes)

    async def admits(self, host: str, password: str) -> bool:
        return host in self._in and bcrypt.checkpw(password.encode(), self._in[host].encode())


class RealDoor(Roster):
    """A roster whose hosts are tried out as a runner would come in: it connects, and asks something."""

    def __init__(self, server: Broker, folder: Path) -> None:
        super().__init__(server.settings("edge"), folder, server.reload)
        self._server = server

    async def admits(self, host: str, password: str) -> bool:
        settings = BrokerSettings(self._server.url, f"runner-{host}", password)
        try:
            async with open_runner(settings) as bus:
                return await bus.tombstones.keys() == set()
        except Denied:
            return False


@asynccontextmanager
async def fake(_: Path) -> AsyncIterator[FakeDoor]:
    yield FakeDoor()


@asynccontextmanager
async def real(folder: Path) -> AsyncIterator[RealDoor]:
    async with broker(folder) as server, open_edge(server.settings("edge")):
        yield RealDoor(server, folder / "broker")


DOORS = {"fake": fake, "real": real}
