"""The state of the broker: of the connection, and of each server by its HTTP monitor.

Only the monitors tell whether writes are synced, and whether a disk is full.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import httpx2
import msgspec
from msgspec import Struct, field

from bus.health import BrokerBacklog, BrokerStatus, UptimeClock
from bus.interface import BrokerUnreachable
from bus.nats.jetstream import NS_PER_S, ApiResponse, JetStreamClient, StreamInfo, parse_time_ns
from bus.nats.topology import DELIVERIES, JOBS, count_unchecked_states
from schemas.outbound_rules import bypass_proxies_for_loopback

MONITOR_TIMEOUT = httpx2.Timeout(5.0, connect=1.0)
MONITOR_RETRY_BACKOFF_S = (
    30.0  # a server that is off does not answer at all: do not let every submit wait for its timeout
)
# The text in /healthz for a stream that could not be written. nats-server 2.15 does not serve that stream again before
# a restart, even when there is room. "Not enabled" says the same of all streams at once.
HALTED_MARKERS = ("write error", "not enabled")


class _JetStreamConfig(Struct, frozen=True):
    max_storage: int = 0
    sync_always: bool = False  # absent when writes are synced at intervals only


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
    """The body of the answer of the server's `/healthz`; a healthy server has no errors."""

    errors: tuple[_HealthzError, ...] = ()


class ServerStatus(NamedTuple):
    """The state of one server.

    `used_share`: the share of its store in use. `is_durable`: each acknowledged write is on disk.

    `write_error`: the write that its disk did not accept, in the broker's words; empty while it writes. The other
    fields may then be wrong: nats-server 2.15 that stopped writing before the first request reports that it does not
    sync.
    """

    name: str
    version: str
    used_share: float
    is_durable: bool
    write_error: str
    used_bytes: int = 0
    limit_bytes: int | None = None


def open_monitor_client(url: str) -> httpx2.AsyncClient:
    """Return a client for one server's monitor."""
    # Reading the system's certificates takes longer than all the rest of opening.
    verify = url.startswith("https:")
    return httpx2.AsyncClient(
        base_url=url, timeout=MONITOR_TIMEOUT, verify=verify, mounts=bypass_proxies_for_loopback(url)
    )


def has_lost_write_quorum(statuses: Sequence[ServerStatus]) -> bool:
    """Return whether too few servers write for anything to be stored: one of one, two of three."""
    return 2 * sum(bool(one.write_error) for one in statuses) >= len(statuses)


def describe_degradation(statuses: Sequence[ServerStatus], servers: int) -> tuple[str, ...]:
    """Return the faults of single servers while the others do the work, one line each.

    `statuses` are of those that answer.
    """
    full = (
        f"server {one.name} of the broker could not write, its disk is full or broken, and the others work without it: "
        "make room on that disk, then restart that nats-server"
        for one in statuses
        if one.write_error
    )
    silent = servers - len(statuses)
    away = (f"{silent} of the broker's {servers} servers do not answer at their monitors: restart them",)
    return (*full, *(away if silent else ()))


class MonitorClients:
    """The monitors of all servers. `clock`: seconds, never going back."""

    def __init__(self, clients: Sequence[httpx2.AsyncClient], clock: Callable[[], float]) -> None:
        self._clients = clients
        self._clock = clock
        self._retry_at = [0.0] * len(clients)

    def __len__(self) -> int:
        return len(self._clients)

    async def fetch_all(self) -> list[ServerStatus]:
        """Return the status of each server that answers. Raises BrokerUnreachable when none does.

        A server that did not answer is left out for MONITOR_RETRY_BACKOFF_S, as long as another one answers.
        """
        now = self._clock()
        due = [index for index, retry_at in enumerate(self._retry_at) if retry_at <= now]
        for indexes in (due, range(len(self._clients))):
            results = await asyncio.gather(*(self._fetch_one(index) for index in indexes))
            if statuses := [one for one in results if isinstance(one, ServerStatus)]:
                return statuses
        # Without the path, which is a secret of the edge.
        urls = ", ".join(f"{url.scheme}://{url.netloc.decode()}" for url in (one.base_url for one in self._clients))
        why = next((str(one) for one in results if not isinstance(one, ServerStatus)), "")
        what = f"the broker's monitor {urls} does not answer ({why})"
        raise BrokerUnreachable(
            f"{what}: set broker.monitor to the `http` address of nats.conf, with its http_base_path"
        )

    async def _fetch_one(self, index: int) -> ServerStatus | str:
        """Return the status of a server, or why it did not answer."""
        client = self._clients[index]
        try:
            varz = msgspec.json.decode((await client.get("/varz")).content, type=_Varz)
            healthz = msgspec.json.decode((await client.get("/healthz?details=true")).content, type=_Healthz)
        except (httpx2.HTTPError, msgspec.DecodeError) as error:
            self._retry_at[index] = self._clock() + MONITOR_RETRY_BACKOFF_S
            return str(error) or type(error).__name__
        self._retry_at[index] = 0.0
        store = varz.jetstream
        used, limit = store.stats.storage, store.config.max_storage if store.config.max_storage > 0 else None
        return ServerStatus(
            varz.server_name,
            varz.version,
            used / limit if limit else 0.0,
            store.config.sync_always,
            _write_error(healthz),
            used,
            limit,
        )


