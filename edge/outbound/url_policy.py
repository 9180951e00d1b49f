"""Rules for URLs that clients name. Pure: nothing is resolved here.

Only public unicast addresses are permitted, and no address that embeds or translates to another one. `check_url` checks
what a URL itself says; `refusal_reason` checks one address.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import httpx2

from schemas.addresses import ends_in_number, parse_ip_literal, refusal_reason

SCHEME_PORTS = {"http": 80, "https": 443}
PORT_RANGE = range(1, 65536)
URL_LENGTH_LIMIT = 2048
URL_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
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
    if address is None and ends_in_number(host):
        raise UrlRefused(f"{host} is neither a name nor an address: write an address as four decimal numbers")
    reason = None if address is None or is_allow_listed else refusal_reason(address)
    if reason is not None:
        raise UrlRefused(f"{host} is {reason}; outbound.allow in the edge's settings can open it")
    return UrlTarget(url, host, port, is_allow_listed)
