"""The broker's list of hosts, as a fake and as the file of a real nats-server."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import bcrypt

from bus.interface import BrokerDenied
from bus.open import open_edge, open_runner
from bus.server.process import BrokerReloadFailed, HostAccounts
from bus.settings import BrokerSettings
from edge.hosts.enrollment import BrokerAccounts
from tests.support.nats_broker import BrokerProcess, run_broker


class FakeHostAccess(BrokerAccounts):
    """`deaf`: so many lists are not taken over. `lists`: all that were written."""

    def __init__(self) -> None:
        self.lists: list[dict[str, str]] = []
        self.failures_left = 0
        self._hashes: dict[str, str] = {}

    async def replace_all(self, hashes: Mapping[str, str]) -> None:
        self.lists.append(dict(hashes))
        if self.failures_left:
            self.failures_left -= 1
            raise BrokerReloadFailed("the broker has not taken over its list of hosts")
        self._hashes = dict(hashes)

    async def admits(self, host: str, password: str) -> bool:
        return host in self._hashes and bcrypt.checkpw(password.encode(), self._hashes[host].encode())


class NatsHostAccess(HostAccounts):
    """A roster whose hosts are tried out as a runner would come in: it connects, and asks something."""

    def __init__(self, server: BrokerProcess, folder: Path) -> None:
        super().__init__(server.settings("edge"), folder, server.reload_command)
        self._server = server

    async def admits(self, host: str, password: str) -> bool:
        settings = BrokerSettings(self._server.url, f"runner-{host}", password)
        try:
            async with open_runner(settings) as bus:
                return await bus.tombstones.keys() == set()
        except BrokerDenied:
            return False


@asynccontextmanager
async def fake_host_access(_: Path) -> AsyncIterator[FakeHostAccess]:
    yield FakeHostAccess()


@asynccontextmanager
async def nats_host_access(folder: Path) -> AsyncIterator[NatsHostAccess]:
    async with run_broker(folder) as server, open_edge(server.settings("edge")):
        yield NatsHostAccess(server, folder / "broker")


HOST_ACCESSES: dict[str, Callable[[Path], AbstractAsyncContextManager[FakeHostAccess | NatsHostAccess]]] = {
    "fake": fake_host_access,
    "real": nats_host_access,
}
