"""An edge as the runner's asset client sees it: real HTTP over a real store, with faults on demand."""

import hashlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send

from edge.http.responses import asset_response
from edge.store.port import AssetStore, AssetTooLarge, DigestMismatch
from schemas.asset import Digest

KEY = "lamp_host_secret"
LIMIT = 64 << 20


class AssetServer:
    """`cuts`: after how many bytes each of the next answers is interrupted. `status`: the answer to every request."""

    def __init__(self, store: AssetStore) -> None:
        self.store = store
        self.cuts: list[int] = []
        self.status = 0
        self.lies: list[bytes] = []
        self.asked: list[tuple[str, str, str | None]] = []  # method, owner, Range
        self.names: dict[Digest, str] = {}

    async def add(self, body: bytes) -> Digest:
        async def chunks() -> AsyncIterator[bytes]:
            yield body

        return (await self.store.write(chunks(), None, LIMIT)).sha256

    def gets(self) -> list[str | None]:
        """Return the Range of each GET so far."""
        return [asked for method, _, asked in self.asked if method == "GET"]

    def app(self) -> Starlette:
        async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive)
            self.asked.append((request.method, request.query_params["owner"], request.headers.get("range")))
            limit = self.cuts.pop(0) if self.cuts and request.method == "GET" else None
            response = await self._answer(request)
            await response(scope, receive, send if limit is None else cut_body(send, limit))

        async def live(_: Request) -> Response:
            return Response()

        return Starlette(routes=[Mount("/v1/assets", app=dispatch), Route("/livez", live)])

    async def _answer(self, request: Request) -> Response:
        if self.status or request.headers["authorization"] != f"Bearer {KEY}":
            return Response(status_code=self.status or 401)
        sha256 = request.url.path[-64:]
        if request.method == "PUT":
            return await self._take(request, sha256)
        if self.lies and request.method == "GET":
            return Response(self.lies.pop(0))
        found = await asset_response(self.store, sha256, "a.mp4", "video/mp4", request.scope)
        return found or Response("no such asset", 404)

    async def _take(self, request: Request, sha256: Digest) -> Response:
        try:
            await self.store.write(request.stream(), sha256, LIMIT)
        except (DigestMismatch, AssetTooLarge) as error:
            return Response(status_code=413 if isinstance(error, AssetTooLarge) else 422)
        self.names[sha256] = request.query_params["name"]
        return Response(status_code=201)


def cut_body(send: Send, limit: int) -> Send:
    """Close the connection after `limit` bytes of body."""
    left = limit

    async def cutting(message: Message) -> None:
        nonlocal left
        body = message.get("body", b"")
        if isinstance(body, bytes) and len(body) > left:
            await send({"type": "http.response.body", "body": body[:left], "more_body": True})
            raise ConnectionAbortedError("cut by the test")
        left -= len(body) if isinstance(body, bytes) else 0
        await send(message)

    return cutting


def sha256_of(body: bytes) -> Digest:
    return hashlib.sha256(body).hexdigest()
