"""An installation out of real processes: broker, edges and runners. Each can be killed and started again.

`Installation` is the only harness that starts these processes. What a folder of tests needs besides, it adds in a
subclass or around it: proxies and fault points (chaos), three machines (cluster), hosts with a switch (e2e/power).
Start reading at `run_installation`.
"""

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
import httpx2
from msgspec import Struct

from bus.interface import Bus
from bus.open import open_edge
from bus.server.config import TlsFiles
from bus.server.process import NatsServer
from bus.settings import BrokerSettings
from edge.core.clock import utc_now
from edge.owners.api_keys import ApiKeyStore
from lamplighter import AsyncClient
from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import ContainerEngine, FoundContainer
from runner.engines.process import ProcessEngine
from schemas.credentials import CLIENT_SCOPES, Scope
from tests.support import job_user
from tests.support.bytecode import BYTECODE_ENVIRON
from tests.support.reserved_ports import HOST as LOOPBACK
from tests.support.reserved_ports import address_of, reserve_port
from tests.support.wait import wait_for

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "images"
ENDPOINTS = (IMAGES / "echo", ROOT / "tests" / "e2e" / "endpoints")
# Where PYTHONDONTWRITEBYTECODE is set, every start would compile all that it imports: 3 s, and there are many starts.
DROPPED_VARIABLES = ("LAMPLIGHTER_", "PYTHONDONTWRITEBYTECODE")
PROGRAM = "lamplighter"
EDGE = "edge"
HOST = "gpu-1"
LOG_PATTERNS = ("*.log", "brokers/*.log", "*/host.log")
LOG_TAIL_CHARS = 3000


class ServiceProcess:
    """One `python -m lamplighter …` with its log.

    `module` is another program that takes the same arguments. `prefix` stands in front of its argv. `tree` is the
    folder of the code that it runs.
    """

    def __init__(
        self,
        verb: str,
        environ: dict[str, str],
        log: Path,
        fds: tuple[int, ...] = (),
        module: str = PROGRAM,
        *,
        prefix: Sequence[str] = (),
        tree: Path = ROOT,
    ) -> None:
        self._verb, self.environ, self._fds, self._module = verb, environ, fds, module
        self._prefix, self._tree = prefix, tree
        self.log = log
        self._process: anyio.abc.Process | None = None

    async def start(self) -> None:
        config_file = self.log.parent / "lamplighter.toml"
        config = str(config_file if config_file.exists() else os.devnull)
        program = [*self._prefix, sys.executable, "-m", self._module]
        argv = [*program, self._verb, "--config", config, "--log-format", "json"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED_VARIABLES)}
        with self.log.open("ab") as log_file:
            self._process = await anyio.open_process(
                argv,
                env=inherited | BYTECODE_ENVIRON | self.environ,
                stdin=None,
                stdout=log_file,
                stderr=log_file,
                pass_fds=self._fds,
                cwd=self._tree,
            )

    @property
    def was_started(self) -> bool:
        """Whether the test has started it, and has not killed or stopped it since."""
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
        """Send SIGKILL, as a crash would, and wait for the end."""
        await self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM, without waiting."""
        assert self._process is not None
        self._process.terminate()

    async def stop(self) -> None:
        """Send SIGTERM, and wait for the end of the drain."""
        await self._end(signal.SIGTERM)

    async def wait_until_ended(self) -> None:
        """Return when the process has ended, whoever ended it."""
        if self._process is not None:
            await self._process.wait()

    async def _end(self, signal_number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.send_signal(signal_number)
            with anyio.CancelScope(shield=True):
                await process.wait()

    def peak_rss_mb(self) -> float:
        """Return the most memory that it has ever used, in MiB."""
        return process_memory_mb(self.pid, "VmHWM")


def process_memory_mb(pid: int, field: str = "VmRSS") -> float:
    """Return a memory field of proc(5) in MiB: `VmRSS` is what the process uses, `VmHWM` the most that it has used."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


