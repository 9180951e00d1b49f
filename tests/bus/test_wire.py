"""The connection while it is set up anew: who listens then, and who no longer does."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from bus.port import BusError
from bus.settings import BrokerSettings
from bus.wire import Wire

Step = Callable[[], Awaitable[None]]


class Subscribed:
    """A subscription of the played client."""

    def __init__(self, client: "Client", subject: str) -> None:
        self._client, self._subject = client, subject

    async def unsubscribe(self) -> None:
        self._client.heard.discard(self._subject)


class Client:
    """nats-py's part in a set-up, as far as that goes. `meanwhile`: what happens while a subject is subscribed to."""

    def __init__(self, meanwhile: dict[str, Step]) -> None:
        self._meanwhile = meanwhile
        self.heard: set[str] = set()

    async def subscribe(self, subject: str, **_: Any) -> Subscribed:
        if subject in self._meanwhile:
            await self._meanwhile[subject]()
        self.heard.add(subject)
        return Subscribed(self, subject)


class Crowd:
    """Listeners to `a`, `b`… of one connection."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._there: dict[str, AsyncExitStack] = {}

    async def comes(self, subject: str) -> None:
        self._there[subject] = AsyncExitStack()
        await self._there[subject].enter_async_context(self._wire.listening(subject, _ignore))

    async def goes(self, subject: str) -> None:
        await self._there.pop(subject).aclose()

    async def all_go(self) -> None:
        for subject in tuple(self._there):
            await self.goes(subject)


def _ignore(_: object | BusError) -> None:
    """Nobody says anything here."""


@pytest.mark.parametrize(
    ("during", "verb", "who", "heard"),
    [
        ("b", "goes", "a", {"b", "c"}),
        ("b", "goes", "b", {"a", "c"}),
        ("b", "goes", "c", {"a", "b"}),
        ("a", "comes", "d", {"a", "b", "c", "d"}),
        ("c", "comes", "d", {"a", "b", "c", "d"}),
    ],
)
async def test_exactly_those_who_listen_are_heard(during: str, verb: str, who: str, heard: set[str]):
    wire = Wire(BrokerSettings(), "_INBOX_x", "id")
    crowd = Crowd(wire)
    for subject in ("a", "b", "c"):
        await crowd.comes(subject)
    client = Client({during: lambda: getattr(crowd, verb)(who)})
    await wire._set_up(client, anyio.Event())  # type: ignore[arg-type]
    assert client.heard == {"_INBOX_x.id.*", *heard}
    await crowd.all_go()
    assert client.heard == {"_INBOX_x.id.*"}
