"""The two worlds that the bus contract runs in: the fake, and a real broker with the rights that its users have."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from bus.connection import open_edge, open_runner
from bus.dial import dial, hang_up
from bus.memory import MemoryBroker
from bus.port import Bus
from tests.broker import broker


class World(NamedTuple):
    """An edge and a runner at one broker.

    `restart` crashes the broker and starts it again, `reboot` ends it in good order before; `vandalise` writes any
    bytes to a subject.
    """

    edge: Bus
    runner: Bus
    restart: Callable[[], Awaitable[None]]
    reboot: Callable[[], Awaitable[None]]
    vandalise: Callable[[str, bytes], Awaitable[None]]


@asynccontextmanager
async def memory_world(_: Path) -> AsyncIterator[World]:
    fake = MemoryBroker()
    edge, runner = fake.connect(), fake.connect()

    async def restart() -> None:
        fake.restart()

    async def vandalise(subject: str, data: bytes) -> None:
        fake.vandalise(subject, data)

    yield World(edge, runner, restart, restart, vandalise)


@asynccontextmanager
async def real_world(folder: Path) -> AsyncIterator[World]:
    async with broker(folder) as server:

        async def restart() -> None:
            await server.kill()
            await server.start()

        async def reboot() -> None:
            await server.stop()
            await server.start()

        async def vandalise(subject: str, data: bytes) -> None:
            client = await dial(server.settings("edge"), "_INBOX_vandal", _ignore, _ignore_end)
            await client.request(subject, data)
            await hang_up(client)

        async with open_edge(server.settings("edge")) as edge, open_runner(server.settings("runner")) as runner:
            yield World(edge, runner, restart, reboot, vandalise)


async def _ignore(_: Exception) -> None:
    """A vandal does not listen."""


async def _ignore_end() -> None:
    """Nor say goodbye."""


WORLDS = {"memory": memory_world, "real": real_world}