class Installation:
    """The processes of one installation, with their data below `folder`.

    `programs`: by verb, what to start in place of `lamplighter`: a module, or the folder of another release
    (tests/upgrade). `broker_host`, `edge_host`: the addresses where they listen. `tls`: the
    broker's certificate. `url`: where clients reach edges that listen elsewhere; no socket is opened then.
    After `open`, `keys` holds the API keys: `ann` has every client scope, `admin` and `runner` the scope of that name.
    """

    def __init__(
        self,
        folder: Path,
        engine: str,
        docker_url: str | None = None,
        programs: Mapping[str, str | Path] | None = None,
        *,
        broker_host: str = LOOPBACK,
        edge_host: str = LOOPBACK,
        tls: TlsFiles | None = None,
        url: str | None = None,
    ) -> None:
        self._programs = programs or {}
        self._tls = tls
        self._sockets: list[socket.socket] = []
        self.folder = folder
        self.engine = engine
        self.docker_url = docker_url
        self.name = secrets.token_hex(6)
        self.keys: dict[str, str] = {}
        self.edges: dict[str, ServiceProcess] = {}
        self.runners: dict[str, ServiceProcess] = {}
        self.server = NatsServer(folder / "broker", listen=f"{broker_host}:-1", tls=tls)
        if broker_host == LOOPBACK:  # other tests take ports there while the broker is dead
            self._sockets += (reserve_port(), reserve_port())
            self.server._ports = (address_of(self._sockets[0]), address_of(self._sockets[1]))
        if url is None:
            listening = socket.create_server((edge_host, 0), backlog=256)
            self._sockets.append(listening)
            url = f"http://{edge_host}:{listening.getsockname()[1]}"
        self.url = url

    @property
    def edge(self) -> ServiceProcess:
        """The first edge."""
        return self.edges[EDGE]

    @property
    def edge_address(self) -> tuple[str, int]:
        """Host and port of `url`."""
        host, _, port = self.url.rpartition("/")[2].rpartition(":")
        return host, int(port)

    @property
    def broker_address(self) -> tuple[str, int]:
        """Host and port where clients of the broker connect."""
        host, _, port = self.server.url.rpartition("/")[2].rpartition(":")
        return host, int(port)

    def release_ports(self) -> None:
        """Close the sockets that hold the ports."""
        for held in self._sockets:
            held.close()

    async def open(self) -> dict[str, str]:
        """Start the broker and make `keys`."""
        await self.server.start()
        async with self.bus() as bus:
            self.keys = await create_keys(bus)
        return self.keys

    def broker_settings(self, user: str) -> BrokerSettings:
        """How `user` reaches the broker."""
        pin = str(self._tls.cert) if self._tls else None
        return BrokerSettings(self.server.url, user, self.server.passwords[user], self.server.monitor_url, pin=pin)

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        """Connect to the broker with the edge's rights."""
        async with open_edge(self.broker_settings("edge")) as bus:
            yield bus

    def _environ(self, verb: str, name: str, endpoints: Sequence[Path]) -> dict[str, str]:
        """The settings that edge and runner share."""
        broker = self.broker_settings(verb)
        return {
            "LAMPLIGHTER_BROKER__URL": broker.url,
            "LAMPLIGHTER_BROKER__USER": broker.user,
            "LAMPLIGHTER_BROKER__PASSWORD": broker.password,
            "LAMPLIGHTER_DATA": str(self.folder / name),
            "LAMPLIGHTER_ENDPOINTS": json.dumps([str(folder) for folder in endpoints]),
        } | ({"LAMPLIGHTER_BROKER__PIN": broker.pin} if broker.pin else {})

    def edge_environ(self, endpoints: Sequence[Path] = ENDPOINTS, name: str = EDGE) -> dict[str, str]:
        """The settings of an edge, except where it listens."""
        return self._environ("edge", name, endpoints) | {
            "LAMPLIGHTER_BROKER__MONITOR": self.broker_settings("edge").monitor,
            "LAMPLIGHTER_RECONCILE_EVERY_S": "1",
        }

    def runner_environ(self, host: str, endpoints: Sequence[Path] = ENDPOINTS) -> dict[str, str]:
        """The settings of the runner of `host`."""
        environ = self._environ("runner", host, endpoints) | {
            "LAMPLIGHTER_EDGE__URL": self.url,
            "LAMPLIGHTER_EDGE__KEY": self.keys.get("runner", ""),
            "LAMPLIGHTER_HOST": host,
            "LAMPLIGHTER_INSTALLATION": self.name,
            "LAMPLIGHTER_ENGINE": self.engine,
            "LAMPLIGHTER_GPU__WATCH": "0",
            "LAMPLIGHTER_IMAGES__PULL": "0",  # no test asks a registry of the internet
            "LAMPLIGHTER_WARM__ON": "0",  # a warm container would stand among what a job left behind
            "LAMPLIGHTER_LOG_LEVEL": "debug",
            "LAMPLIGHTER_GRACE_S": "2",
            **job_user.runner_settings(),
        }
        return environ | ({"LAMPLIGHTER_DOCKER_SOCKET": self.docker_url} if self.docker_url else {})

    async def start_service(
        self, verb: str, name: str, environ: dict[str, str], *, fds: tuple[int, ...] = (), prefix: Sequence[str] = ()
    ) -> ServiceProcess:
        """Start an edge or a runner with its log in `<name>.log`; also again, after it was killed."""
        program = self._programs.get(verb, PROGRAM)
        process = ServiceProcess(
            verb,
            environ,
            self.folder / f"{name}.log",
            fds,
            PROGRAM if isinstance(program, Path) else program,
            prefix=prefix,
            tree=program if isinstance(program, Path) else ROOT,
        )
        (self.edges if verb == "edge" else self.runners)[name] = process
        await process.start()
        return process

    async def start_edge(self, endpoints: Sequence[Path] = ENDPOINTS, **environ: str) -> None:
        """Start the edge that listens at `url`, with `environ` besides its settings."""
        listening = self._sockets[-1].fileno()
        settings = self.edge_environ(endpoints) | {"LAMPLIGHTER_FD": str(listening)}
        await self.start_service("edge", EDGE, settings | environ, fds=(listening,))

    async def start_runner(
        self,
        host: str = HOST,
        *,
        broker: str | None = None,
        endpoints: Sequence[Path] = ENDPOINTS,
        prefix: Sequence[str] = (),
        **environ: str,
    ) -> ServiceProcess:
        """Start the runner of `host`, with `environ` besides its settings. `broker`: another URL for the broker."""
        settings = self.runner_environ(host, endpoints) | ({"LAMPLIGHTER_BROKER__URL": broker} if broker else {})
        return await self.start_service("runner", host, settings | environ, prefix=prefix)

    @asynccontextmanager
    async def engine_of(self, host: str) -> AsyncIterator[ContainerEngine]:
        """Open the container engine of the host's runner, to see and end containers without that runner."""
        if self.docker_url:
            async with DockerEngine(DockerSettings(base_url=self.docker_url)) as docker:
                yield docker
        else:
            async with ProcessEngine(self.folder / host / "processes", IMAGES / "jobkit") as processes:
                yield processes

    async def containers(self, host: str = HOST) -> list[FoundContainer]:
        """Return this installation's containers on the host's engine, in any state."""
        async with self.engine_of(host) as engine:
            return await engine.find(self.name, host)

    async def clear(self) -> None:
        """Stop all runners, and remove the containers that they left."""
        for process in self.runners.values():
            await process.stop()
        for host in self.runners:
            async with self.engine_of(host) as engine:
                for found in await engine.find(self.name, host):
                    await engine.remove(found.handle)

    async def close(self) -> None:
        """Stop everything."""
        await self.clear()
        for edge in self.edges.values():
            await edge.stop()
        await self.server.stop()
        self.release_ports()

    def tail(self) -> str:
        """Return the ends of all logs, for a test that failed."""
        logs = sorted(log for pattern in LOG_PATTERNS for log in self.folder.glob(pattern))
        return "\n".join(
            f"== {log.relative_to(self.folder)}\n{log.read_text(errors='replace')[-LOG_TAIL_CHARS:]}" for log in logs
        )


