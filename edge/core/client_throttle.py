"""Clients that are not known: how their addresses are counted, and a log that they cannot fill."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import structlog
from msgspec import Struct

WINDOW_S = 60.0
TRACKED_CLIENTS_LIMIT = 4096  # addresses; what is forgotten is logged again
FREE_FAILURES_LIMIT = 10  # failures of an address within EVERY_S that are answered at once
FAILURE_DELAY_S = 2.0  # before each further failure is answered: a connection tries 30 keys a minute
_IPV6_PREFIX = 64  # one customer of a provider has at least a /64

_log = structlog.get_logger()


def client_network(address: str) -> str:
    """The name under which an address is counted: itself, or the /64 of an IPv6 address."""
    parsed = _parse_address(address)
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, _IPV6_PREFIX), strict=False))
    return address if parsed is None else str(parsed)


def _parse_address(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:  # a Unix socket has none
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed


class TrustedProxies:
    """The networks whose addresses stand for many clients."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ip_network(network) for network in networks]

    def __contains__(self, address: str) -> bool:
        parsed = _parse_address(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def client_address(self, peer: str, forwarded: str | None) -> str:
        """The client behind `peer`: the last address in `forwarded` (X-Forwarded-For) that is not a proxy's."""
        if forwarded is None or peer not in self:
            return peer
        for hop in reversed(forwarded.split(",")):
            named = hop.strip()
            if _parse_address(named) is None:
                return peer
            if named not in self:
                return named
        return peer


class AuthFailureThrottle:
    """How often each address failed to authenticate lately, and how long its next answer waits for that."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, pause_s: float = FAILURE_DELAY_S) -> None:
        self._monotonic, self._delay_s = monotonic, pause_s
        self._failures: dict[str, deque[float]] = {}

    def count_failure(self, address: str) -> float:
        """Count a failure; seconds to wait before it is answered: none for the first FREE of a minute."""
        now, client = self._monotonic(), client_network(address)
        if client not in self._failures and len(self._failures) >= TRACKED_CLIENTS_LIMIT:
            del self._failures[next(iter(self._failures))]
        failed = self._failures.setdefault(client, deque(maxlen=FREE_FAILURES_LIMIT + 1))
        failed.append(now)
        return self._delay_s if len(failed) > FREE_FAILURES_LIMIT and now - failed[0] < WINDOW_S else 0.0


class _LoggedEvent(Struct):
    """When an event of an address was logged, and how often it came since."""

    logged_at: float
    repeated: int = 0


class ThrottledClientLog:
    """Logs an event of an address at most once a minute, with how often it came in between."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._logged: dict[tuple[str, str], _LoggedEvent] = {}

    def log(self, event: str, address: str, **fields: object) -> None:
        """Log `event` of `address`, unless it was logged within the last minute."""
        now = self._monotonic()
        name = (event, client_network(address))
        noted = self._logged.get(name)
        if noted is not None and now - noted.logged_at < WINDOW_S:
            noted.repeated += 1
            return
        if len(self._logged) >= TRACKED_CLIENTS_LIMIT:
            self._logged = {key: one for key, one in self._logged.items() if now - one.logged_at < WINDOW_S}
        if len(self._logged) >= TRACKED_CLIENTS_LIMIT:
            self._logged.clear()
        self._logged[name] = _LoggedEvent(now)
        _log.warning(event, client=address, repeated=0 if noted is None else noted.repeated, **fields)
