"""What a URL says of itself, before anything is resolved: whether it may be asked at all, and whom."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import httpx

from edge.outbound.addresses import literal, refusal

SCHEMES = {"http": 80, "https": 443}
PORTS = range(1, 65536)
URL_CHARACTERS = 2048
IS_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# The URL standard's "ends in a number": an address, in whatever spelling (127.1, 0x7f000001, 017700000001).
_NUMERIC = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")
_NAME = re.compile(r"[a-z0-9._-]{1,253}\Z")
_UNSEEN = re.compile(r"[\x00-\x20\x7f\\]")


class UrlRefused(Exception):
    """The URL may not be asked; the message says why. Asking again does not help."""


class Target(NamedTuple):
    """Whom to ask. `host` as it goes into DNS or is an address; `opened`: an allow-list entry vouches for it."""

    url: httpx.URL
    host: str
    port: int
    opened: bool


class Allowed:
    """The hosts that settings open, as `host` or `host:port`; any port where none is named."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._places = {_place(entry) for entry in entries}

    def opens(self, host: str, port: int) -> bool:
        """Whether an entry names it."""
        return (host, port) in self._places or (host, None) in self._places


def _place(entry: str) -> tuple[str, int | None]:
    bare = entry.strip().lower()
    if bare.startswith("["):
        host, _, rest = bare[1:].partition("]")
        return host, int(rest[1:]) if rest.startswith(":") else None
    host, colon, port = bare.partition(":")
    if colon and port.isdecimal():
        return host, int(port)
    return bare, None


def _decodes(url: httpx.URL) -> bool:
    """Whether what `xn--` stands for in the host can be read; httpx reads it at every request, and fails where not."""
    try:
        return bool(url.host)
    except ValueError:  # idna's errors are UnicodeErrors
        return False


def target(text: str, allowed: Allowed) -> Target:
    """Whom `text` asks. Raises UrlRefused for what needs no DNS to be refused."""
    if len(text) > URL_CHARACTERS or _UNSEEN.search(text):
        raise UrlRefused(f"a URL has at most {URL_CHARACTERS} characters, no spaces and no backslashes")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise UrlRefused(f"the URL cannot be read: {error}") from error
    return read(url, allowed)


def read(url: httpx.URL, allowed: Allowed) -> Target:
    """As `target`, of a URL that httpx has read: what is checked and what is asked come from one parser."""
    if url.scheme not in SCHEMES:
        raise UrlRefused(f"only http and https are fetched, not {url.scheme or 'a relative URL'}")
    if url.userinfo:
        raise UrlRefused("a URL with user or password in it is not taken: sign the URL instead")
    host = url.raw_host.decode("ascii").lower().rstrip(".")
    port = SCHEMES[url.scheme] if url.port is None else url.port
    if not host or port not in PORTS:
        raise UrlRefused("the URL names no host, or no port of one")
    opened = allowed.opens(host, port)
    address = literal(host)
    if address is None and not (_NAME.match(host) and _decodes(url)):
        raise UrlRefused("the URL's host is neither a name nor an address")
    if address is None and _NUMERIC.match(host.rpartition(".")[2]):
        raise UrlRefused(f"{host} is no name and no address: write an address as four decimal numbers")
    what = None if address is None or opened else refusal(address)
    if what is not None:
        raise UrlRefused(f"{host} is {what}; outbound.allow in the edge's settings can open it")
    return Target(url, host, port, opened)
