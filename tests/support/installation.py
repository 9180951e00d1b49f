"""A whole installation out of real processes: broker, edge, runners. Each can be killed and started again."""

import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import httpx
from msgspec import Struct

from bus.interface import Bus
from bus.open import open_edge
from bus.server.process import NatsServer
from bus.settings import BrokerSettings
from edge.core.clock import utc_now
from edge.owners.api_keys import ApiKeyStore
from lamplighter import AsyncClient
from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import ContainerEngine, FoundContainer
from runner.engines.process import ProcessEngine
from schemas.auth import CLIENT_SCOPES, Scope
from tests.support import job_user
from tests.support.bytecode import BYTECODE_ENVIRON
from tests.support.reserved_ports import address_of, reserve_port
from tests.support.wait import wait_for

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "images"
ENDPOINTS = (IMAGES / "echo", ROOT / "tests" / "e2e" / "endpoints")
# Where PYTHONDONTWRITEBYTECODE is set, every start would compile all that it imports: 3 s, and there are many starts.
DROPPED_VARIABLES = ("LAMPLIGHTER_", "PYTHONDONTWRITEBYTECODE")
PROGRAM = "lamplighter"


class ServiceProcess:
    """One `python -m lamplighter …` with its log; `module` is another program that takes the same words.

    `before`: what stands in front of its argv. `tree`: where the code lies that it runs.
    """

    def __init__(
        self,
        verb: str,
        environ: dict[str, str],
        log: Path,
        fds: tuple[int, ...] = (),
        module: str = PROGRAM,
        *,
        before: Sequence[str] = (),
        tree: Path = ROOT,
    ) -> None:
        self._verb, self._environ, self._fds, self._module = verb, environ, fds, module
        self._before, self._tree = before, tree
        self.log = log
        self._process: anyio.abc.Process | None = None

    async def start(self) -> None:
        own = self.log.parent / "lamplighter.toml"
        config = str(own if own.exists() else os.devnull)
        program = [*self._before, sys.executable, "-m", self._module]
        argv = [*program, self._verb, "--config", config, "--log-format", "json"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED_VARIABLES)}
        with self.log.open("ab") as out:
            self._process = await anyio.open_process(
                argv,
                env=inherited | BYTECODE_ENVIRON | self._environ,
                stdin=None,
                stdout=out,
                stderr=out,
                pass_fds=self._fds,
                cwd=self._tree,
            )

    @property
    def was_started(self) -> bool:
        """Whether there is one: started, and not killed or stopped by the test since."""
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended since."""
        return self._process is not None and self._process.returncode is None

    async def kill(self) -> None:
        """SIGKILL, as a crash would."""
        await self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        assert self._process is not None
        self._process.terminate()

    async def stop(self) -> None:
        """SIGTERM, and wait for the drain."""
        await self._end(signal.SIGTERM)

    async def wait_until_ended(self) -> None:
        """Return when it has ended, by itself or not."""
        if self._process is not None:
            await self._process.wait()

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.send_signal(how)
            with anyio.CancelScope(shield=True):
                await process.wait()

    def peak_rss_mb(self) -> float:
        """VmHWM of proc(5)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


