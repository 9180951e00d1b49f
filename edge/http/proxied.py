"""ASGI middleware for requests that came through a reverse proxy: whose they are, and that they are not local."""

from collections import Counter
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send

from edge.core.client_throttle import ThrottledClientLog, client_network
from edge.core.trusted_proxies import TrustedProxies, read_hops, shows_proxy
from edge.http.middleware import send_problem
from schemas.environment import is_loopback
from schemas.problems import ProblemError

RETRY_AFTER_S = 10
_PROXIED_SCOPE_KEY = "lamplighter.proxied"
_WEBSOCKET_SCHEMES = {"http": "ws", "https": "wss"}


def is_proxied(scope: Any) -> bool:
    """Return whether the request came from a trusted proxy, or has a header that only proxies write."""
    return bool(cast("dict[str, Any]", scope).get(_PROXIED_SCOPE_KEY))


class ProxiedRequests:
    """Puts the client of a request in place of the trusted proxy that passed it on, and the scheme that it used.

    A proxy opens few connections for many clients, so the limit of connections per address counts the open requests
    of each client here: at most `requests_per_client` of `proxies`. What proxies that are not trusted write is ignored.
    """

    def __init__(self, app: ASGIApp, proxies: TrustedProxies, client_events: ThrottledClientLog) -> None:
        self._app, self._proxies, self._client_events = app, proxies, client_events
        self._open: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        peer = scope["client"][0] if scope.get("client") else ""
        is_trusted, has_header = peer in self._proxies, shows_proxy(scope["headers"])
        scope[_PROXIED_SCOPE_KEY] = is_trusted or has_header
        if not is_trusted:
            if has_header and is_loopback(peer):
                fix = "add its address to server.trusted_proxies if it is your reverse proxy"
                self._client_events.log("proxy_not_trusted", peer, fix=fix)
            await self._app(scope, receive, send)
            return
        client = self._proxies.find_client(peer, read_hops(scope["headers"]))
        scope["client"] = (client.address, 0)
        if client.scheme:
            scope["scheme"] = client.scheme if scope["type"] == "http" else _WEBSOCKET_SCHEMES[client.scheme]
        await self._run_counted(client.address, scope, receive, send)

    async def _run_counted(self, address: str, scope: Scope, receive: Receive, send: Send) -> None:
        if self._proxies.is_shared(address):  # the proxy named no client
            await self._app(scope, receive, send)
            return
        client = client_network(address)
        if self._open[client] >= self._proxies.requests_per_client:
            detail = f"{client} has {self._proxies.requests_per_client} open requests, which is the limit: let some end"
            error = ProblemError("too_many_connections", detail, retry_after_s=RETRY_AFTER_S)
            self._client_events.log("request_refused", address, code=error.code)
            await send_problem(error, scope, send)
            return
        self._open[client] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]
