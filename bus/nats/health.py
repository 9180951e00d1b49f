"""The brokers' HTTP monitors: the only place that tells whether writes are synced, and whether a disk is full."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

import httpx
import msgspec
from msgspec import Struct, field

from bus.interface import BrokerStatus, BrokerUnreachable
from bus.nats.jetstream import ApiResponse, JetStreamClient
from bus.uptime_clock import UptimeClock
from schemas.environment import bypass_proxies_for_loopback

MONITOR_TIMEOUT = httpx.Timeout(5.0, connect=1.0)
MONITOR_RETRY_BACKOFF_S = (
    30.0  # a server that is switched off answers nothing at all: not every submit waits to find that out again
)
# What /healthz says of a stream that could not be written: nats-server 2.15 answers nothing for it any more, also when
# there is room again, until it is started anew. "Not enabled" is the same for all streams at once.
HALTED_MARKERS = ("write error", "not enabled")


class _JetStreamConfig(Struct, frozen=True):
    max_storage: int = 0
    sync_always: bool = False  # absent when writes are synced now and then


class _JetStreamStats(Struct, frozen=True):
    storage: int = 0


class _JetStreamVarz(Struct, frozen=True):
    config: _JetStreamConfig = _JetStreamConfig()
    stats: _JetStreamStats = _JetStreamStats()


class _Varz(Struct, frozen=True):
    """The parts of `/varz` that are used here."""

    version: str = ""
    server_name: str = ""
    jetstream: _JetStreamVarz = field(default_factory=_JetStreamVarz)


class _HealthzError(Struct, frozen=True):
    error: str = ""


class _Healthz(Struct, frozen=True):
    """What `/healthz` complains of."""

    errors: tuple[_HealthzError, ...] = ()


class ServerStatus(NamedTuple):
    """How one server is. `used`: the share of its store in use. `synced`: every acknowledged write is on disk.

    `halted`: what its disk did not take, in the broker's words; empty where it writes. The rest may then be untrue:
    nats-server 2.15 that had halted before it was first asked calls itself unsynced.
    """

    name: str
    version: str
    used_share: float
    is_durable: bool
    write_error: str


def open_monitor_client(url: str) -> httpx.AsyncClient:
    """A client of one server's monitor."""
    # Reading the system's certificates takes longer than all the rest of opening.
    verify = url.startswith("https:")
    return httpx.AsyncClient(
        base_url=url, timeout=MONITOR_TIMEOUT, verify=verify, mounts=bypass_proxies_for_loopback(url)
    )


def has_lost_write_quorum(said: Sequence[ServerStatus]) -> bool:
    """Whether so many of them have stopped writing that nothing is stored any more: of one that one, of three two."""
    return 2 * sum(bool(one.write_error) for one in said) >= len(said)


def describe_degradation(said: Sequence[ServerStatus], servers: int) -> tuple[str, ...]:
    """What befell some of the `servers`, of which `said` answer, while the others do the work; a line each."""
    full = (
        f"server {one.name} of the broker could not write, its disk is full or broken, and the others work without it: "
        "make room on that disk, then restart that nats-server"
        for one in said
        if one.write_error
    )
    silent = servers - len(said)
    away = (f"{silent} of the broker's {servers} servers do not answer at their monitors: start them anew",)
    return (*full, *(away if silent else ()))


