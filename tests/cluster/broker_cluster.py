"""A cluster of three brokers, each on its own machine, with the nats.conf that `bus.nats.topology` writes."""

import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread
from msgspec import Struct

from bus.interface import Bus, BusError
from bus.nats.jetstream import ApiResponse, JetStreamClient
from bus.nats.topology import STATE, STREAMS, broker_users
from bus.open import open_edge
from bus.server.config import ClusterConfig, ServerConfig, render_accounts, render_config
from bus.server.process import find_program
from bus.settings import BrokerSettings
from tests.cluster.namespace_machines import NamespaceMachine
from tests.support.wait import wait_for

CLIENTS, MONITOR, ROUTES = 4222, 8222, 6222
START_TIMEOUT_S = 60.0


class _Peer(Struct, frozen=True):
    current: bool = False


class _RaftState(Struct, frozen=True):
    leader: str = ""
    replicas: tuple[_Peer, ...] = ()


class _StreamLeader(ApiResponse, frozen=True):
    cluster: _RaftState = _RaftState()


class BrokerCluster:
    """The three brokers. They keep passwords and data over `kill` and `start`."""

    def __init__(self, folder: Path, machines: Sequence[NamespaceMachine]) -> None:
        self._folder = folder
        self._machines = {f"n{machine.number}": machine for machine in machines}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.passwords = {user.name: secrets.token_urlsafe(12) for user in broker_users()}
        self._secret = secrets.token_urlsafe(12)

    @property
    def names(self) -> list[str]:
        return list(self._machines)

    def settings(self, user: str, replicas: int | None = None) -> BrokerSettings:
        """Return how `user` reaches all of them."""
        every = list(self._machines.values())
        return BrokerSettings(
            url=",".join(f"nats://{machine.address}:{CLIENTS}" for machine in every),
            user=user,
            password=self.passwords[user],
            monitor=",".join(f"http://{machine.address}:{MONITOR}" for machine in every),
            replicas=replicas,
        )

    def _place(self, name: str, folder: Path) -> ServerConfig:
        address = self._machines[name].address
        routes = tuple(f"{machine.address}:{ROUTES}" for machine in self._machines.values())
        return ServerConfig(
            listen=f"{address}:{CLIENTS}",
            monitor=f"{address}:{MONITOR}",
            store_dir=str(folder / "jetstream"),
            accounts=("accounts.conf",),
            cluster=ClusterConfig(name, f"{address}:{ROUTES}", routes, self._secret),
        )

    def start(self, name: str) -> None:
        """Start one broker; it finds the others by itself."""
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "accounts.conf").write_text(render_accounts(self.passwords))
        (folder / "nats.conf").write_text(render_config(self._place(name, folder)))
        argv = [*self._machines[name].inside, find_program(), "--config", str(folder / "nats.conf")]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    async def kill(self, name: str) -> None:
        """Kill one broker with SIGKILL."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            await anyio.to_thread.run_sync(process.wait)

    async def form(self) -> None:
        """Start all of them, and wait until they hold every stream three times."""
        for name in self.names:
            self.start(name)

        async def formed() -> bool:
            try:
                async with open_edge(self.settings("edge", len(self.names))):
                    return True
            except BusError:
                return False

        await wait_for(formed, timeout_s=START_TIMEOUT_S)

    async def close(self) -> None:
        for name in self.names:
            await self.kill(name)


async def find_leader(bus: Bus) -> str:
    """Return the server that leads STATE."""
    return (await _led(bus, STATE.name)).leader


async def is_replicated(bus: Bus) -> bool:
    """Return whether three servers have all of every stream."""
    try:
        led = [await _led(bus, stream.name) for stream in STREAMS]
    except BusError:
        return False
    return all(one.leader and len(one.replicas) == 2 and all(peer.current for peer in one.replicas) for one in led)


async def _led(bus: Bus, stream: str) -> _RaftState:
    js: JetStreamClient = bus.job_queue._jetstream  # type: ignore[attr-defined]
    return (await js.call(f"STREAM.INFO.{stream}", {}, _StreamLeader)).cluster
