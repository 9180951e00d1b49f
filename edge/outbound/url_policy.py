"""Rules for URLs that clients name. Pure: nothing is resolved here.

Only public unicast addresses are permitted, and no address that embeds or translates to another one. `check_url` checks
what a URL itself says; `refusal_reason` checks one address.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

import httpx2

Address = IPv4Address | IPv6Address

# IANA's special-purpose registries (RFC 6890 and its updates), and cloud metadata addresses that are not in them.
# `ipaddress.is_global` is not used, because its answer changes with the version of Python.
REFUSED_NETWORKS: tuple[tuple[str, IPv4Network | IPv6Network], ...] = (
    ("an unspecified address", IPv4Network("0.0.0.0/8")),
    ("a private address", IPv4Network("10.0.0.0/8")),
    ("a carrier's shared address", IPv4Network("100.64.0.0/10")),
    ("a loopback address", IPv4Network("127.0.0.0/8")),
    ("a cloud's metadata address", IPv4Network("168.63.129.16/32")),
    ("a link-local address", IPv4Network("169.254.0.0/16")),
    ("a private address", IPv4Network("172.16.0.0/12")),
    ("a reserved address", IPv4Network("192.0.0.0/24")),
    ("a documentation address", IPv4Network("192.0.2.0/24")),
    ("a relay's address", IPv4Network("192.88.99.0/24")),
    ("a private address", IPv4Network("192.168.0.0/16")),
    ("a benchmarking address", IPv4Network("198.18.0.0/15")),
    ("a documentation address", IPv4Network("198.51.100.0/24")),
    ("a documentation address", IPv4Network("203.0.113.0/24")),
    ("a multicast address", IPv4Network("224.0.0.0/4")),
    ("a reserved address", IPv4Network("240.0.0.0/4")),
    ("an unspecified address", IPv6Network("::/128")),
    ("a loopback address", IPv6Network("::1/128")),
    ("an IPv4 address in IPv6", IPv6Network("::/96")),
    ("an IPv4 address in IPv6", IPv6Network("::ffff:0:0/96")),
    ("an address behind NAT64", IPv6Network("64:ff9b::/96")),
    ("an address behind NAT64", IPv6Network("64:ff9b:1::/48")),
    ("a Teredo address", IPv6Network("2001::/32")),
    ("a reserved address", IPv6Network("2001::/23")),
    ("a documentation address", IPv6Network("2001:db8::/32")),
    ("an IPv4 address in IPv6", IPv6Network("2002::/16")),
    ("a documentation address", IPv6Network("3fff::/20")),
    ("a private address", IPv6Network("fc00::/7")),
    ("a link-local address", IPv6Network("fe80::/10")),
    ("a private address", IPv6Network("fec0::/10")),
    ("a multicast address", IPv6Network("ff00::/8")),
)
GLOBAL_UNICAST = IPv6Network("2000::/3")


def refusal_reason(address: Address) -> str | None:
    """Return what kind of refused address this is, or None if connecting to it is permitted."""
    for kind, network in REFUSED_NETWORKS:
        if address.version == network.version and address in network:
            return kind
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return "a reserved address"
    return None


def parse_ip_literal(host: str) -> Address | None:
    """Return the address that `host` spells, or None for a name."""
    if "%" in host:  # an IPv6 zone, which names an interface of this machine
        return None
    try:
        return ip_address(host)
    except ValueError:
        return None


SCHEME_PORTS = {"http": 80, "https": 443}
PORT_RANGE = range(1, 65536)
URL_LENGTH_LIMIT = 2048
URL_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# "Ends in a number" of the URL standard: an address in any spelling (127.1, 0x7f000001, 017700000001).
_NUMERIC_HOST = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")
_HOST_NAME = re.compile(r"[a-z0-9._-]{1,253}\Z")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x20\x7f\\]")


class UrlRefused(Exception):
    """The URL is not permitted; the message says why. A retry does not help."""


class UrlTarget(NamedTuple):
    """A checked URL. `host`: a name as it goes into DNS, or an address."""

    url: httpx2.URL
    host: str
    port: int
    is_allow_listed: bool


class AllowList:
    """Hosts that the settings permit, as `host` or `host:port`. An entry without a port permits every port."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._entries = {_parse_entry(entry) for entry in entries}

    def permits(self, host: str, port: int) -> bool:
        """Return whether an entry names this host and port."""
        return (host, port) in self._entries or (host, None) in self._entries


def _parse_entry(entry: str) -> tuple[str, int | None]:
    bare = entry.strip().lower()
    if bare.startswith("["):
        host, _, rest = bare[1:].partition("]")
        return host, int(rest[1:]) if rest.startswith(":") else None
    host, colon, port = bare.partition(":")
    if colon and port.isdecimal():
        return host, int(port)
    return bare, None


def _is_decodable_host(url: httpx2.URL) -> bool:
    """Return whether every `xn--` label of the host stands for a name. httpx2 leaves those that it cannot decode."""
    try:
        return not any(label.startswith("xn--") for label in url.host.split("."))
    except ValueError:  # idna's errors are UnicodeErrors
        return False


def parse_url(text: str, allow_list: AllowList) -> UrlTarget:
    """Parse and check `text` without DNS. Raises UrlRefused."""
    if len(text) > URL_LENGTH_LIMIT or _CONTROL_CHARACTERS.search(text):
        raise UrlRefused(f"a URL has at most {URL_LENGTH_LIMIT} characters, no spaces and no backslashes")
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError) as error:
        raise UrlRefused(f"the URL cannot be read: {error}") from error
    return check_url(url, allow_list)


def check_url(url: httpx2.URL, allow_list: AllowList) -> UrlTarget:
    """Check a URL that httpx2 has parsed, so that check and request use the same parser. Raises UrlRefused."""
    if url.scheme not in SCHEME_PORTS:
        raise UrlRefused(f"only http and https are supported, not {url.scheme or 'a relative URL'}")
    if url.userinfo:
        raise UrlRefused("a URL must not contain a user or password: use a signed URL instead")
    host = url.raw_host.decode("ascii").lower().rstrip(".")
    port = SCHEME_PORTS[url.scheme] if url.port is None else url.port
    if not host or port not in PORT_RANGE:
        raise UrlRefused("the URL has no host, or its port is not valid")
    is_allow_listed = allow_list.permits(host, port)
    address = parse_ip_literal(host)
    if address is None and not (_HOST_NAME.match(host) and _is_decodable_host(url)):
        raise UrlRefused("the URL's host is neither a name nor an address")
    if address is None and _NUMERIC_HOST.match(host.rpartition(".")[2]):
        raise UrlRefused(f"{host} is neither a name nor an address: write an address as four decimal numbers")
    reason = None if address is None or is_allow_listed else refusal_reason(address)
    if reason is not None:
        raise UrlRefused(f"{host} is {reason}; outbound.allow in the edge's settings can open it")
    return UrlTarget(url, host, port, is_allow_listed)