class MonitorClients:
    """One a server. `running`: a clock that never goes back, in seconds."""

    def __init__(self, clients: Sequence[httpx.AsyncClient], running: Callable[[], float]) -> None:
        self._clients = clients
        self._running = running
        self._deaf_until = [0.0] * len(clients)

    def __len__(self) -> int:
        return len(self._clients)

    async def fetch_all(self) -> list[ServerStatus]:
        """What those that answer say; one that did not is not asked again for DEAF_S, as long as another answers.

        Raises Unreachable when none does.
        """
        now = self._running()
        hearing = [place for place, until in enumerate(self._deaf_until) if until <= now]
        for asked in (hearing, range(len(self._clients))):
            said = await asyncio.gather(*(self._fetch_one(place) for place in asked))
            if answers := [one for one in said if isinstance(one, ServerStatus)]:
                return answers
        # Without the path, which nobody but the edge may know.
        urls = ", ".join(f"{url.scheme}://{url.netloc.decode()}" for url in (one.base_url for one in self._clients))
        why = next((str(one) for one in said if not isinstance(one, ServerStatus)), "")
        what = f"the broker's monitor {urls} does not answer ({why})"
        raise BrokerUnreachable(
            f"{what}: set broker.monitor to the `http` address of nats.conf, with its http_base_path"
        )

    async def _fetch_one(self, place: int) -> ServerStatus | str:
        """What it says, or why it says nothing."""
        client = self._clients[place]
        try:
            varz = msgspec.json.decode((await client.get("/varz")).content, type=_Varz)
            healthz = msgspec.json.decode((await client.get("/healthz?details=true")).content, type=_Healthz)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            self._deaf_until[place] = self._running() + MONITOR_RETRY_BACKOFF_S
            return str(error) or type(error).__name__
        self._deaf_until[place] = 0.0
        store = varz.jetstream
        used = store.stats.storage / store.config.max_storage if store.config.max_storage > 0 else 0.0
        return ServerStatus(varz.server_name, varz.version, used, store.config.sync_always, _write_error(healthz))


def _write_error(healthz: _Healthz) -> str:
    return next((ill.error for ill in healthz.errors if any(word in ill.error.lower() for word in HALTED_MARKERS)), "")


# MERGED bus/link.py: The connection as its users see it: how it is, how long it has stood, when it came back.


class _AccountLimits(Struct, frozen=True):
    max_storage: int = -1


class _AccountInfo(ApiResponse, frozen=True):
    storage: int = 0
    limits: _AccountLimits = _AccountLimits()


class NatsBrokerHealth:
    """`monitors`: of the servers that the broker is; None: not asked, so nobody knows whether writes are synced."""

    def __init__(self, js: JetStreamClient, monitors: MonitorClients | None, unbroken: UptimeClock) -> None:
        self._js = js
        self._monitors = monitors
        self._unbroken = unbroken
        self._listeners: set[asyncio.Queue[None]] = set()

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands now."""
        return self._js.connection.is_connected

    @property
    def fault(self) -> str:
        """Why a broker that answers cannot be used."""
        return self._js.connection.fault

    async def status(self) -> BrokerStatus:
        """Over the monitors (how is it? the worst of the servers) and over the connection (is it there?).

        The monitors first: a broker that has switched its store off answers nothing else, and only they say why.
        """
        worst = (
            None if self._monitors is None else _aggregate_status(await self._monitors.fetch_all(), len(self._monitors))
        )
        if worst is not None and worst.write_failed:
            return worst
        account = await self._js.call("INFO", {}, _AccountInfo)
        limit = account.limits.max_storage
        return worst or BrokerStatus(account.storage / limit if limit > 0 else 0.0, None, "")

    def uptime_s(self) -> float:
        """Counts anew after a break, a suspend or a clock jump."""
        return self._unbroken.uptime_s()

    def on_connected(self) -> None:
        """The connection stands; everything on it is set up."""
        self._unbroken.start()
        for listener in self._listeners:
            listener.put_nowait(None)

    def on_disconnected(self) -> None:
        """It broke."""
        self._unbroken.stop()

    async def reconnects(self) -> AsyncIterator[None]:
        """From the first wait on."""
        mine: asyncio.Queue[None] = asyncio.Queue()
        self._listeners.add(mine)
        try:
            while True:
                await mine.get()
                yield
        finally:
            self._listeners.discard(mine)


def _aggregate_status(said: Sequence[ServerStatus], servers: int) -> BrokerStatus:
    """Of those that write, as long as they are enough: what the others say of themselves is nobody's hindrance."""
    halted = has_lost_write_quorum(said)
    asked = said if halted else [one for one in said if not one.write_error]
    used, synced = max(one.used_share for one in asked), all(one.is_durable for one in asked)
    return BrokerStatus(used, synced, asked[0].version, halted, () if halted else describe_degradation(said, servers))
