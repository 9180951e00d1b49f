"""Limits for clients that have not authenticated: delays after failures, and a log that such clients cannot flood."""

import time
from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import structlog
from msgspec import Struct

WINDOW_S = 60.0
TRACKED_CLIENTS_LIMIT = 4096  # addresses; events of a forgotten address are logged again
FREE_FAILURES_LIMIT = 10  # failures of an address within WINDOW_S that are answered without a delay
FAILURE_DELAY_S = 2.0  # before the answer to each further failure: one connection can try 30 keys a minute
_IPV6_PREFIX = 64  # providers give every customer at least a /64

_log = structlog.get_logger()


def client_network(address: str) -> str:
    """Return the name under which `address` is counted: the address itself, or the /64 of an IPv6 address."""
    parsed = parse_address(address)
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, _IPV6_PREFIX), strict=False))
    return address if parsed is None else str(parsed)


def parse_address(address: str) -> IPv4Address | IPv6Address | None:
    """Return the address, an IPv4 one if it is mapped into IPv6; None for a text that is not an address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:  # a Unix socket has no address
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed


class AuthFailureThrottle:
    """Counts recent authentication failures of each address and delays the answers to further ones."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, delay_s: float = FAILURE_DELAY_S) -> None:
        self._monotonic, self._delay_s = monotonic, delay_s
        self._failures: dict[str, deque[float]] = {}

    def count_failure(self, address: str) -> float:
        """Count a failure; return the seconds to delay its answer: 0 for the first FREE_FAILURES_LIMIT of a minute."""
        now, client = self._monotonic(), client_network(address)
        if client not in self._failures and len(self._failures) >= TRACKED_CLIENTS_LIMIT:
            del self._failures[next(iter(self._failures))]
        failures = self._failures.setdefault(client, deque(maxlen=FREE_FAILURES_LIMIT + 1))
        failures.append(now)
        return self._delay_s if len(failures) > FREE_FAILURES_LIMIT and now - failures[0] < WINDOW_S else 0.0


class _LoggedEvent(Struct):
    """The time at which an event of an address was logged, and how often the event has repeated since."""

    logged_at: float
    repeated: int = 0


class ThrottledClientLog:
    """Logs an event of an address at most once a minute, with the number of repetitions in between."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._logged: dict[tuple[str, str], _LoggedEvent] = {}

    def log(self, event: str, address: str, **fields: object) -> None:
        """Log `event` of `address` unless it was logged within the last minute; then count it."""
        now = self._monotonic()
        name = (event, client_network(address))
        logged = self._logged.get(name)
        if logged is not None and now - logged.logged_at < WINDOW_S:
            logged.repeated += 1
            return
        if len(self._logged) >= TRACKED_CLIENTS_LIMIT:
            self._logged = {key: one for key, one in self._logged.items() if now - one.logged_at < WINDOW_S}
        if len(self._logged) >= TRACKED_CLIENTS_LIMIT:
            self._logged.clear()
        self._logged[name] = _LoggedEvent(now)
        _log.warning(event, client=address, repeated=0 if logged is None else logged.repeated, **fields)
