"""Broker and edge on one machine, the runner on another: two namespaces with a wire between them."""

import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from msgspec import Struct

from bus.server import Server
from tests.e2e.conftest import Lit, lighting
from tests.e2e.installation import IMAGES, Installation
from tests.e2e.network import EDGE, Network, network
from tests.network.faults import Ports


class Apart(Struct, frozen=True):
    """The installation with its runner, and the wire between them."""

    lit: Lit
    net: Network
    ports: Ports


class Separate(Installation):
    """Broker and edge listen where the other machine reaches them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "process", None)
        self.listening.close()
        self.listening = socket.create_server((EDGE, 0), backlog=256)
        self.url = f"http://{EDGE}:{self.listening.getsockname()[1]}"
        self.server = Server(folder / "broker", listen=f"{EDGE}:-1")


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture(scope="module")
async def home(net: Network, tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[Apart]:
    folder = tmp_path_factory.mktemp(f"apart-{secrets.token_hex(2)}")
    installation = Separate(folder)
    async with lighting(installation, (IMAGES / "echo",)) as lit:
        await installation.start_runner(endpoints=(IMAGES / "echo",), before=net.at_host, LAMPLIGHTER_SLOTS="3")
        broker, edge = (int(url.rpartition(":")[2]) for url in (installation.server.url, installation.url))
        yield Apart(lit, net, Ports(broker, edge))


@pytest.fixture
def apart(home: Apart) -> Iterator[Apart]:
    yield home
    print(home.lit.installation.tail())  # noqa: T201 - shown by pytest when the test failed
