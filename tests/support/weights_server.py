"""An HTTP server of weights that cuts, lies, refuses, has no ranges, or holds its answers back; and the fake of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from runner.assets.volume_source import FillFailed, FillFailure, OnSize
from schemas.endpoint_parts import Volume, VolumeFile
from tests.support.asset_server import cut_body, sha256_of
from tests.support.http_server import serve_app


class WeightsServer:
    """`files` by path. `cuts`: after how many bytes each of the next answers is interrupted. `status`: every answer.

    `requests`: path and Range of each request so far. `holds_at`: each body stops after so many bytes until `release`.
    """

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.status = 0
        self.has_ranges = True
        self.tells_size = True
        self.coding = ""
        self.holds_at: int | None = None
        self.release = asyncio.Event()
        self.requests: list[tuple[str, str | None]] = []

    def volume(self, name: str = "weights", **bodies: bytes) -> Volume:
        """Serve these files, and return the volume that has them."""
        self.files |= {f"/{path}": body for path, body in bodies.items()}
        files = (VolumeFile(path=path, url=f"{self.url}/{path}", sha256=sha256_of(it)) for path, it in bodies.items())
        return Volume(name=name, path=f"/{name}", files=tuple(files))

    def app(self) -> ASGIApp:
        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive)
            self.requests.append((request.url.path, request.headers.get("range")))
            limit = self.cuts.pop(0) if self.cuts else None
            response = self._answer(request)
            await response(scope, receive, send if limit is None else cut_body(send, limit))

        return serve

    def _answer(self, request: Request) -> Response:
        body = self.files.get(request.url.path)
        if self.status or body is None:
            return Response(status_code=self.status or 404)
        headers = {"content-encoding": self.coding} if self.coding else {}
        asked, status, whole = request.headers.get("range"), 200, len(body)
        if asked and self.has_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= whole:
                return Response(status_code=416)
            body, status = body[start:], 206
            headers["content-range"] = f"bytes {start}-{whole - 1}/{whole}"
        if self.tells_size:
            headers["content-length"] = str(len(body))
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        return StreamingResponse(self._pieces(body), status, headers)

    async def _pieces(self, body: bytes) -> AsyncIterator[bytes]:
        if self.holds_at is not None:
            yield body[: self.holds_at]
            await self.release.wait()
            body = body[self.holds_at :]
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]


@asynccontextmanager
async def serve_weights() -> AsyncIterator[WeightsServer]:
    """Serve on loopback."""
    server = WeightsServer()
    async with serve_app(server.app()) as server.url:
        yield server


class FakeVolumeSource:
    """The fake of `runner.assets.volume_source.VolumeSource`: files by digest, and failures on demand.

    `fault`: every download raises it. `hold`: a download stops half-way until it is set.
    """

    def __init__(self, *bodies: bytes) -> None:
        self.bodies = {sha256_of(body): body for body in bodies}
        self.downloads: list[str] = []  # paths
        self.fault: FillFailed | None = None
        self.hold: anyio.Event | None = None

    async def download(self, file: VolumeFile, into: Path, on_size: OnSize) -> None:
        self.downloads.append(file.path)
        if self.fault is not None:
            raise self.fault
        body = self.bodies.get(file.sha256)
        if body is None:
            raise FillFailed(FillFailure.NOT_FOUND, "it answered 404: the test said so")
        if file.bytes not in {None, len(body)}:
            raise FillFailed(FillFailure.WRONG_DIGEST, f"it has {len(body)} bytes and not {file.bytes}")
        await on_size(len(body))
        await anyio.Path(into).write_bytes(body[: len(body) // 2])
        if self.hold is not None:
            await self.hold.wait()
        await anyio.Path(into).write_bytes(body)

    async def find_size(self, file: VolumeFile) -> int | None:
        body = self.bodies.get(file.sha256)
        return None if body is None or self.fault is not None else len(body)
