"""Clients before they authenticate: which address a client has, and what it may cost.

Trusted reverse proxies name the address. An address with failed authentications gets delays, and cannot flood the log.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

import structlog
from msgspec import Struct

from schemas.outbound_rules import is_loopback

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


# A request with one of these headers came through a proxy, so a loopback address does not identify its sender.
PROXY_HEADER_PREFIXES = (b"forwarded", b"x-forwarded-", b"x-real-ip", b"via", b"true-client-ip", b"cf-")
SCHEMES = ("http", "https")

RawHeaders = Iterable[tuple[bytes, bytes]]  # as in an ASGI scope: names in lower case


class ForwardedHop(NamedTuple):
    """One hop that a proxy wrote down: the address of its client, and the scheme if the proxy named it."""

    address: str
    scheme: str = ""


class ForwardedClient(NamedTuple):
    """The client behind trusted proxies. `scheme`: http or https; empty if no proxy named it."""

    address: str
    scheme: str


def shows_proxy(headers: RawHeaders) -> bool:
    """Return whether a header says that the request came through a proxy."""
    return any(name.startswith(PROXY_HEADER_PREFIXES) for name, _ in headers)


def read_hops(headers: RawHeaders) -> list[ForwardedHop]:
    """Return the hops, the one nearest to us last: from X-Forwarded-For, or without it from Forwarded (RFC 7239).

    Only one of the two is read, because a proxy that writes one of them may pass on the other as the client sent it.
    """
    given = {name: _join_values(headers, name) for name in (b"x-forwarded-for", b"x-forwarded-proto", b"forwarded")}
    if given[b"x-forwarded-for"] or not given[b"forwarded"]:
        scheme = given[b"x-forwarded-proto"].rpartition(",")[2].strip().lower()
        return [ForwardedHop(_strip_port(hop), scheme) for hop in _split(given[b"x-forwarded-for"])] or (
            [ForwardedHop("", scheme)] if scheme else []
        )
    return [_read_element(element) for element in _split(given[b"forwarded"])]


def _join_values(headers: RawHeaders, name: bytes) -> str:
    return ",".join(value.decode("latin-1") for key, value in headers if key == name)


def _split(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _read_element(element: str) -> ForwardedHop:
    pairs = (pair.partition("=") for pair in element.split(";"))
    values = {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
    return ForwardedHop(_strip_port(values.get("for", "")), values.get("proto", "").lower())


def _strip_port(node: str) -> str:
    """Return the address of `192.0.2.1:4711`, `[2001:db8::1]:4711` or an address alone."""
    if node.startswith("["):
        return node[1:].partition("]")[0]
    return node.partition(":")[0] if node.count(":") == 1 else node


class TrustedProxies:
    """The networks of the reverse proxies whose headers are believed.

    `requests_per_client`: how many requests of one client behind them may be open.
    """

    def __init__(self, networks: Sequence[str], *, requests_per_client: int = 256) -> None:
        self.requests_per_client = requests_per_client
        self._networks = [ip_network(network) for network in networks]

    def __contains__(self, address: str) -> bool:
        parsed = parse_address(address) if self._networks else None  # each request asks, and most edges declare none
        return parsed is not None and any(parsed in network for network in self._networks)

    def is_shared(self, address: str) -> bool:
        """Return whether many clients may have this address: limits for one client do not apply to it.

        That is a trusted proxy. Where none is declared, it is loopback: a proxy or a tunnel may be there.
        """
        return address in self if self._networks else is_loopback(address)

    def find_client(self, peer: str, hops: Sequence[ForwardedHop]) -> ForwardedClient:
        """Return the client of a request from `peer`: the last hop that is not a trusted proxy, else `peer`.

        A hop that is not an address ends the search: what stands before it cannot be checked.
        """
        if peer not in self:
            return ForwardedClient(peer, "")
        scheme = ""
        for hop in reversed(hops):
            scheme = hop.scheme if hop.scheme in SCHEMES else scheme
            if parse_address(hop.address) is None:
                break
            if hop.address not in self:
                return ForwardedClient(hop.address, scheme)
        return ForwardedClient(peer, scheme)
