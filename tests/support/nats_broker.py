"""A real nats-server for a test, and a deadline for what a test waits for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bus.server.process import NatsServer, run_server
from bus.settings import BrokerSettings
from tests.support.reserved_ports import reserve_ports


class BrokerProcess(NatsServer):
    """`kill` and `start` keep ports and data; so do `stop` and `start`."""

    def settings(self, user: str) -> BrokerSettings:
        """How `user` (edge, runner, runner-<host>, reader) reaches it."""
        return BrokerSettings(self.url, user, self.passwords[user], self.monitor_url)


class SingleAccountBroker(BrokerProcess):
    """As a release without accounts set it up: everybody is in one account."""

    def config(self) -> str:
        users = "".join(f"{{ user: {user}, password: {password!r} }}\n" for user, password in self.passwords.items())
        head, _, tail = super().config().partition("accounts {")
        return f"{head}authorization {{ users: [\n{users}] }}{tail.partition('}')[2]}"


@asynccontextmanager
async def run_broker(folder: Path, *, hosts: tuple[str, ...] = ()) -> AsyncIterator[BrokerProcess]:
    """A broker of the test's own, 25 ms from nothing to serving; stopped at the end."""
    with reserve_ports(2) as (client, monitor):
        made = BrokerProcess(folder / "broker", hosts=hosts)
        made._ports = (f"127.0.0.1:{client}", f"127.0.0.1:{monitor}")
        async with run_server(made):
            yield made
