"""Broker and edge on one machine, the runner on another: two namespaces with a wire between them."""

import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from msgspec import Struct

from bus.server.process import NatsServer
from tests.network.network_faults import ServicePorts
from tests.support.installation import IMAGES, Installation, RunningInstallation, run_installation
from tests.support.namespaces import EDGE, HostNetwork, host_network


class SeparatedInstallation(Struct, frozen=True):
    """The installation with its runner, and the wire between them."""

    lit: RunningInstallation
    net: HostNetwork
    ports: ServicePorts


class NamespacedInstallation(Installation):
    """Broker and edge listen where the other machine reaches them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "process", None)
        self.listening.close()
        self.listening = socket.create_server((EDGE, 0), backlog=256)
        self.url = f"http://{EDGE}:{self.listening.getsockname()[1]}"
        self.server = NatsServer(folder / "broker", listen=f"{EDGE}:-1")


@pytest.fixture(scope="module")
def net() -> Iterator[HostNetwork]:
    with host_network() as made:
        yield made


@pytest.fixture(scope="module")
async def home(
    net: HostNetwork, tmp_path_factory: pytest.TempPathFactory, anyio_backend: object
) -> AsyncIterator[SeparatedInstallation]:
    folder = tmp_path_factory.mktemp(f"apart-{secrets.token_hex(2)}")
    installation = NamespacedInstallation(folder)
    async with run_installation(installation, (IMAGES / "echo",)) as lit:
        await installation.start_runner(endpoints=(IMAGES / "echo",), before=net.at_host, LAMPLIGHTER_SLOTS="3")
        broker, edge = (int(url.rpartition(":")[2]) for url in (installation.server.url, installation.url))
        yield SeparatedInstallation(lit, net, ServicePorts(broker, edge))


@pytest.fixture
def apart(home: SeparatedInstallation) -> Iterator[SeparatedInstallation]:
    yield home
    print(home.lit.installation.tail())  # noqa: T201 - shown by pytest when the test failed
