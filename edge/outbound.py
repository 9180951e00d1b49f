"""HTTP requests to URLs that clients name: inputs by URL, and webhooks. The SSRF guard, and downloads through it.

`guarded_client` returns the only HTTP client that may be used for such a URL: its transport resolves the host once,
checks every address, and connects to an address that it checked. Only public unicast addresses are permitted, and no
address that embeds or translates to another one.

The rules for URLs are pure: `check_url` checks what a URL itself says, and resolves nothing. `download` follows
redirects through the guard, and each of its failures says whether a retry may help.
"""

import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import PurePosixPath
from typing import Annotated, NamedTuple
from urllib.parse import unquote

import anyio
import httpx2
from anyio import CapacityLimiter
from msgspec import Meta, Struct

from schemas.outbound_rules import Address, ends_in_number, parse_ip_literal, refusal_reason

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
    host, _, port = bare.partition(":")
    if port.isdecimal():
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


Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

HTTP_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)  # for one wait; the caller limits the whole request
ADDRESS_LIMIT = 4  # addresses tried for one name


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a name in the order of the system's resolver. Raises OSError."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[4][0]) for place in found))


class SsrfGuardTransport(httpx2.AsyncBaseTransport):
    """Send each request to an address that was checked, without a second DNS query that could answer differently.

    The request goes to the address itself, with the name in Host and in TLS, so that the certificate is checked
    against the name. `inner` sends it and must keep no connections: it would reuse them by address alone.
    """

    def __init__(self, allow_list: AllowList, resolve: Resolver, inner: httpx2.AsyncBaseTransport) -> None:
        self.allow_list = allow_list
        self._resolve = resolve
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send `request`. Raises UrlRefused, and errors of httpx2."""
        target = check_url(request.url, self.allow_list)
        addresses = await self._resolve_and_check(target)
        for address in addresses[:-1]:
            try:
                return await self._inner.handle_async_request(_pin_to_address(request, target, address))
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue  # the next address of the same name
        return await self._inner.handle_async_request(_pin_to_address(request, target, addresses[-1]))

    async def _resolve_and_check(self, target: UrlTarget) -> list[Address]:
        """Resolve the host. One refused address refuses all of them. Raises UrlRefused, httpx2.ConnectError."""
        literal = parse_ip_literal(target.host)
        if literal is not None:
            return [literal]  # `check_url` has checked it
        try:
            answers = await self._resolve(target.host, target.port)
        except (OSError, UnicodeError) as error:
            raise httpx2.ConnectError(f"{target.host} cannot be resolved: {error}") from error
        found = [address for answer in answers if (address := parse_ip_literal(answer)) is not None]
        if not found:
            raise httpx2.ConnectError(f"{target.host} has no address")
        for address in found:
            reason = None if target.is_allow_listed else refusal_reason(address)
            if reason is not None:
                raise UrlRefused(
                    f"{target.host} resolves to {reason}; outbound.allow in the edge's settings can open it"
                )
        return found[:ADDRESS_LIMIT]

    async def aclose(self) -> None:
        """Close the transport that sends the requests."""
        await self._inner.aclose()


def _pin_to_address(request: httpx2.Request, target: UrlTarget, address: Address) -> httpx2.Request:
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,  # include Host, which httpx2 made from the name
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": target.host},
    )


def guarded_client(
    allow_list: AllowList, resolver: Resolver = resolve_host, tls: ssl.SSLContext | bool = True
) -> httpx2.AsyncClient:
    """Return a client behind the guard that uses no proxies or logins of the environment and follows no redirects.

    `tls`: the certificates that it trusts; True: those of the system.
    It keeps no cookies: a cookie of one owner's server would be sent with another owner's request.
    """
    unbounded = httpx2.Limits(max_connections=None, max_keepalive_connections=0)  # each caller limits its own requests
    inner = httpx2.AsyncHTTPTransport(verify=tls, trust_env=False, limits=unbounded)
    return httpx2.AsyncClient(
        transport=SsrfGuardTransport(allow_list, resolver, inner),
        timeout=HTTP_TIMEOUT,
        trust_env=False,
        follow_redirects=False,
        headers={"User-Agent": "lamplighter", "Accept-Encoding": "identity"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


async def send_request(client: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
    """Return the response before its body is read. Raises UrlRefused and httpx2.HTTPError, nothing else.

    httpx2 parses the target of a redirect even if the redirect is not followed, and lets errors of idna through.
    """
    try:
        return await client.send(request, stream=True)
    except (httpx2.InvalidURL, ValueError) as error:
        raise httpx2.RemoteProtocolError(
            f"the target of a redirect is not a valid URL: {error}", request=request
        ) from error


REDIRECT_LIMIT = 3
TRANSIENT_STATUSES = {408, 425, 429}  # besides 5xx: asking again may help
CHUNK_BYTES = 256 * 1024


class DownloadFailed(Exception):
    """The file could not be downloaded. `is_transient`: another attempt may succeed."""

    def __init__(self, message: str, *, is_transient: bool) -> None:
        self.is_transient = is_transient
        super().__init__(message)


class Download(Struct, frozen=True):
    """A running download. `name` and `media_type`: as the server says. `length`: in bytes, None if not declared."""

    name: str
    media_type: str | None
    length: int | None
    chunks: AsyncIterator[bytes]


@asynccontextmanager
async def download(client: httpx2.AsyncClient, url: str) -> AsyncIterator[Download]:
    """Request `url`. Raises UrlRefused, DownloadFailed; reading the chunks raises DownloadFailed."""
    try:
        async with _follow_redirects(client, url) as response:
            _check_response(response)
            yield Download(
                name=PurePosixPath(unquote(response.url.path)).name or "file",
                media_type=response.headers.get("content-type"),
                length=_content_length(response),
                chunks=_stream_body(response),
            )
    except httpx2.HTTPError as error:
        raise DownloadFailed(_describe_error(error), is_transient=True) from error


@asynccontextmanager
async def _follow_redirects(client: httpx2.AsyncClient, url: str) -> AsyncIterator[httpx2.Response]:
    """Yield the first response that is not a redirect."""
    request = client.build_request("GET", url)
    for _ in range(REDIRECT_LIMIT + 1):
        response = await send_request(client, request)
        try:
            if response.next_request is None:
                yield response
                return
            request = client.build_request(
                "GET", response.next_request.url
            )  # no header of the first request is passed on
        finally:
            await response.aclose()
    raise DownloadFailed(f"more than {REDIRECT_LIMIT} redirects", is_transient=False)


def _check_response(response: httpx2.Response) -> None:
    status = response.status_code
    if status != httpx2.codes.OK:
        is_transient = status >= httpx2.codes.INTERNAL_SERVER_ERROR or status in TRANSIENT_STATUSES
        raise DownloadFailed(f"its server answered {status}", is_transient=is_transient)
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in {"identity", ""}:
        # The decoded body could have any size, and the encoded body is not the file.
        raise DownloadFailed(f"its server sent it as {coding[:40]} although identity was requested", is_transient=False)


def _content_length(response: httpx2.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


async def _stream_body(response: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_raw(CHUNK_BYTES):
            yield chunk
    except httpx2.HTTPError as error:
        raise DownloadFailed(_describe_error(error), is_transient=True) from error


def _describe_error(error: httpx2.HTTPError) -> str:
    return f"its server does not answer properly ({error or type(error).__name__})"[:300]


class OutboundSettings(Struct, frozen=True):
    """Settings for requests to URLs that clients name."""

    allow: tuple[str, ...] = ()
    """Hosts that input URLs and webhooks may name although their addresses are not public, as `host` or `host:port`."""
    fetch_timeout_s: Annotated[float, Meta(gt=0)] = 1800.0
    """How long the download of one file may take, all attempts included."""
    fetches: Annotated[int, Meta(ge=1)] = 8
    """Downloads at the same time."""
    fetches_of_owner: Annotated[int, Meta(ge=1)] = 2
    """Downloads at the same time for one owner."""


class PerOwnerLimiter:
    """Limit concurrent work to `total`, and to `per_owner` for each owner.

    A task acquires a slot of its owner first, and only then waits for a common slot. One owner therefore has at most
    `per_owner` tasks in the common queue and cannot crowd out the others.
    """

    def __init__(self, total: int, per_owner: int) -> None:
        self._total = CapacityLimiter(total)
        self._limit_per_owner = per_owner
        self._by_owner: dict[str, CapacityLimiter] = {}

    @asynccontextmanager
    async def slot(self, owner: str) -> AsyncIterator[None]:
        """Hold one slot of `owner` while the block runs."""
        own = self._by_owner.setdefault(owner, CapacityLimiter(self._limit_per_owner))
        try:
            # The borrower is an object of its own, because one task may hold several slots.
            async with _acquire_slot(own), _acquire_slot(self._total):
                yield
        finally:
            if not own.borrowed_tokens and not own.statistics().tasks_waiting:
                self._by_owner.pop(owner, None)


@asynccontextmanager
async def _acquire_slot(limiter: CapacityLimiter) -> AsyncIterator[None]:
    borrower = object()
    await limiter.acquire_on_behalf_of(borrower)
    try:
        yield
    finally:
        limiter.release_on_behalf_of(borrower)
