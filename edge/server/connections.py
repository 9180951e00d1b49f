"""Who may connect: open connections, counted in all and per address."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Protocol

from edge.server.settings import ServerSettings
from edge.strangers import Proxies, StrangerLog, client_of
from schemas.errors import Refused

EVICTED = 64  # connections closed at once where all are taken
ADDRESS_AGAIN_S = 10
FULL_AGAIN_S = 5


class Occupant(Protocol):
    """The protocol that serves a connection."""

    def waits_since(self) -> float | None:
        """Since when the connection has been waiting for a request; None while it works on one."""
        ...

    def evict(self) -> None:
        """Close the connection now."""
        ...


class Slot:
    """The place of one connection, from accept to close. `release` may be called again."""

    def __init__(self, address: str, leave: Callable[["Slot"], None]) -> None:
        self.address = address
        self.occupant: Occupant | None = None
        self._leave = leave

    def release(self) -> None:
        """Give the place back."""
        self._leave(self)


class Connections:
    """`most`: open at once in all. Where all places are taken, the connections that waited longest for a request go."""

    def __init__(self, settings: ServerSettings, most: int) -> None:
        self._most = most
        self._per_address = settings.connections_per_address
        self._proxies = Proxies(settings.proxies)
        self._slots: set[Slot] = set()
        self._of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._slots)

    def take(self, address: str) -> Slot:
        """A place for a connection from `address`. Raises Refused `too_many_connections`, `unavailable`."""
        client = client_of(address)
        if self._of[client] >= self._per_address and address not in self._proxies:
            raise Refused(
                "too_many_connections",
                f"{self._per_address} connections of {client} are open, which is the most: close some",
                retry_after_s=ADDRESS_AGAIN_S,
            )
        if len(self._slots) >= self._most:
            self._evict()
        if len(self._slots) >= self._most:
            said = f"{self._most} connections are open, which is the most: try again"
            raise Refused("unavailable", said, retry_after_s=FULL_AGAIN_S)
        slot = Slot(address, self._left)
        self._slots.add(slot)
        self._of[client] += 1
        return slot

    def _left(self, slot: Slot) -> None:
        if slot not in self._slots:
            return
        self._slots.remove(slot)
        client = client_of(slot.address)
        self._of[client] -= 1
        if not self._of[client]:
            del self._of[client]

    def _evict(self) -> None:
        """Close the connections that waited longest. Places are free at once, as closing takes a turn of the loop."""
        waiting = []
        for slot in self._slots:
            since = slot.occupant.waits_since() if slot.occupant is not None else None
            if since is not None:
                waiting.append((since, slot))
        waiting.sort(key=lambda pair: pair[0])
        for _, slot in waiting[:EVICTED]:
            if slot.occupant is not None:
                slot.occupant.evict()
            slot.release()


class Shared(NamedTuple):
    """What all servers of a process share."""

    bounds: ServerSettings
    connections: Connections
    strangers: StrangerLog
