"""The broker's list of hosts, as a fake and as the file of a real nats-server."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from bus.port import Unreachable
from bus.roster import Roster
from edge.services.joining import Door
from tests.broker import broker


class FakeDoor(Door):
    """`deaf`: so many lists are not taken over; `hung_up`: so often it does not say. `lists`: all that were written."""

    def __init__(self) -> None:
        self.lists: list[dict[str, str]] = []
        self.deaf = self.hung_up = 0
        self._in: dict[str, str] = {}

    async def write(self, passwords: Mapping[str, str]) -> None:
        self.lists.append(dict(passwords))
        if self.deaf:
            self.deaf -= 1
        else:
            self._in = dict(passwords)

    async def admits(self, host: str, password: str) -> bool:
        if self.hung_up:
            self.hung_up -= 1
            raise Unreachable("connection lost")
        return self._in.get(host) == password


@asynccontextmanager
async def fake(_: Path) -> AsyncIterator[Door]:
    yield FakeDoor()


@asynccontextmanager
async def real(folder: Path) -> AsyncIterator[Door]:
    async with broker(folder) as server:
        yield Roster(server.settings("edge"), folder / "broker", server.reload)


DOORS = {"fake": fake, "real": real}
