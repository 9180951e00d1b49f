"""The two worlds that the bus contract runs in: the fake, and a real broker with the rights that its users have."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from bus.interface import Bus
from bus.nats.connection import close_client, dial
from bus.open import open_edge, open_runner
from tests.support.fake_bus.broker import FakeBroker
from tests.support.nats_broker import run_broker


class BusPair(NamedTuple):
    """An edge and a runner at one broker.

    `restart` crashes the broker and starts it again, `reboot` ends it in good order before; `vandalise` writes any
    bytes to a subject.
    """

    edge: Bus
    runner: Bus
    restart: Callable[[], Awaitable[None]]
    reboot: Callable[[], Awaitable[None]]
    corrupt: Callable[[str, bytes], Awaitable[None]]


@asynccontextmanager
async def fake_bus_pair(_: Path) -> AsyncIterator[BusPair]:
    fake = FakeBroker()
    edge, runner = fake.connect(), fake.connect()

    async def restart() -> None:
        fake.restart()

    async def vandalise(subject: str, data: bytes) -> None:
        fake.corrupt(subject, data)

    yield BusPair(edge, runner, restart, restart, vandalise)


@asynccontextmanager
async def nats_bus_pair(folder: Path) -> AsyncIterator[BusPair]:
    async with run_broker(folder) as server:

        async def restart() -> None:
            await server.kill()
            await server.start()

        async def reboot() -> None:
            await server.stop()
            await server.start()

        async def vandalise(subject: str, data: bytes) -> None:
            client = await dial(server.settings("edge"), "_INBOX_vandal", _ignore_status, _ignore_end)
            await client.request(subject, data)
            await close_client(client)

        async with open_edge(server.settings("edge")) as edge, open_runner(server.settings("runner")) as runner:
            yield BusPair(edge, runner, restart, reboot, vandalise)


async def _ignore_status(_: Exception) -> None:
    """A vandal does not listen."""


async def _ignore_end() -> None:
    """Nor say goodbye."""


BUS_PAIRS = {"memory": fake_bus_pair, "real": nats_bus_pair}
