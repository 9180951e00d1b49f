"""The settings of the HTTP server, and the limits on open connections, in total and per address."""

from collections import Counter
from collections.abc import Callable
from ipaddress import ip_network
from typing import Annotated, NamedTuple, Protocol

from msgspec import Meta, Struct

from edge.core.clients import ThrottledClientLog, TrustedProxies, client_network
from schemas.problems import ProblemError
from schemas.settings_loader import renamed_from

EVICTION_BATCH_LIMIT = 64  # connections closed at once when all slots are taken
ADDRESS_RETRY_AFTER_S = 10
FULL_RETRY_AFTER_S = 5

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class ServerSettings(Struct, frozen=True):
    """The `[server]` section: limits of the HTTP server."""

    head_bytes: Annotated[int, Meta(ge=1024)] = 32 * 1024
    """Limit of a request line with its headers, and of the trailers of a chunked body."""
    head_s: Seconds = 10.0
    """Time in which a request line with its headers must arrive."""
    handshake_s: Seconds = 10.0
    """Time in which a TLS handshake must end."""
    stall_s: Seconds = 120.0
    """The longest pause in which nothing of a request body arrives."""
    connections: Count = 8192
    """Open connections in total. Lowered where the process may open fewer files."""
    connections_per_address: Count = 256
    """Open connections of one IPv4 address or IPv6 /64."""
    trusted_proxies: Annotated[tuple[str, ...], renamed_from("proxies")] = ()
    """Networks of reverse proxies. Their `X-Forwarded-For` or `Forwarded` names the client, and
    `connections_per_address` then limits the open requests of that client. Without it such headers are ignored.
    """
    requests_per_minute: Annotated[int, Meta(ge=0)] = 30_000
    """Requests of one key a minute; 0: no limit. Keys with the scope `runner` have none."""
    streams_per_key: Count = 200
    """Open event streams of one key, over HTTP or a WebSocket."""
    streams_per_owner: Count = 400
    """Open event streams of one owner."""
    sockets_per_key: Count = 1000
    """Open WebSockets of one key at the gateway."""
    sockets_per_owner: Count = 2000
    """Open WebSockets of one owner at the gateway. They share one event stream."""

    def __post_init__(self) -> None:
        for network in self.trusted_proxies:
            ip_network(network)  # raises ValueError, which names the network


class SlotOccupant(Protocol):
    """The protocol object that serves one connection."""

    def idle_since(self) -> float | None:
        """Return since when the connection has waited for a request; None while it serves one."""
        ...

    def evict(self) -> None:
        """Close the connection now, to make room for another one."""
        ...


class ConnectionSlot:
    """The slot of one connection, from accept to close. A second `release` has no effect."""

    def __init__(self, address: str, on_release: Callable[["ConnectionSlot"], None]) -> None:
        self.address = address
        self.occupant: SlotOccupant | None = None
        self._on_release = on_release

    def release(self) -> None:
        """Free the slot for another connection."""
        self._on_release(self)


class ConnectionLimiter:
    """Counts open connections. If all `limit` slots are taken, it evicts those that waited longest for a request."""

    def __init__(self, settings: ServerSettings, limit: int) -> None:
        self._limit = limit
        self._limit_per_address = settings.connections_per_address
        self._proxies = TrustedProxies(settings.trusted_proxies)
        self._slots: set[ConnectionSlot] = set()
        self._count_by_client: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._slots)

    def acquire_slot(self, address: str) -> ConnectionSlot:
        """Reserve a slot for `address`. Raises ProblemError `too_many_connections` or `unavailable`."""
        client = client_network(address)
        if self._count_by_client[client] >= self._limit_per_address and not self._proxies.is_shared(address):
            raise ProblemError(
                "too_many_connections",
                f"{client} has {self._limit_per_address} open connections, which is the limit: close some",
                retry_after_s=ADDRESS_RETRY_AFTER_S,
            )
        if len(self._slots) >= self._limit:
            self._evict_idle()
        if len(self._slots) >= self._limit:
            detail = f"the server has {self._limit} open connections, which is the limit: try again later"
            raise ProblemError("unavailable", detail, retry_after_s=FULL_RETRY_AFTER_S)
        slot = ConnectionSlot(address, self._release_slot)
        self._slots.add(slot)
        self._count_by_client[client] += 1
        return slot

    def _release_slot(self, slot: ConnectionSlot) -> None:
        if slot not in self._slots:
            return
        self._slots.remove(slot)
        client = client_network(slot.address)
        self._count_by_client[client] -= 1
        if not self._count_by_client[client]:
            del self._count_by_client[client]

    def _evict_idle(self) -> None:
        """Close the connections that waited longest. Free their slots now: closing takes a turn of the event loop."""
        waiting = []
        for slot in self._slots:
            since = slot.occupant.idle_since() if slot.occupant is not None else None
            if since is not None:
                waiting.append((since, slot))
        waiting.sort(key=lambda pair: pair[0])
        for _, slot in waiting[:EVICTION_BATCH_LIMIT]:
            if slot.occupant is not None:
                slot.occupant.evict()
            slot.release()


class ServerContext(NamedTuple):
    """State that all servers of a process share."""

    limits: ServerSettings
    connections: ConnectionLimiter
    client_events: ThrottledClientLog