async def create_keys(bus: Bus) -> dict[str, str]:
    """Create the API keys of an installation: `ann` with every client scope, `admin`, and `runner`."""
    api_keys = ApiKeyStore(bus.api_keys, utc_now, secrets.token_bytes, time.monotonic)
    return {
        "ann": (await api_keys.create("ann", CLIENT_SCOPES)).text,
        "admin": (await api_keys.create("boss", (Scope.ADMIN,))).text,
        "runner": (await api_keys.create("boss", (Scope.RUNNER,))).text,
    }


async def wait_until_ready(client: AsyncClient, timeout_s: float = 60) -> None:
    """Wait until the edge takes work. Several edges that start at once on two cores take a while."""

    async def is_ready() -> bool:
        try:
            return (await client._http.get("/readyz")).status_code == 200
        except httpx2.HTTPError:
            return False

    await wait_for(is_ready, timeout_s=timeout_s)


class RunningInstallation(Struct, frozen=True):
    """A running edge. `ann` is an ordinary client, `admin` sees everything, `bus` has the edge's rights."""

    installation: Installation
    ann: AsyncClient
    admin: AsyncClient
    bus: Bus


@asynccontextmanager
async def run_installation(
    installation: Installation, endpoints: Sequence[Path] = ENDPOINTS, **environ: str
) -> AsyncIterator[RunningInstallation]:
    """Start the broker and the edge of `installation`; close it at the end. `environ` is more for the edge."""
    folder = installation.folder
    try:
        keys = await installation.open()
        await installation.start_edge(endpoints, **environ)
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
    folder: Path, engine: str, docker_url: str | None, **environ: str
) -> AsyncIterator[RunningInstallation]:
    """Run an installation in `folder`. `environ` is more for the edge."""
    installation = Installation(folder, engine, docker_url if engine == "docker" else None)
    async with run_installation(installation, **environ) as running:
        yield running
