"""Three machines, each with a broker and a runner, two of them with an edge; a shared asset folder and a balancer."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from bus.interface import Bus, BusError
from bus.open import open_edge
from bus.settings import BrokerSettings
from lamplighter import AsyncClient
from tests.chaos.chaos_installation import ENDPOINTS, MODULES
from tests.chaos.collect_evidence import collect_evidence
from tests.chaos.evidence import Evidence
from tests.chaos.fault_points import FOLDER_ENV
from tests.chaos.history import ObservationLog
from tests.chaos.recording_client import RecordingClient
from tests.cluster.broker_cluster import BrokerCluster
from tests.cluster.namespace_machines import SWITCH, NamespaceMachine
from tests.cluster.tcp_balancer import TcpBalancer, run_balancer
from tests.support.installation import Installation, create_keys, wait_until_ready
from tests.support.wait import wait_for

COUNT = 3
EDGES = ("edge-1", "edge-2")
PORT, FRONT = 8000, 8080
URL = f"http://{SWITCH}:{FRONT}"
OWNER = "ann"
SLOTS = 2
START_TIMEOUT_S = 90.0
QUIET_TIMEOUT_S = 120.0  # a lease expires in 30 s, a dead machine's host is gone 30 s later
CHECKED_LEFTOVERS = ("message", "container", "file")


class ClusterInstallation(Installation):
    """An installation on several machines. Clients and runners reach the edges through the balancer."""

    def __init__(
        self, folder: Path, machines: Sequence[NamespaceMachine], brokers: BrokerCluster, balancer: TcpBalancer
    ) -> None:
        super().__init__(folder, "process", programs=MODULES, url=URL)
        self.machines = machines
        self.brokers = brokers
        self.balancer = balancer
        self.history = ObservationLog(folder / "history.jsonl")

    def broker_settings(self, user: str) -> BrokerSettings:
        return self.brokers.settings(user)

    def client(self, name: str) -> RecordingClient:
        return RecordingClient(name, URL, self.keys[OWNER], self.history)

    async def start_edge_of(self, name: str) -> None:
        """Start one of EDGES on its machine."""
        machine = self.machines[EDGES.index(name)]
        environ = self.edge_environ(ENDPOINTS, name) | {
            "LAMPLIGHTER_BROKER__REPLICAS": str(COUNT),
            "LAMPLIGHTER_BIND": machine.address,
            "LAMPLIGHTER_PORT": str(PORT),
            "LAMPLIGHTER_STORE__URL": (self.folder / "assets").as_uri(),
            "LAMPLIGHTER_RECONCILE_EVERY_S": "2",
            FOLDER_ENV: str(self.folder / "faults" / name),
        }
        await self.start_service("edge", name, environ, prefix=machine.inside)

    async def start_runner_of(self, host: str) -> None:
        """Start the runner of `host` on its machine."""
        await self.start_runner(
            host,
            endpoints=ENDPOINTS,
            prefix=self.machines[int(host[-1]) - 1].inside,
            LAMPLIGHTER_SLOTS=str(SLOTS),
            **{FOLDER_ENV: str(self.folder / "faults" / host)},
        )

    async def online(self, bus: Bus, *hosts: str) -> None:
        """Wait until the hosts send heartbeats."""

        async def are_online() -> bool:
            with suppress(BusError):
                return set(hosts) <= set(await bus.heartbeats.rows())
            return False

        await wait_for(are_online, timeout_s=START_TIMEOUT_S)

    async def wait_until_balanced(self, *edges: str) -> None:
        """Wait until the balancer sends connections to these edges."""

        async def ready_again() -> bool:
            return set(edges) <= self.balancer.ready

        await wait_for(ready_again, timeout_s=START_TIMEOUT_S)

    async def cut_power(self, machine: NamespaceMachine) -> None:
        """Disconnect a machine, and kill everything that runs there."""
        machine.disconnect()
        host, name = f"gpu-{machine.number}", f"n{machine.number}"
        await self.brokers.kill(name)
        for process in (self.runners.get(host), self.edges.get(f"edge-{machine.number}")):
            if process is not None:
                await process.kill()
        async with self.engine_of(host) as engine:
            for found in await engine.find(self.name, host):
                await engine.stop(found.handle, 0)

    async def give_power(self, machine: NamespaceMachine) -> None:
        """Start everything of the machine again."""
        machine.connect()
        self.brokers.start(f"n{machine.number}")
        await self.start_runner_of(f"gpu-{machine.number}")
        if f"edge-{machine.number}" in self.edges:
            await self.start_edge_of(f"edge-{machine.number}")

    async def evidence(self, bus: Bus) -> Evidence:
        """Return everything there is to judge, once all is quiet or QUIET_TIMEOUT_S has passed."""
        return await collect_evidence(
            self, bus, self.history, quiet_timeout_s=QUIET_TIMEOUT_S, checks=CHECKED_LEFTOVERS
        )

    async def close(self) -> None:
        """Kill everything: a drain would wait for brokers that may be dead."""
        for process in (*self.runners.values(), *self.edges.values()):
            await process.kill()
        await self.clear()
        await self.brokers.close()
        self.release_ports()


@asynccontextmanager
async def run_cluster(
    folder: Path, machines: Sequence[NamespaceMachine]
) -> AsyncIterator[tuple[ClusterInstallation, Bus]]:
    """Run a cluster that is ready for work; the bus has the edge's rights."""
    brokers = BrokerCluster(folder / "brokers", machines)
    async with AsyncExitStack() as opened:
        opened.push_async_callback(brokers.close)
        await brokers.form()
        places = {name: (machine.address, PORT) for name, machine in zip(EDGES, machines, strict=False)}
        balancer = await opened.enter_async_context(run_balancer(SWITCH, FRONT, places))
        bus = await opened.enter_async_context(open_edge(brokers.settings("edge")))
        cluster = ClusterInstallation(folder, machines, brokers, balancer)
        opened.push_async_callback(cluster.close)
        cluster.keys = await create_keys(bus)
        hosts = [f"gpu-{machine.number}" for machine in machines]
        for name in EDGES:
            await cluster.start_edge_of(name)
        for host in hosts:
            await cluster.start_runner_of(host)
        await cluster.wait_until_balanced(*EDGES)
        await cluster.online(bus, *hosts)
        async with AsyncClient(URL, cluster.keys[OWNER], cache=Path(os.devnull)) as client:
            await wait_until_ready(client, START_TIMEOUT_S)
        yield cluster, bus
