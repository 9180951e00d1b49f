"""The connection while it is set up anew: who listens then, who no longer does, and what has arrived when it stands."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from bus.interface import BusError
from bus.nats.connection import NatsConnection
from bus.settings import BrokerSettings

Step = Callable[[], Awaitable[None]]


class Subscribed:
    """A subscription of the played client."""

    def __init__(self, client: "ClientConnection", subject: str) -> None:
        self._client, self._subject = client, subject

    async def unsubscribe(self) -> None:
        self._client.heard.discard(self._subject)


class ClientConnection:
    """nats-py's part in a set-up, as far as that goes. `meanwhile`: what happens while a subject is subscribed to."""

    def __init__(self, meanwhile: dict[str, Step]) -> None:
        self._meanwhile = meanwhile
        self.heard: set[str] = set()

    async def subscribe(self, subject: str, **_: Any) -> Subscribed:
        if subject in self._meanwhile:
            await self._meanwhile[subject]()
        self.heard.add(subject)
        return Subscribed(self, subject)

    async def flush(self, timeout: int) -> None:
        """It has sent all of it."""


class ConnectionCrowd:
    """Listeners to `a`, `b`… of one connection."""

    def __init__(self, wire: NatsConnection) -> None:
        self._wire = wire
        self._there: dict[str, AsyncExitStack] = {}

    async def comes(self, subject: str) -> None:
        self._there[subject] = AsyncExitStack()
        await self._there[subject].enter_async_context(self._wire.subscribed(subject, _ignore))

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
    wire = NatsConnection(BrokerSettings(), "_INBOX_x", "id")
    crowd = ConnectionCrowd(wire)
    for subject in ("a", "b", "c"):
        await crowd.comes(subject)
    client = ClientConnection({during: lambda: getattr(crowd, verb)(who)})
    await wire._prepare_connection(client, anyio.Event())
    assert client.heard == {"_INBOX_x.id.*", *heard}
    await crowd.all_go()
    assert client.heard == {"_INBOX_x.id.*"}


class SocketListener:
    """A broker as far as a greeting and PING go; `read`: the lines that it had read, in their order."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def read_before_answering(self) -> list[str]:
        """What came before the last PING."""
        return self.read[: len(self.read) - self.read[::-1].index("PING")]

    async def serve(self, stream: SocketStream) -> None:
        lines = BufferedByteReceiveStream(stream)
        async with stream:
            await stream.send(b'INFO {"max_payload":1048576}\r\n')
            while True:
                line = (await lines.receive_until(b"\r\n", 4096)).decode()
                self.read.append(line.split(" {")[0])
                if line == "PING":
                    await stream.send(b"PONG\r\n")


@asynccontextmanager
async def listened() -> AsyncIterator[tuple[SocketListener, NatsConnection]]:
    """A connection that stands, to such a broker, with one that listens to `a`."""
    ears = SocketListener()
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, ears.serve)
        port = listener.extra(SocketAttribute.local_port)
        wire = NatsConnection(BrokerSettings(f"nats://127.0.0.1:{port}"), "_INBOX_x", "id")
        async with wire.subscribed("a", _ignore):
            await wire.connect()
            tasks.start_soon(wire.reconnect_forever)
            yield ears, wire
        tasks.cancel_scope.cancel()


async def test_a_connection_that_stands_is_heard():
    async with listened() as (ears, _):
        assert {"SUB _INBOX_x.id.*  1", "SUB a  2"} <= set(ears.read_before_answering())


async def test_a_ping_is_answered_behind_all_that_was_said():
    async with listened() as (ears, wire):
        await wire.publish("b")
        await wire.ping()
        assert "PUB b  0" in ears.read_before_answering()
