"""The SSRF guard: a transport that resolves once, checks all addresses, and connects to a checked address."""

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy

import anyio
import httpx2

from edge.outbound.url_policy import AllowList, UrlRefused, UrlTarget, check_url
from schemas.addresses import Address, parse_ip_literal, refusal_reason

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
