"""Three machines, each with a broker and a runner, two of them with an edge; a shared folder of assets, a balancer."""

import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from bus.interface import Bus, BusError
from bus.open import open_edge
from edge.core.clock import utc_now
from edge.owners.api_keys import ApiKeyStore
from lamplighter import AsyncClient
from runner.engines.port import FoundContainer
from runner.engines.process import ProcessEngine
from schemas.auth import CLIENT_SCOPES, Scope
from tests.chaos.chaos_installation import ENDPOINTS, MODULES
from tests.chaos.evidence import Evidence, JobRevision
from tests.chaos.fault_points import FOLDER_ENV
from tests.chaos.history import ObservationLog
from tests.chaos.leftovers import LEFTOVER_CHECKS
from tests.chaos.recording_client import RecordingClient
from tests.chaos.run_stamps import STAMPS_NAME, read_runs
from tests.cluster.broker_cluster import BrokerCluster
from tests.cluster.namespace_machines import SWITCH, NamespaceMachine
from tests.cluster.tcp_balancer import TcpBalancer, run_balancer
from tests.support import job_user
from tests.support.installation import IMAGES, ServiceProcess, wait_until_ready
from tests.support.wait import wait_for

COUNT = 3
EDGES = ("edge-1", "edge-2")
PORT, FRONT = 8000, 8080
URL = f"http://{SWITCH}:{FRONT}"
OWNER = "ann"
SLOTS = 2
START_TIMEOUT_S = 90.0
QUIET_TIMEOUT_S = 120.0  # a lease runs out in 30 s, a dead machine's host is gone after as long again
CHECKED_LEFTOVERS = ("message", "container", "file")


