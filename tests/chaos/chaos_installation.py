"""An installation that can be hurt: real processes with fault points, watched clients, and the evidence of it all."""

import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from bus.interface import BrokerUnreachable, Bus
from lamplighter import AsyncClient
from schemas.ids import JobKey
from tests.chaos.evidence import Evidence, HostOutage, JobRevision
from tests.chaos.fault_points import FOLDER_ENV, FaultPoints
from tests.chaos.history import ObservationLog
from tests.chaos.leftovers import find_leftovers
from tests.chaos.recording_client import RecordingClient
from tests.chaos.run_stamps import STAMPS_NAME, read_runs
from tests.support.docker_engine import OwnDockerEngine
from tests.support.installation import ROOT, Installation, ServiceProcess, wait_until_ready
from tests.support.tcp_proxy import TcpProxy, run_proxy
from tests.support.wait import wait_for

T = TypeVar("T")

ENDPOINTS = (ROOT / "tests" / "chaos" / "endpoints",)
MODULES = {"edge": "tests.chaos.entry_edge", "runner": "tests.chaos.entry_runner"}
HOST = "gpu-1"
RECONNECT_GRACE_S = 25.0  # a host that is heard again may need so long to see that its jobs are somebody else's
OWNER = "ann"
START_TIMEOUT_S = 60.0  # on a machine that has other things to do
QUIET_TIMEOUT_S = 75.0  # a lease runs out in 30 s, a dead edge's consumers after 30 more


class ChaosInstallation:
    """Broker, edge and the runners of some hosts.

    Clients go through the proxy `front`, a host through `<host> broker` and `<host> edge`.
    """

    def __init__(
        self,
        installation: Installation,
        keys: Mapping[str, str],
        hosts: tuple[str, ...],
        proxies: Mapping[str, TcpProxy],
        bus: Bus,
        docker: OwnDockerEngine | None,
    ) -> None:
        self.installation = installation
        self.hosts = hosts
        self.proxies = proxies
        self.bus = bus
        self.docker = docker
        self.history = ObservationLog(installation.folder / "history.jsonl")
        self._keys = keys
        self._faults = {name: FaultPoints(installation.folder / "faults" / name) for name in MODULES}

    def client(self, name: str, *, direct: bool = False) -> RecordingClient:
        """A client of ann's; `direct` does not go through the proxy."""
        url = self.installation.url if direct else f"http://127.0.0.1:{self.proxies['front'].port}"
        return RecordingClient(name, url, self._keys[OWNER], self.history)

    def faults(self, process: str) -> FaultPoints:
        """The points of `edge` or `runner`."""
        return self._faults[process]

    def process(self, name: str, host: str = HOST) -> ServiceProcess:
        """`edge` or `runner`."""
        return self.installation.edge if name == "edge" else self.installation.runners[host]

    async def start_edge(self) -> None:
        """Returns when it serves."""
        await self.installation.start_edge(ENDPOINTS, **{FOLDER_ENV: str(self._folder("edge"))})
        async with AsyncClient(self.installation.url, self._keys[OWNER]) as client:
            await wait_until_ready(client, START_TIMEOUT_S)

    async def start_runner(self, host: str = HOST) -> None:
        """Returns when the process has been started."""
        await self.installation.start_runner(
            host,
            broker=f"nats://127.0.0.1:{self.proxies[f'{host} broker'].port}",
            endpoints=ENDPOINTS,
            LAMPLIGHTER_EDGE__URL=f"http://127.0.0.1:{self.proxies[f'{host} edge'].port}",
            LAMPLIGHTER_SLOTS="4",
            LAMPLIGHTER_GPU__PLACEMENT__DISK_RESERVE_MB="0",
            **{FOLDER_ENV: str(self._folder("runner"))},
        )

    async def restart_runner(self) -> None:
        """Once the one that is there has ended."""
        await self.process("runner").wait_until_ended()
        await self.start_runner()

    async def evidence(self) -> Evidence:
        """Everything there is to judge, once all is calm or `CALM_S` has passed."""
        found = await self._wait_until_quiet()
        keys = await self._retry(self.bus.job_store.keys)
        state = {key.id: await self._revisions(key) for key in keys}
        stamped = [run for host in self.hosts for run in read_runs(host, self.installation.folder / host / STAMPS_NAME)]
        return Evidence(
            seen=tuple(self.history.seen),
            state=state,
            runs=tuple(stamped),
            cuts=tuple(self.history.cuts),
            left=tuple(found),
        )

    async def _wait_until_quiet(self) -> list[str]:
        found: list[str] = []

        async def calm() -> bool:
            found[:] = await self._retry(partial(find_leftovers, self.installation, self.bus))
            return not found

        with suppress(TimeoutError):
            await wait_for(calm, timeout_s=QUIET_TIMEOUT_S, interval_s=1)
        return found

    async def _revisions(self, key: JobKey) -> tuple[JobRevision, ...]:
        entries = await self._retry(partial(self.bus.job_store.history, key))
        return tuple(map(JobRevision.of, entries))

    async def revisions(self, job_id: str) -> tuple[JobRevision, ...]:
        """The job's history in STATE."""
        return await self._revisions(JobKey(OWNER, job_id))

    async def wait_until_clean(self, timeout_s: float = 60) -> None:
        """Wait until no message, container or folder of a job is there: the next scene begins on a clean stage."""

        async def clean() -> bool:
            folders = [path for host in self.hosts for path in self.installation.folder.glob(f"{host}/jobs/*")]
            there = [found for host in self.hosts for found in await self.installation.containers(host)]
            return not (folders or there or await self._retry(self.bus.job_queue.list_pending))

        await wait_for(clean, timeout_s=timeout_s)

    async def _retry(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Asked of a broker that was killed a moment ago, too."""
        answers: list[T] = []

        async def answered() -> bool:
            with suppress(BrokerUnreachable):
                answers.append(await ask())
            return bool(answers)

        await wait_for(answered, timeout_s=START_TIMEOUT_S)
        return answers[0]

    @asynccontextmanager
    async def excuse_outage(self, host: str) -> AsyncIterator[None]:
        """Nobody hears the host while the block runs: until it knows, a second attempt elsewhere is excused."""
        since = time.monotonic()
        try:
            yield
        finally:
            self.history.note_outage(HostOutage(host, since, time.monotonic() + RECONNECT_GRACE_S))

    def _folder(self, process: str) -> Path:
        return self.installation.folder / "faults" / process


def continue_process(pid: int) -> None:
    """Let a process that stands still go on."""
    os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def run_chaos_installation(
    folder: Path, docker: OwnDockerEngine | None = None, hosts: tuple[str, ...] = (HOST,)
) -> AsyncIterator[ChaosInstallation]:
    """A scene whose edge serves; no runner is started yet. A `lamplighter.toml` in `folder` is the edge's."""
    engine = "docker" if docker else "process"
    installation = Installation(folder, engine, docker.url if docker else None, MODULES)
    keys = await installation.open()
    broker, _, port = installation.server.url.removeprefix("nats://").partition(":")
    edge = ("127.0.0.1", installation.listening.getsockname()[1])
    places = {"front": edge}
    for host in hosts:
        places |= {f"{host} broker": (broker, int(port)), f"{host} edge": edge}
    try:
        async with AsyncExitStack() as opened:
            proxies = {name: await opened.enter_async_context(run_proxy(*place)) for name, place in places.items()}
            bus = await opened.enter_async_context(installation.bus())
            scene = ChaosInstallation(installation, keys, hosts, proxies, bus, docker)
            await scene.start_edge()
            yield scene
    finally:
        await installation.close()
