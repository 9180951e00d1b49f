"""The reverse proxies whose headers are believed, and the client that they name."""

from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from typing import NamedTuple

from edge.core.client_throttle import parse_address
from schemas.environment import is_loopback

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
