"""The only way out: a transport that resolves once, checks all addresses, connects to what it checked (PROTOCOLS 6)."""

import socket
from collections.abc import Awaitable, Callable, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy

import anyio
import httpx

from edge.outbound.addresses import Address, literal, refusal
from edge.outbound.targets import Allowed, Target, UrlRefused, read

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

TIMEOUT = httpx.Timeout(30.0, connect=10.0)  # of one wait; who asks sets a limit for the whole
TRIED = 4  # addresses of one name


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, in the system's order. Raises OSError."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[4][0]) for place in found))


class Guard(httpx.AsyncBaseTransport):
    """Between the name that was checked and the connection there is no second look at DNS, which could answer anew.

    The request goes out to the address itself, with the name in Host and in TLS, so that certificates are checked
    against the name. `inner` carries it out; it must keep no connection, since it would know it by the address alone.
    """

    def __init__(self, allowed: Allowed, resolve: Resolve, inner: httpx.AsyncBaseTransport) -> None:
        self.allowed = allowed
        self._resolve = resolve
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises UrlRefused besides what httpx raises."""
        asked = read(request.url, self.allowed)
        addresses = await self._addresses(asked)
        for address in addresses[:-1]:
            try:
                return await self._inner.handle_async_request(_pinned(request, asked, address))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue  # the next address of the same name
        return await self._inner.handle_async_request(_pinned(request, asked, addresses[-1]))

    async def _addresses(self, asked: Target) -> list[Address]:
        """What the name stands for. One refused address refuses all: who mixes them has no good reason to."""
        spelled = literal(asked.host)
        if spelled is not None:
            return [spelled]  # `read` has judged it
        try:
            answers = await self._resolve(asked.host, asked.port)
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"{asked.host} cannot be resolved: {error}") from error
        found = [address for answer in answers if (address := literal(answer)) is not None]
        if not found:
            raise httpx.ConnectError(f"{asked.host} has no address")
        for address in found:
            what = None if asked.opened else refusal(address)
            if what is not None:
                raise UrlRefused(f"{asked.host} stands for {what}; outbound.allow in the edge's settings can open it")
        return found[:TRIED]

    async def aclose(self) -> None:
        """Close what carries the requests out."""
        await self._inner.aclose()


def _pinned(request: httpx.Request, asked: Target, address: Address) -> httpx.Request:
    return httpx.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,  # with Host as httpx made it of the name
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": asked.host},
    )


def client(allowed: Allowed, resolver: Resolve = resolve) -> httpx.AsyncClient:
    """A client that goes through a Guard: no proxies or logins from the environment, no redirects by itself.

    It keeps no cookies: what one owner's server set would go out with another owner's request, and never be forgotten.
    """
    unbounded = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # who asks bounds what it asks
    inner = httpx.AsyncHTTPTransport(trust_env=False, limits=unbounded)
    return httpx.AsyncClient(
        transport=Guard(allowed, resolver, inner),
        timeout=TIMEOUT,
        trust_env=False,
        follow_redirects=False,
        headers={"User-Agent": "lamplighter", "Accept-Encoding": "identity"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


async def send(asked: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """The answer, its body not read yet. Raises UrlRefused, httpx.HTTPError and nothing else.

    httpx reads where a redirect leads although nobody follows it, and lets what idna says of such a name through.
    """
    try:
        return await asked.send(request, stream=True)
    except (httpx.InvalidURL, ValueError) as error:
        raise httpx.RemoteProtocolError(f"a redirect leads nowhere: {error}", request=request) from error
