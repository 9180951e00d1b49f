"""Broker and edge on one machine, the runner on another: two namespaces with a link between them."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
from msgspec import Struct

from tests.network.network_faults import ServicePorts
from tests.support.installation import IMAGES, Installation, RunningInstallation, run_installation
from tests.support.namespaces import EDGE, HostNetwork, net

__all__ = ["net"]


class SeparatedInstallation(Struct, frozen=True):
    """The installation with its runner, and the link between them."""

    running: RunningInstallation
    net: HostNetwork
    ports: ServicePorts


@pytest.fixture(scope="module")
async def home(
    net: HostNetwork, tmp_path_factory: pytest.TempPathFactory, anyio_backend: object
) -> AsyncIterator[SeparatedInstallation]:
    folder = tmp_path_factory.mktemp(f"apart-{secrets.token_hex(2)}")
    installation = Installation(folder, "process", broker_host=EDGE, edge_host=EDGE)
    async with run_installation(installation, (IMAGES / "echo",)) as running:
        await installation.start_runner(endpoints=(IMAGES / "echo",), prefix=net.at_host, LAMPLIGHTER_SLOTS="3")
        ports = ServicePorts(broker=installation.broker_address[1], edge=installation.edge_address[1])
        yield SeparatedInstallation(running, net, ports)


@pytest.fixture
def separated(home: SeparatedInstallation) -> Iterator[SeparatedInstallation]:
    yield home
    print(home.running.installation.tail())  # noqa: T201 - shown by pytest when the test failed
