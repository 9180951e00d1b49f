"""What goes over an awaiting connection: calls, and files up and down."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self, TypeVar

import anyio
import anyio.to_thread
import httpx

from lamplighter import wire
from lamplighter.digests import DigestCache
from lamplighter.errors import Unreachable
from lamplighter.notes import Notes
from lamplighter.sending import Sending, Sent, note_of
from lamplighter.shared import CACHE, PIECE, TIMEOUT, UPLOADS, Advance, key_headers, reachable, silent, whole
from schemas.asset import SCHEME
from schemas.loopback import past_proxies
from schemas.view import JobView

T = TypeVar("T")


async def _pieces(path: Path, start: int, advance: Advance) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        await file.seek(start)
        while piece := await file.read(PIECE):
            yield piece
            advance(len(piece))


class AsyncConnection:
    """A connection to one edge, and the files that go over it."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        cache: Path = CACHE,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._digests = DigestCache(cache.expanduser())
        self._uploads = Notes(cache.expanduser().with_name(UPLOADS))
        with reachable(self.url):
            self._http = httpx.AsyncClient(
                base_url=self.url,
                headers=key_headers(key),
                timeout=TIMEOUT,
                transport=transport,
                mounts=past_proxies(self.url),
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection.

        >>> other = AsyncClient(url, key)
        >>> await other.close()
        """
        await self._http.aclose()

    async def call(self, call: wire.Call[T]) -> T:
        """Send one request of `lamplighter.wire`, for what has no method here.

        >>> (await client.call(wire.fetch("/v1/endpoints/echo")))["name"]
        'echo'
        """
        with reachable(self.url):
            reply = await self._http.request(
                call.method, call.path, params=list(call.params), json=call.body, headers=call.headers
            )
        return wire.answered(call, reply.status_code, reply.content)

    async def upload(self, path: str | Path, advance: Advance = silent) -> wire.Asset:
        """As `Client.upload`; hashing is done in a thread.

        >>> (await client.upload("hello.txt")).bytes
        6
        """
        file = Path(path)
        sha256 = await anyio.to_thread.run_sync(self._digests.digest, file)
        size = (await anyio.Path(file).stat()).st_size
        if (await self.call(wire.check([SCHEME + sha256]))).present:
            advance(size)
            return wire.already(sha256, file.name, size)
        note = note_of(self.url, sha256)
        sending = Sending(file.name, sha256, size, await anyio.to_thread.run_sync(self._uploads.get, note))
        sent = Sent(advance)
        while sending.asset is None:
            await self._send(sending, file, sent)
            if sending.resumable and sending.place:
                await anyio.to_thread.run_sync(self._uploads.put, note, sending.place)
            await anyio.sleep(sending.pause_s)
        await anyio.to_thread.run_sync(self._uploads.drop, note)
        return sending.asset

    async def _send(self, sending: Sending, file: Path, sent: Sent) -> None:
        request = sending.next()
        body = None if request.start is None else _pieces(file, request.start, sent.from_(request.start))
        try:
            with reachable(self.url):
                reply = await self._http.request(request.method, request.path, headers=request.headers, content=body)
        except Unreachable as error:
            sending.cut(error)
        else:
            sending.answered(reply.status_code, reply.headers, reply.content)

    async def download(self, job: JobView, name: str, to: str | Path, advance: Advance = silent) -> Path:
        """As `Client.download`.

        >>> job = await client.submit("echo", file="hello.txt", wait=True)
        >>> saved = await client.download(job, job.output.files[0].name, "copy.txt")
        >>> saved.name
        'copy.txt'
        """
        target = Path(to)
        with reachable(self.url):
            async with self._http.stream("GET", wire.job_path(job.id, "files", name)) as reply:
                if reply.status_code >= 400:
                    raise wire.refusal(reply.status_code, await reply.aread())
                with whole(target) as part:
                    async with await anyio.open_file(part, "wb") as file:
                        async for piece in reply.aiter_bytes(PIECE):
                            await file.write(piece)
                            advance(len(piece))
        return target
