"""An installation for fault injection: fault points in its processes, proxies between them, recording clients."""

import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2

from schemas.job import JobKey
from tests.chaos.collect_evidence import collect_evidence, read_revisions
from tests.chaos.evidence import Evidence, HostOutage, JobRevision
from tests.chaos.fault_points import FOLDER_ENV, FaultPoints
from tests.chaos.history import ObservationLog
from tests.chaos.recording_client import RecordingClient
from tests.chaos.weighted_endpoint import weighted_folder, write_closed_endpoint
from tests.support.docker_engine import OwnDockerEngine
from tests.support.installation import (
    HOST,
    ROOT,
    Installation,
    RunningInstallation,
    ServiceProcess,
    run_installation,
    wait_until_ready,
)
from tests.support.tcp_proxy import TcpProxy, run_proxy
from tests.support.wait import retry_bus_call, wait_for

ENDPOINTS = (ROOT / "tests" / "chaos" / "endpoints",)
MODULES = {"edge": "tests.chaos.entry_edge", "runner": "tests.chaos.entry_runner"}
RECONNECT_GRACE_S = 25.0  # so long a reconnected host may need to learn that others have its jobs
OWNER = "ann"
SLOTS = 4  # of each runner
START_TIMEOUT_S = 60.0  # on a busy machine
QUIET_TIMEOUT_S = 75.0  # a lease expires in 30 s, the consumers of a dead edge 30 s later


class ChaosInstallation:
    """Broker, edge and the runners of some hosts.

    Clients connect through the proxy `front`, a host through `<host> broker` and `<host> edge`.
    """

    def __init__(
        self,
        running: RunningInstallation,
        hosts: tuple[str, ...],
        proxies: Mapping[str, TcpProxy],
        docker: OwnDockerEngine | None,
    ) -> None:
        self.installation = running.installation
        self.hosts = hosts
        self.proxies = proxies
        self.bus = running.bus
        self.docker = docker
        self.history = ObservationLog(self.installation.folder / "history.jsonl")
        self._running = running
        self._faults = {name: FaultPoints(_faults_folder(self.installation, name)) for name in MODULES}

    @property
    def _endpoints(self) -> tuple[Path, ...]:
        return (*ENDPOINTS, weighted_folder(self.installation.folder))

    @property
    def admin(self) -> httpx2.AsyncClient:
        """The HTTP client of the administrator."""
        return self._running.admin._http

    def client(self, name: str, *, direct: bool = False) -> RecordingClient:
        """Return a client of ann; `direct`: it does not use the proxy."""
        url = self.installation.url if direct else f"http://127.0.0.1:{self.proxies['front'].port}"
        return RecordingClient(name, url, self.installation.keys[OWNER], self.history)

    def faults(self, process: str) -> FaultPoints:
        """Return the fault points of `edge` or `runner`."""
        return self._faults[process]

    def process(self, name: str, host: str = HOST) -> ServiceProcess:
        """Return the process `edge` or `runner`."""
        return self.installation.edge if name == "edge" else self.installation.runners[host]

    async def start_edge(self) -> None:
        """Start the edge again after a kill; return when it serves."""
        environ = {FOLDER_ENV: str(_faults_folder(self.installation, "edge"))}
        await self.installation.start_edge(self._endpoints, **environ)
        await wait_until_ready(self._running.ann, START_TIMEOUT_S)

    async def start_runner(self, host: str = HOST) -> None:
        """Start the runner of `host`; return when the process has started."""
        await self.installation.start_runner(
            host,
            broker=f"nats://127.0.0.1:{self.proxies[f'{host} broker'].port}",
            endpoints=self._endpoints,
            LAMPLIGHTER_EDGE__URL=f"http://127.0.0.1:{self.proxies[f'{host} edge'].port}",
            LAMPLIGHTER_SLOTS=str(SLOTS),
            LAMPLIGHTER_PACE__IMAGE_S="0.5",  # `weighted` changes for each cell
            LAMPLIGHTER_WARM__ON="1",  # for the endpoint `reused`; no endpoint here starts containers ahead
            LAMPLIGHTER_GPU__PLACEMENT__DISK_RESERVE_MB="0",
            **{FOLDER_ENV: str(_faults_folder(self.installation, "runner"))},
        )

    async def restart_runner(self) -> None:
        """Wait until the runner has ended, and start it again."""
        await self.process("runner").wait_until_ended()
        await self.start_runner()

    async def evidence(self) -> Evidence:
        """Return everything there is to judge, once all is quiet or QUIET_TIMEOUT_S has passed."""
        return await collect_evidence(self.installation, self.bus, self.history, quiet_timeout_s=QUIET_TIMEOUT_S)

    async def revisions(self, job_id: str) -> tuple[JobRevision, ...]:
        """Return the job's history in STATE."""
        return await read_revisions(self.bus, JobKey(OWNER, job_id))

    async def wait_for_kept_container(self) -> None:
        """Wait until the runner reports a container that waits for another job."""

        async def is_kept() -> bool:
            row = await retry_bus_call(lambda: self.bus.heartbeats.get(HOST))
            return row is not None and any(pool.ready for pool in row.value.warm)

        await wait_for(is_kept, timeout_s=START_TIMEOUT_S)

    async def wait_until_clean(self, timeout_s: float = 60) -> None:
        """Wait until no message, container or folder of a job is left: the next play begins without them."""

        async def is_clean() -> bool:
            folders = [path for host in self.hosts for path in self.installation.folder.glob(f"{host}/jobs/*")]
            containers = [found for host in self.hosts for found in await self.installation.containers(host)]
            return not (folders or containers or await retry_bus_call(self.bus.job_queue.list_pending))

        await wait_for(is_clean, timeout_s=timeout_s)

    @asynccontextmanager
    async def excuse_outage(self, host: str) -> AsyncIterator[None]:
        """Excuse a second attempt elsewhere while the host cannot be heard: in the block, and until it reconnects."""
        since = time.monotonic()
        try:
            yield
        finally:
            self.history.note_outage(HostOutage(host, since, time.monotonic() + RECONNECT_GRACE_S))


def _faults_folder(installation: Installation, process: str) -> Path:
    return installation.folder / "faults" / process


def continue_process(pid: int) -> None:
    """Let a stopped process continue."""
    os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def run_chaos_installation(
    folder: Path, docker: OwnDockerEngine | None = None, hosts: tuple[str, ...] = (HOST,)
) -> AsyncIterator[ChaosInstallation]:
    """Run an installation with a proxy on every connection. A `lamplighter.toml` in `folder` is the edge's.

    No runner is started yet.
    """
    engine = "docker" if docker else "process"
    installation = Installation(folder, engine, docker.url if docker else None, MODULES)
    environ = {FOLDER_ENV: str(_faults_folder(installation, "edge"))}
    write_closed_endpoint(folder)
    endpoints = (*ENDPOINTS, weighted_folder(folder))
    async with run_installation(installation, endpoints, **environ) as running, AsyncExitStack() as opened:
        targets = {"front": installation.edge_address}
        for host in hosts:
            targets |= {f"{host} broker": installation.broker_address, f"{host} edge": installation.edge_address}
        proxies = {name: await opened.enter_async_context(run_proxy(*target)) for name, target in targets.items()}
        yield ChaosInstallation(running, hosts, proxies, docker)
