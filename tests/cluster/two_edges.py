"""Two edges behind Caddy on this machine, with three brokers and a bucket; each of them can be killed.

The brokers talk TLS with each other and with edges and runner.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from msgspec import structs

from bus.interface import Bus
from bus.open import open_edge
from bus.settings import BrokerSettings
from lamplighter import AsyncClient
from tests.support.broker_trio import NAMES, PASSWORDS, BrokerTrio, make_trio_tls, run_broker_trio
from tests.support.installation import HOST, Installation, create_keys, wait_until_ready
from tests.support.reserved_ports import reserve_ports
from tests.support.reverse_proxies import CaddyOfCluster, running_proxy
from tests.support.s3_buckets import create_bucket, s3_environ

EDGES = ("edge-1", "edge-2")
START_TIMEOUT_S = 90.0


class TwoEdgesInstallation(Installation):
    """`ports`: where the edges listen. `url` is that of Caddy; clients of one edge take `edge_url`."""

    def __init__(self, folder: Path, brokers: BrokerTrio, ports: list[int], url: str, store: str) -> None:
        super().__init__(folder, "process", url=url)
        self.brokers = brokers
        self._ports = dict(zip(EDGES, ports, strict=True))
        self._store = store

    def broker_settings(self, user: str) -> BrokerSettings:
        return structs.replace(self.brokers.settings, user=user, password=PASSWORDS[user])

    def edge_url(self, name: str) -> str:
        """The address of one edge."""
        return f"http://127.0.0.1:{self._ports[name]}"

    def upload_folder(self, name: str) -> Path:
        """The working copies of unfinished uploads of one edge."""
        return self.folder / name / "uploads"

    async def start_edge_of(self, name: str) -> None:
        """Start one of EDGES, and wait until it takes work."""
        environ = self.edge_environ(name=name) | s3_environ()
        await self.start_service(
            "edge",
            name,
            environ
            | {
                "LAMPLIGHTER_BROKER__REPLICAS": str(len(NAMES)),
                "LAMPLIGHTER_BIND": "127.0.0.1",
                "LAMPLIGHTER_PORT": str(self._ports[name]),
                "LAMPLIGHTER_STORE__URL": self._store,
                "LAMPLIGHTER_SERVER__TRUSTED_PROXIES": '["127.0.0.1"]',
                "LAMPLIGHTER_OUTBOUND__ALLOW": '["127.0.0.1"]',
            },
        )
        async with self.client_of(name) as client:
            await wait_until_ready(client, START_TIMEOUT_S)

    def client_of(self, edge: str, key: str = "ann") -> AsyncClient:
        """Return a client of one edge, past Caddy."""
        return AsyncClient(self.edge_url(edge), self.keys[key], cache=self.folder / "digests.json")

    async def close(self) -> None:
        """Kill everything: a drain would wait for brokers that may be dead."""
        for process in (*self.runners.values(), *self.edges.values()):
            await process.kill()
        await self.clear()
        self.release_ports()


@asynccontextmanager
async def run_two_edges(folder: Path) -> AsyncIterator[tuple[TwoEdgesInstallation, Bus]]:
    """Run brokers, bucket, edges, Caddy and a runner; the bus has the edge's rights."""
    async with AsyncExitStack() as opened:
        tls = make_trio_tls(folder / "tls")
        brokers = await opened.enter_async_context(run_broker_trio(folder / "brokers", tls=tls))
        store = opened.enter_context(create_bucket())
        front, *ports = opened.enter_context(reserve_ports(1 + len(EDGES)))
        addresses = " ".join(f"127.0.0.1:{port}" for port in ports)
        caddy = opened.enter_context(running_proxy(CaddyOfCluster, folder / "caddy", front, addresses))
        installation = TwoEdgesInstallation(folder, brokers, ports, caddy.url, store)
        opened.push_async_callback(installation.close)
        replicated = structs.replace(installation.broker_settings("edge"), replicas=len(NAMES))
        bus = await opened.enter_async_context(open_edge(replicated))
        installation.keys = await create_keys(bus)
        for name in EDGES:
            await installation.start_edge_of(name)
        await installation.start_runner(HOST)
        yield installation, bus
