"""A whole installation out of real processes: broker, edge, runners. Each can be killed and started again."""

import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import httpx

from bus.connection import open_edge
from bus.port import Bus
from bus.server import Server
from bus.settings import BrokerSettings
from edge.services.clock import utc_now
from edge.services.keys import Keys
from lamplighter import AsyncClient
from runner.engines.docker import DockerEngine, DockerSettings
from runner.engines.port import Engine, Found
from runner.engines.process import ProcessEngine
from schemas.access import CLIENT_SCOPES, Scope
from tests import job_user
from tests.bytecode import COMPILED
from tests.ports import place, reserve

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "images"
ENDPOINTS = (IMAGES / "echo", ROOT / "tests" / "e2e" / "endpoints")
# Where PYTHONDONTWRITEBYTECODE is set, every start would compile all that it imports: 3 s, and there are many starts.
NOT_INHERITED = ("LAMPLIGHTER_", "PYTHONDONTWRITEBYTECODE")
PROGRAM = "lamplighter"


class Process:
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
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
        with self.log.open("ab") as out:
            self._process = await anyio.open_process(
                argv,
                env=inherited | COMPILED | self._environ,
                stdin=None,
                stdout=out,
                stderr=out,
                pass_fds=self._fds,
                cwd=self._tree,
            )

    @property
    def started(self) -> bool:
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

    async def ended(self) -> None:
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
        self.server = Server(folder / "broker")
        self._reserved = (reserve(), reserve())  # for the broker, which is killed and comes back where it was
        self.server._ports = (place(self._reserved[0]), place(self._reserved[1]))
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.runners: dict[str, Process] = {}
        self.edge = Process("edge", {}, folder / "edge.log")
        self.runner_key = ""

    def give_back_ports(self) -> None:
        """Close the sockets that hold the ports."""
        for held in (self.listening, *self._reserved):
            held.close()

    async def open(self) -> dict[str, str]:
        """Start the broker and make the keys; the texts of those."""
        await self.server.start()
        async with self.bus() as bus:
            ring = Keys(bus.keys, utc_now, secrets.token_bytes, time.monotonic)
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
        settings = BrokerSettings(url=self.server.url, user="edge", password=password, monitor=self.server.monitor)
        async with open_edge(settings) as bus:
            yield bus

    async def start_edge(self, endpoints: Sequence[Path] = ENDPOINTS, **more: str) -> None:
        environ = {
            "LAMPLIGHTER_BROKER__URL": self.server.url,
            "LAMPLIGHTER_BROKER__USER": "edge",
            "LAMPLIGHTER_BROKER__PASSWORD": self.server.passwords["edge"],
            "LAMPLIGHTER_BROKER__MONITOR": self.server.monitor,
            "LAMPLIGHTER_FD": str(self.listening.fileno()),
            "LAMPLIGHTER_DATA": str(self.folder / "edge"),
            "LAMPLIGHTER_ENDPOINTS": json.dumps([str(folder) for folder in endpoints]),
            "LAMPLIGHTER_RECONCILE_EVERY_S": "1",
        } | more
        module = self._modules.get("edge", PROGRAM)
        tree = self._trees.get("edge", ROOT)
        self.edge = Process("edge", environ, self.folder / "edge.log", (self.listening.fileno(),), module, tree=tree)
        await self.edge.start()

    async def start_runner(
        self,
        host: str = "gpu-1",
        *,
        broker: str | None = None,
        endpoints: Sequence[Path] = ENDPOINTS,
        before: Sequence[str] = (),
        **more: str,
    ) -> Process:
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
            **job_user.settings(),
        } | more
        if self.docker_url:
            environ["LAMPLIGHTER_DOCKER_SOCKET"] = self.docker_url
        module = self._modules.get("runner", PROGRAM)
        log = self.folder / f"{host}.log"
        tree = self._trees.get("runner", ROOT)
        self.runners[host] = Process("runner", environ, log, module=module, before=before, tree=tree)
        await self.runners[host].start()
        return self.runners[host]

    @asynccontextmanager
    async def engine_of(self, host: str) -> AsyncIterator[Engine]:
        """The engine that the host's runner works with: its containers, seen and ended past that runner."""
        if self.docker_url:
            async with DockerEngine(DockerSettings(base_url=self.docker_url)) as docker:
                yield docker
        else:
            async with ProcessEngine(self.folder / host / "processes", IMAGES / "jobkit") as processes:
                yield processes

    async def containers(self, host: str = "gpu-1") -> list[Found]:
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


async def until(true: Callable[[], Coroutine[Any, Any, Any]], within_s: float = 30, every_s: float = 0.05) -> Any:
    """Wait for a condition that no event announces; its value."""
    with anyio.fail_after(within_s):
        while True:
            if value := await true():
                return value
            await anyio.sleep(every_s)


async def ready(client: AsyncClient, within_s: float = 60) -> None:
    """Wait until the edge takes work; several edges that start at once on two cores take a while."""

    async def healthy() -> bool:
        try:
            return (await client._http.get("/readyz")).status_code == 200
        except httpx.HTTPError:
            return False

    await until(healthy, within_s)