class Installation:
    """Broker at `server`; `client` has every client scope as owner `ann`, `admin` is what its name says.

    `modules`: what to start in place of `lamplighter`, by verb (tests/chaos has entry points of its own). `trees`:
    where the code lies that runs, by verb, where it is not ours (tests/upgrade has another release).
    """

    def __init__(
        self,
        folder: Path,
        engine: str,
        docker_url: str | None,
        modules: Mapping[str, str] | None = None,
        trees: Mapping[str, Path] | None = None,
    ) -> None:
        self._modules = modules or {}
        self._trees = trees or {}
        self.folder = folder
        self.engine = engine
        self.docker_url = docker_url
        self.name = secrets.token_hex(6)
        self.server = NatsServer(folder / "broker")
        self._reserved = (reserve_port(), reserve_port())  # for the broker, which is killed and comes back where it was
        self.server._ports = (address_of(self._reserved[0]), address_of(self._reserved[1]))
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.runners: dict[str, ServiceProcess] = {}
        self.edge = ServiceProcess("edge", {}, folder / "edge.log")
        self.runner_key = ""

    def give_back_ports(self) -> None:
        """Close the sockets that hold the ports."""
        for held in (self.listening, *self._reserved):
            held.close()

    async def open(self) -> dict[str, str]:
        """Start the broker and make the keys; the texts of those."""
        await self.server.start()
        async with self.bus() as bus:
            ring = ApiKeyStore(bus.api_keys, utc_now, secrets.token_bytes, time.monotonic)
            made = {
                "ann": (await ring.create("ann", CLIENT_SCOPES)).text,
                "admin": (await ring.create("boss", (Scope.ADMIN,))).text,
                "runner": (await ring.create("boss", (Scope.RUNNER,))).text,
            }
        self.runner_key = made["runner"]
        return made

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        """The broker with the edge's rights."""
        password = self.server.passwords["edge"]
        settings = BrokerSettings(url=self.server.url, user="edge", password=password, monitor=self.server.monitor_url)
        async with open_edge(settings) as bus:
            yield bus

    async def start_edge(self, endpoints: Sequence[Path] = ENDPOINTS, **more: str) -> None:
        environ = {
            "LAMPLIGHTER_BROKER__URL": self.server.url,
            "LAMPLIGHTER_BROKER__USER": "edge",
            "LAMPLIGHTER_BROKER__PASSWORD": self.server.passwords["edge"],
            "LAMPLIGHTER_BROKER__MONITOR": self.server.monitor_url,
            "LAMPLIGHTER_FD": str(self.listening.fileno()),
            "LAMPLIGHTER_DATA": str(self.folder / "edge"),
            "LAMPLIGHTER_ENDPOINTS": json.dumps([str(folder) for folder in endpoints]),
            "LAMPLIGHTER_RECONCILE_EVERY_S": "1",
        } | more
        module = self._modules.get("edge", PROGRAM)
        tree = self._trees.get("edge", ROOT)
        self.edge = ServiceProcess(
            "edge", environ, self.folder / "edge.log", (self.listening.fileno(),), module, tree=tree
        )
        await self.edge.start()

    async def start_runner(
        self,
        host: str = "gpu-1",
        *,
        broker: str | None = None,
        endpoints: Sequence[Path] = ENDPOINTS,
        before: Sequence[str] = (),
        **more: str,
    ) -> ServiceProcess:
        """Start the runner of `host`, anew when it was killed; `broker` goes through another address."""
        environ = {
            "LAMPLIGHTER_BROKER__URL": broker or self.server.url,
            "LAMPLIGHTER_BROKER__USER": "runner",
            "LAMPLIGHTER_BROKER__PASSWORD": self.server.passwords["runner"],
            "LAMPLIGHTER_EDGE__URL": self.url,
            "LAMPLIGHTER_EDGE__KEY": self.runner_key,
            "LAMPLIGHTER_HOST": host,
            "LAMPLIGHTER_INSTALLATION": self.name,
            "LAMPLIGHTER_DATA": str(self.folder / host),
            "LAMPLIGHTER_ENDPOINTS": json.dumps([str(folder) for folder in endpoints]),
            "LAMPLIGHTER_ENGINE": self.engine,
            "LAMPLIGHTER_GPU__WATCH": "0",
            "LAMPLIGHTER_WARM__ON": "0",  # what waits for a job would stand among what a job left behind
            "LAMPLIGHTER_LOG_LEVEL": "debug",
            "LAMPLIGHTER_GRACE_S": "2",
            **job_user.runner_settings(),
        } | more
        if self.docker_url:
            environ["LAMPLIGHTER_DOCKER_SOCKET"] = self.docker_url
        module = self._modules.get("runner", PROGRAM)
        log = self.folder / f"{host}.log"
        tree = self._trees.get("runner", ROOT)
        self.runners[host] = ServiceProcess("runner", environ, log, module=module, before=before, tree=tree)
        await self.runners[host].start()
        return self.runners[host]

    @asynccontextmanager
    async def engine_of(self, host: str) -> AsyncIterator[ContainerEngine]:
        """The engine that the host's runner works with: its containers, seen and ended past that runner."""
        if self.docker_url:
            async with DockerEngine(DockerSettings(base_url=self.docker_url)) as docker:
                yield docker
        else:
            async with ProcessEngine(self.folder / host / "processes", IMAGES / "jobkit") as processes:
                yield processes

    async def containers(self, host: str = "gpu-1") -> list[FoundContainer]:
        """What of this installation is on the host's engine, in any state."""
        async with self.engine_of(host) as engine:
            return await engine.find(self.name, host)

    async def clear(self) -> None:
        """Stop all runners, and remove what they left running."""
        for process in self.runners.values():
            await process.stop()
        for host in self.runners:
            async with self.engine_of(host) as engine:
                for found in await engine.find(self.name, host):
                    await engine.remove(found.handle)

    async def close(self) -> None:
        """Stop everything."""
        await self.clear()
        await self.edge.stop()
        await self.server.stop()
        self.give_back_ports()

    def tail(self) -> str:
        """The ends of all logs, for a failing test."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)


async def wait_until_ready(client: AsyncClient, timeout_s: float = 60) -> None:
    """Wait until the edge takes work; several edges that start at once on two cores take a while."""

    async def healthy() -> bool:
        try:
            return (await client._http.get("/readyz")).status_code == 200
        except httpx.HTTPError:
            return False

    await wait_for(healthy, timeout_s=timeout_s)


class RunningInstallation(Struct, frozen=True):
    """A running edge; `ann` is an ordinary client, `admin` sees everything, `bus` has the edge's rights."""

    installation: Installation
    ann: AsyncClient
    admin: AsyncClient
    bus: Bus


@asynccontextmanager
async def run_installation(
    installation: Installation, endpoints: Sequence[Path] = ENDPOINTS, **edge: str
) -> AsyncIterator[RunningInstallation]:
    """An installation that was made already, with its edge started; it is closed at the end."""
    keys = await installation.open()
    folder = installation.folder
    try:
        await installation.start_edge(endpoints, **edge)
        async with (
            AsyncClient(installation.url, keys["ann"], cache=folder / "ann.json") as ann,
            AsyncClient(installation.url, keys["admin"], cache=folder / "admin.json") as admin,
            installation.bus() as bus,
        ):
            await wait_until_ready(ann)
            yield RunningInstallation(installation, ann, admin, bus)
    finally:
        await installation.close()


@asynccontextmanager
async def run_new_installation(
    folder: Path, engine: str, url: str | None, **edge: str
) -> AsyncIterator[RunningInstallation]:
    """An installation in `folder`; `edge` is more of that process's environment."""
    async with run_installation(Installation(folder, engine, url if engine == "docker" else None), **edge) as lit:
        yield lit