def _write_error(healthz: _Healthz) -> str:
    return next((one.error for one in healthz.errors if any(text in one.error.lower() for text in HALTED_MARKERS)), "")


class _AccountLimits(Struct, frozen=True):
    max_storage: int = -1


class _AccountInfo(ApiResponse, frozen=True):
    storage: int = 0
    limits: _AccountLimits = _AccountLimits()


class NatsBrokerHealth:
    """The health port. Without monitors it is unknown whether writes are synced."""

    def __init__(self, jetstream: JetStreamClient, monitors: MonitorClients | None, uptime: UptimeClock) -> None:
        self._jetstream = jetstream
        self._monitors = monitors
        self._uptime = uptime
        self._reconnect_queues: set[asyncio.Queue[None]] = set()

    @property
    def is_connected(self) -> bool:
        """Return whether the connection is up."""
        return self._jetstream.connection.is_connected

    @property
    def fault(self) -> str:
        """Return why the broker refuses this user."""
        return self._jetstream.connection.fault

    async def status(self) -> BrokerStatus:
        """Combine the monitors (the worst server counts) with a request over the connection.

        The monitors come first: a broker that has disabled its store answers nothing else, and only the monitors say
        why.
        """
        worst = (
            None if self._monitors is None else _aggregate_status(await self._monitors.fetch_all(), len(self._monitors))
        )
        if worst is not None and worst.write_failed:
            return worst
        account = await self._jetstream.call("INFO", {}, _AccountInfo)
        limit = account.limits.max_storage if account.limits.max_storage > 0 else None
        return worst or BrokerStatus(
            account.storage / limit if limit else 0.0, None, "", used_bytes=account.storage, limit_bytes=limit
        )

    async def backlog(self) -> BrokerBacklog:
        """Read the states of two streams and of one consumer."""
        jobs, deliveries, unchecked = await asyncio.gather(
            self._jetstream.stream_info(JOBS.name),
            self._jetstream.stream_info(DELIVERIES.name),
            count_unchecked_states(self._jetstream),
        )
        return BrokerBacklog(
            pointers=jobs.state.messages,
            unchecked_states=unchecked,
            deliveries=deliveries.state.messages,
            oldest_delivery_s=_oldest_age_s(deliveries),
            broker_time=datetime.fromtimestamp(parse_time_ns(jobs.ts) / NS_PER_S, UTC) if jobs.ts else None,
        )

    def uptime_s(self) -> float:
        """Return the uptime of the connection; it restarts after a break, a suspend or a clock jump."""
        return self._uptime.uptime_s()

    def on_connected(self) -> None:
        """Record that the connection is up and set up."""
        self._uptime.start()
        for queue in self._reconnect_queues:
            queue.put_nowait(None)

    def on_disconnected(self) -> None:
        """Record that the connection broke."""
        self._uptime.stop()

    async def reconnects(self) -> AsyncIterator[None]:
        """Yield for each reconnect after the first `anext`."""
        queue: asyncio.Queue[None] = asyncio.Queue()
        self._reconnect_queues.add(queue)
        try:
            while True:
                await queue.get()
                yield
        finally:
            self._reconnect_queues.discard(queue)


def _oldest_age_s(stream: StreamInfo) -> float:
    """Return the age of the oldest message by the broker's clock; 0 without a message or without its clock."""
    if not stream.state.messages or not stream.ts:
        return 0.0
    return max(0.0, (parse_time_ns(stream.ts) - parse_time_ns(stream.state.first_ts)) / NS_PER_S)


def _aggregate_status(statuses: Sequence[ServerStatus], servers: int) -> BrokerStatus:
    """Combine the servers that write if they form a quorum, and ignore the rest."""
    write_failed = has_lost_write_quorum(statuses)
    counted = statuses if write_failed else [one for one in statuses if not one.write_error]
    fullest = max(counted, key=lambda one: one.used_share)
    return BrokerStatus(
        used_share=fullest.used_share,
        is_durable=all(one.is_durable for one in counted),
        version=counted[0].version,
        write_failed=write_failed,
        degraded=() if write_failed else describe_degradation(statuses, servers),
        used_bytes=fullest.used_bytes,
        limit_bytes=fullest.limit_bytes,
    )
