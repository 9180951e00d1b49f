"""A real nats-server for a test, and a deadline for what a test waits for."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from bus.server import Server, serving
from bus.settings import BrokerSettings
from tests.ports import reserved_ports

PATIENCE_S = 20.0


class Broker(Server):
    """`kill` and `start` keep ports and data; so do `stop` and `start`."""

    def settings(self, user: str) -> BrokerSettings:
        """How `user` (edge, runner, runner-<host>, reader) reaches it."""
        return BrokerSettings(self.url, user, self.passwords[user], self.monitor)


class OneAccount(Broker):
    """As a release without accounts set it up: everybody is in one account."""

    def config(self) -> str:
        users = "".join(f"{{ user: {user}, password: {password!r} }}\n" for user, password in self.passwords.items())
        head, _, tail = super().config().partition("accounts {")
        return f"{head}authorization {{ users: [\n{users}] }}{tail.partition('}')[2]}"


@asynccontextmanager
async def broker(folder: Path, *, hosts: tuple[str, ...] = ()) -> AsyncIterator[Broker]:
    """A broker of the test's own, 25 ms from nothing to serving; stopped at the end."""
    with reserved_ports(2) as (client, monitor):
        made = Broker(folder / "broker", hosts=hosts)
        made._ports = (f"127.0.0.1:{client}", f"127.0.0.1:{monitor}")
        async with serving(made):
            yield made


async def until(condition: Callable[[], Awaitable[bool]], *, within_s: float = PATIENCE_S) -> None:
    """Ask until `condition` holds; TimeoutError when it does not in time."""
    with anyio.fail_after(within_s):
        while not await condition():  # noqa: ASYNC110 - what another process does raises no event here
            await anyio.sleep(0.01)
