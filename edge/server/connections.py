"""Who may connect: open connections, counted in all and per address."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Protocol

from edge.core.client_throttle import ThrottledClientLog, TrustedProxies, client_network
from edge.settings import ServerSettings
from schemas.problems import ProblemError

EVICTION_BATCH_LIMIT = 64  # connections closed at once where all are taken
ADDRESS_RETRY_AFTER_S = 10
FULL_RETRY_AFTER_S = 5


class SlotOccupant(Protocol):
    """The protocol that serves a connection."""

    def idle_since(self) -> float | None:
        """Since when the connection has been waiting for a request; None while it works on one."""
        ...

    def evict(self) -> None:
        """Close the connection now."""
        ...


class ConnectionSlot:
    """The place of one connection, from accept to close. `release` may be called again."""

    def __init__(self, address: str, leave: Callable[["ConnectionSlot"], None]) -> None:
        self.address = address
        self.occupant: SlotOccupant | None = None
        self._on_release = leave

    def release(self) -> None:
        """Give the place back."""
        self._on_release(self)


class ConnectionLimiter:
    """`most`: open at once in all. Where all places are taken, the connections that waited longest for a request go."""

    def __init__(self, settings: ServerSettings, most: int) -> None:
        self._limit = most
        self._limit_per_address = settings.connections_per_address
        self._proxies = TrustedProxies(settings.proxies)
        self._slots: set[ConnectionSlot] = set()
        self._count_by_client: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._slots)

    def acquire_slot(self, address: str) -> ConnectionSlot:
        """A place for a connection from `address`. Raises Refused `too_many_connections`, `unavailable`."""
        client = client_network(address)
        if self._count_by_client[client] >= self._limit_per_address and address not in self._proxies:
            raise ProblemError(
                "too_many_connections",
                f"{self._limit_per_address} connections of {client} are open, which is the most: close some",
                retry_after_s=ADDRESS_RETRY_AFTER_S,
            )
        if len(self._slots) >= self._limit:
            self._evict_idle()
        if len(self._slots) >= self._limit:
            said = f"{self._limit} connections are open, which is the most: try again"
            raise ProblemError("unavailable", said, retry_after_s=FULL_RETRY_AFTER_S)
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
        """Close the connections that waited longest. Places are free at once, as closing takes a turn of the loop."""
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
    """What all servers of a process share."""

    limits: ServerSettings
    connections: ConnectionLimiter
    client_events: ThrottledClientLog
