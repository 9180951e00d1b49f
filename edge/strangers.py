"""Clients that are not known: how their addresses are counted, and a log that they cannot fill."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import structlog
from msgspec import Struct

EVERY_S = 60.0
REMEMBERED = 4096  # addresses; what is forgotten is logged again
FREE = 10  # failures of an address within EVERY_S that are answered at once
PAUSE_S = 2.0  # before each further failure is answered: a connection tries 30 keys a minute
_IPV6_PREFIX = 64  # one customer of a provider has at least a /64

_log = structlog.get_logger()


def client_of(address: str) -> str:
    """The name under which an address is counted: itself, or the /64 of an IPv6 address."""
    parsed = _parsed(address)
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, _IPV6_PREFIX), strict=False))
    return address if parsed is None else str(parsed)


def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:  # a Unix socket has none
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed


class Proxies:
    """The networks whose addresses stand for many clients."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ip_network(network) for network in networks]

    def __contains__(self, address: str) -> bool:
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def client(self, peer: str, forwarded: str | None) -> str:
        """The client behind `peer`: the last address in `forwarded` (X-Forwarded-For) that is not a proxy's."""
        if forwarded is None or peer not in self:
            return peer
        for hop in reversed(forwarded.split(",")):
            named = hop.strip()
            if _parsed(named) is None:
                return peer
            if named not in self:
                return named
        return peer


class Failures:
    """How often each address failed to authenticate lately, and how long its next answer waits for that."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, pause_s: float = PAUSE_S) -> None:
        self._monotonic, self._pause_s = monotonic, pause_s
        self._failed: dict[str, deque[float]] = {}

    def pause(self, address: str) -> float:
        """Count a failure; seconds to wait before it is answered: none for the first FREE of a minute."""
        now, client = self._monotonic(), client_of(address)
        if client not in self._failed and len(self._failed) >= REMEMBERED:
            del self._failed[next(iter(self._failed))]
        failed = self._failed.setdefault(client, deque(maxlen=FREE + 1))
        failed.append(now)
        return self._pause_s if len(failed) > FREE and now - failed[0] < EVERY_S else 0.0


class _Noted(Struct):
    """When an event of an address was logged, and how often it came since."""

    at: float
    since: int = 0


class StrangerLog:
    """Logs an event of an address at most once a minute, with how often it came in between."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._noted: dict[tuple[str, str], _Noted] = {}

    def note(self, event: str, address: str, **fields: object) -> None:
        """Log `event` of `address`, unless it was logged within the last minute."""
        now = self._monotonic()
        name = (event, client_of(address))
        noted = self._noted.get(name)
        if noted is not None and now - noted.at < EVERY_S:
            noted.since += 1
            return
        if len(self._noted) >= REMEMBERED:
            self._noted = {key: one for key, one in self._noted.items() if now - one.at < EVERY_S}
        if len(self._noted) >= REMEMBERED:
            self._noted.clear()
        self._noted[name] = _Noted(now)
        _log.warning(event, client=address, repeated=0 if noted is None else noted.since, **fields)
