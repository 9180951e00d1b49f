"""The only way out: a transport that resolves once, checks all addresses, connects to what it checked (PROTOCOLS 6)."""

import socket
from collections.abc import Awaitable, Callable, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy

import anyio
import httpx

from edge.outbound.url_policy import (
    Address,
    AllowList,
    UrlRefused,
    UrlTarget,
    check_url,
    parse_ip_literal,
    refusal_reason,
)

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

HTTP_TIMEOUT = httpx.Timeout(30.0, connect=10.0)  # of one wait; who asks sets a limit for the whole
ADDRESS_LIMIT = 4  # addresses of one name


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, in the system's order. Raises OSError."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[4][0]) for place in found))


class SsrfGuardTransport(httpx.AsyncBaseTransport):
    """Between the name that was checked and the connection there is no second look at DNS, which could answer anew.

    The request goes out to the address itself, with the name in Host and in TLS, so that certificates are checked
    against the name. `inner` carries it out; it must keep no connection, since it would know it by the address alone.
    """

    def __init__(self, allowed: AllowList, resolve: Resolver, inner: httpx.AsyncBaseTransport) -> None:
        self.allow_list = allowed
        self._resolve = resolve
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises UrlRefused besides what httpx raises."""
        asked = check_url(request.url, self.allow_list)
        addresses = await self._resolve_and_check(asked)
        for address in addresses[:-1]:
            try:
                return await self._inner.handle_async_request(_pin_to_address(request, asked, address))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue  # the next address of the same name
        return await self._inner.handle_async_request(_pin_to_address(request, asked, addresses[-1]))

    async def _resolve_and_check(self, asked: UrlTarget) -> list[Address]:
        """What the name stands for. One refused address refuses all: who mixes them has no good reason to."""
        spelled = parse_ip_literal(asked.host)
        if spelled is not None:
            return [spelled]  # `read` has judged it
        try:
            answers = await self._resolve(asked.host, asked.port)
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"{asked.host} cannot be resolved: {error}") from error
        found = [address for answer in answers if (address := parse_ip_literal(answer)) is not None]
        if not found:
            raise httpx.ConnectError(f"{asked.host} has no address")
        for address in found:
            what = None if asked.is_allow_listed else refusal_reason(address)
            if what is not None:
                raise UrlRefused(f"{asked.host} stands for {what}; outbound.allow in the edge's settings can open it")
        return found[:ADDRESS_LIMIT]

    async def aclose(self) -> None:
        """Close what carries the requests out."""
        await self._inner.aclose()


def _pin_to_address(request: httpx.Request, asked: UrlTarget, address: Address) -> httpx.Request:
    return httpx.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,  # with Host as httpx made it of the name
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": asked.host},
    )


def guarded_client(allowed: AllowList, resolver: Resolver = resolve_host) -> httpx.AsyncClient:
    """A client that goes through a Guard: no proxies or logins from the environment, no redirects by itself.

    It keeps no cookies: what one owner's server set would go out with another owner's request, and never be forgotten.
    """
    unbounded = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # who asks bounds what it asks
    inner = httpx.AsyncHTTPTransport(trust_env=False, limits=unbounded)
    return httpx.AsyncClient(
        transport=SsrfGuardTransport(allowed, resolver, inner),
        timeout=HTTP_TIMEOUT,
        trust_env=False,
        follow_redirects=False,
        headers={"User-Agent": "lamplighter", "Accept-Encoding": "identity"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


async def send_request(asked: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """The answer, its body not read yet. Raises UrlRefused, httpx.HTTPError and nothing else.

    httpx reads where a redirect leads although nobody follows it, and lets what idna says of such a name through.
    """
    try:
        return await asked.send(request, stream=True)
    except (httpx.InvalidURL, ValueError) as error:
        raise httpx.RemoteProtocolError(f"a redirect leads nowhere: {error}", request=request) from error