class ClusterInstallation:
    """`runners` by host. Clients and runners reach the edges through the balancer."""

    def __init__(
        self, folder: Path, machines: Sequence[NamespaceMachine], brokers: BrokerCluster, balancer: TcpBalancer
    ) -> None:
        self.folder = folder
        self.machines = machines
        self.brokers = brokers
        self.balancer = balancer
        self.name = secrets.token_hex(6)
        self.edges: dict[str, ServiceProcess] = {}
        self.runners: dict[str, ServiceProcess] = {}
        self.history = ObservationLog(folder / "history.jsonl")
        self.keys: dict[str, str] = {}

    async def make_keys(self, bus: Bus) -> None:
        ring = ApiKeyStore(bus.api_keys, utc_now, secrets.token_bytes, time.monotonic)
        self.keys[OWNER] = (await ring.create(OWNER, CLIENT_SCOPES)).text
        self.keys["runner"] = (await ring.create("boss", (Scope.RUNNER,))).text

    def client(self, name: str) -> RecordingClient:
        return RecordingClient(name, URL, self.keys[OWNER], self.history)

    async def start_edge(self, name: str) -> None:
        machine = self.machines[EDGES.index(name)]
        environ = self._shared("edge", name) | {
            "LAMPLIGHTER_BROKER__MONITOR": self.brokers.settings("edge").monitor,
            "LAMPLIGHTER_BROKER__REPLICAS": str(COUNT),
            "LAMPLIGHTER_BIND": machine.address,
            "LAMPLIGHTER_PORT": str(PORT),
            "LAMPLIGHTER_STORE__URL": (self.folder / "assets").as_uri(),
            "LAMPLIGHTER_RECONCILE_EVERY_S": "2",
        }
        self.edges[name] = await self._start("edge", name, environ, machine)

    async def start_runner(self, host: str) -> None:
        machine = self.machines[int(host[-1]) - 1]
        environ = self._shared("runner", host) | {
            "LAMPLIGHTER_EDGE__URL": URL,
            "LAMPLIGHTER_EDGE__KEY": self.keys["runner"],
            "LAMPLIGHTER_HOST": host,
            "LAMPLIGHTER_INSTALLATION": self.name,
            "LAMPLIGHTER_ENGINE": "process",
            "LAMPLIGHTER_SLOTS": str(SLOTS),
            "LAMPLIGHTER_GPU__WATCH": "0",
            "LAMPLIGHTER_WARM__ON": "0",
            **job_user.runner_settings(),
        }
        self.runners[host] = await self._start("runner", host, environ, machine)

    def _shared(self, user: str, name: str) -> dict[str, str]:
        settings = self.brokers.settings(user)
        return {
            "LAMPLIGHTER_BROKER__URL": settings.url,
            "LAMPLIGHTER_BROKER__USER": user,
            "LAMPLIGHTER_BROKER__PASSWORD": settings.password,
            "LAMPLIGHTER_DATA": str(self.folder / name),
            "LAMPLIGHTER_ENDPOINTS": json.dumps([str(folder) for folder in ENDPOINTS]),
            FOLDER_ENV: str(self.folder / "faults" / name),
        }

    async def _start(self, verb: str, name: str, environ: dict[str, str], machine: NamespaceMachine) -> ServiceProcess:
        log = self.folder / f"{name}.log"
        process = ServiceProcess(verb, environ, log, module=MODULES[verb], before=machine.inside)
        await process.start()
        return process

    async def online(self, bus: Bus, *hosts: str) -> None:
        """Wait until the hosts are heard."""

        async def heard() -> bool:
            with suppress(BusError):
                return set(hosts) <= set(await bus.heartbeats.rows())
            return False

        await wait_for(heard, timeout_s=START_TIMEOUT_S)

    async def wait_until_balanced(self, *edges: str) -> None:
        """Wait until the balancer gives these edges work."""

        async def ready_again() -> bool:
            return set(edges) <= self.balancer.ready

        await wait_for(ready_again, timeout_s=START_TIMEOUT_S)

    async def containers(self, host: str) -> list[FoundContainer]:
        """What of this installation is on the host's engine, in any state."""
        async with ProcessEngine(self.folder / host / "processes", IMAGES / "jobkit") as engine:
            return await engine.find(self.name, host)

    async def cut_power(self, machine: NamespaceMachine) -> None:
        """Its network goes, and with it everything that runs there."""
        machine.disconnect()
        host, name = f"gpu-{machine.number}", f"n{machine.number}"
        await self.brokers.kill(name)
        for process in (self.runners.get(host), self.edges.get(f"edge-{machine.number}")):
            if process is not None:
                await process.kill()
        async with ProcessEngine(self.folder / host / "processes", IMAGES / "jobkit") as engine:
            for found in await engine.find(self.name, host):
                await engine.stop(found.handle, 0)

    async def give_power(self, machine: NamespaceMachine) -> None:
        """All that was there is started again."""
        machine.connect()
        self.brokers.start(f"n{machine.number}")
        await self.start_runner(f"gpu-{machine.number}")
        if f"edge-{machine.number}" in self.edges:
            await self.start_edge(f"edge-{machine.number}")

    async def evidence(self, bus: Bus) -> Evidence:
        """Everything there is to judge, once all is calm or `CALM_S` has passed."""
        left: list[str] = []

        async def calm() -> bool:
            with suppress(BusError):
                left[:] = [
                    f"{what}: {one}" for what in CHECKED_LEFTOVERS for one in await LEFTOVER_CHECKS[what](self, bus)
                ]  # type: ignore[arg-type]
                return not left
            return False

        with suppress(TimeoutError):
            await wait_for(calm, timeout_s=QUIET_TIMEOUT_S, interval_s=1)
        state = {
            key.id: tuple(map(JobRevision.of, await bus.job_store.history(key))) for key in await bus.job_store.keys()
        }
        stamped = [run for host in self.runners for run in read_runs(host, self.folder / host / STAMPS_NAME)]
        return Evidence(
            seen=tuple(self.history.seen),
            state=state,
            runs=tuple(stamped),
            cuts=tuple(self.history.cuts),
            left=tuple(left),
        )

    async def close(self) -> None:
        for process in (*self.runners.values(), *self.edges.values()):
            await process.kill()
        for host in self.runners:
            async with ProcessEngine(self.folder / host / "processes", IMAGES / "jobkit") as engine:
                for found in await engine.find(self.name, host):
                    await engine.remove(found.handle)
        await self.brokers.close()

    def tail(self) -> str:
        """The ends of all logs, for a run that failed."""
        logs = sorted(self.folder.rglob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)


@asynccontextmanager
async def run_cluster(
    folder: Path, machines: Sequence[NamespaceMachine]
) -> AsyncIterator[tuple[ClusterInstallation, Bus]]:
    """All of it, ready for work; the bus has the edge's rights."""
    brokers = BrokerCluster(folder / "brokers", machines)
    async with AsyncExitStack() as opened:
        opened.push_async_callback(brokers.close)
        await brokers.form()
        places = {name: (machine.address, PORT) for name, machine in zip(EDGES, machines, strict=False)}
        balancer = await opened.enter_async_context(run_balancer(SWITCH, FRONT, places))
        bus = await opened.enter_async_context(open_edge(brokers.settings("edge")))
        cluster = ClusterInstallation(folder, machines, brokers, balancer)
        opened.push_async_callback(cluster.close)
        await cluster.make_keys(bus)
        hosts = [f"gpu-{machine.number}" for machine in machines]
        for name in EDGES:
            await cluster.start_edge(name)
        for host in hosts:
            await cluster.start_runner(host)
        await cluster.wait_until_balanced(*EDGES)
        await cluster.online(bus, *hosts)
        async with AsyncClient(URL, cluster.keys[OWNER], cache=Path(os.devnull)) as client:
            await wait_until_ready(client, START_TIMEOUT_S)
        yield cluster, bus
