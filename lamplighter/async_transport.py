"""HTTP calls, uploads and downloads of the awaiting client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self, TypeVar

import anyio
import anyio.to_thread
import httpx2

from lamplighter import api
from lamplighter.digest_cache import CHUNK_BYTES, ByteProgress, DigestCache, JsonCache, ignore_progress
from lamplighter.errors import Unreachable
from lamplighter.transport import (
    DIGEST_CACHE_FILE,
    HTTP_TIMEOUT,
    UPLOAD_CACHE_NAME,
    auth_headers,
    language_headers,
    map_http_errors,
    replace_on_success,
    unreachable,
)
from lamplighter.trust import make_ssl_context
from lamplighter.upload import UploadPlan, UploadProgress, resume_key
from schemas.asset import DIGEST_SCHEME
from schemas.environment import bypass_proxies_for_loopback
from schemas.job_view import JobView

T = TypeVar("T")


@asynccontextmanager
async def map_http_errors_async(url: str) -> AsyncIterator[None]:
    """Do what `map_http_errors` does, without blocking the event loop."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise await anyio.to_thread.run_sync(unreachable, url, error) from error


async def _read_chunks(path: Path, start: int, advance: ByteProgress) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        await file.seek(start)
        while chunk := await file.read(CHUNK_BYTES):
            yield chunk
            advance(len(chunk))


class AsyncEdgeTransport:
    """A connection to one edge: calls, uploads and downloads."""

    def __init__(  # noqa: PLR0913 - as in EdgeTransport
        self,
        url: str,
        key: str | None = None,
        *,
        cache: Path = DIGEST_CACHE_FILE,
        ca: str | None = None,
        pin: str | None = None,
        language: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._digest_cache = DigestCache(cache.expanduser())
        self._upload_cache = JsonCache(cache.expanduser().with_name(UPLOAD_CACHE_NAME))
        with map_http_errors(self.url):
            self._http = httpx2.AsyncClient(
                base_url=self.url,
                headers=auth_headers(key) | language_headers(language),
                timeout=HTTP_TIMEOUT,
                transport=transport,
                verify=make_ssl_context(self.url, ca, pin) or True,
                mounts=bypass_proxies_for_loopback(self.url),
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

    async def call(self, call: api.ApiRequest[T]) -> T:
        """Send one request of `lamplighter.api`, for routes without a method here.

        >>> (await client.call(api.get_json("/v1/endpoints/echo")))["name"]
        'echo'
        """
        async with map_http_errors_async(self.url):
            reply = await self._http.request(
                call.method, call.path, params=list(call.params), json=call.body, headers=call.headers
            )
        return api.parse_response(call, reply.status_code, reply.content)

    async def upload(self, path: str | Path, advance: ByteProgress = ignore_progress) -> api.Asset:
        """Do what `Client.upload` does; the file is hashed in a thread.

        >>> (await client.upload("hello.txt")).bytes
        6
        """
        file = Path(path)
        sha256 = await anyio.to_thread.run_sync(self._digest_cache.digest, file)
        size = (await anyio.Path(file).stat()).st_size
        if (await self.call(api.check_assets([DIGEST_SCHEME + sha256]))).present:
            advance(size)
            return api.known_asset(sha256, file.name, size)
        cache_key = resume_key(self.url, sha256)
        plan = UploadPlan(file.name, sha256, size, await anyio.to_thread.run_sync(self._upload_cache.get, cache_key))
        progress = UploadProgress(advance)
        while plan.asset is None:
            await self._send_next(plan, file, progress)
            if plan.is_resumable and plan.upload_path:
                await anyio.to_thread.run_sync(self._upload_cache.put, cache_key, plan.upload_path)
            await anyio.sleep(plan.delay_s)
        await anyio.to_thread.run_sync(self._upload_cache.drop, cache_key)
        return plan.asset

    async def _send_next(self, plan: UploadPlan, file: Path, progress: UploadProgress) -> None:
        request = plan.next_request()
        body = None if request.start is None else _read_chunks(file, request.start, progress.start_at(request.start))
        try:
            async with map_http_errors_async(self.url):
                reply = await self._http.request(request.method, request.path, headers=request.headers, content=body)
        except Unreachable as error:
            plan.on_connection_error(error)
        else:
            plan.on_response(reply.status_code, reply.headers, reply.content)

    async def download(self, job: JobView, name: str, to: str | Path, advance: ByteProgress = ignore_progress) -> Path:
        """Do what `Client.download` does.

        >>> job = await client.submit("echo", file="hello.txt", wait=True)
        >>> saved = await client.download(job, job.output.files[0].name, "copy.txt")
        >>> saved.name
        'copy.txt'
        """
        target = Path(to)
        async with (
            map_http_errors_async(self.url),
            self._http.stream("GET", api.job_path(job.id, "files", name)) as reply,
        ):
            if reply.status_code >= 400:
                raise api.error_from_response(reply.status_code, await reply.aread())
            with replace_on_success(target) as part:
                async with await anyio.open_file(part, "wb") as file:
                    async for chunk in reply.aiter_bytes(CHUNK_BYTES):
                        await file.write(chunk)
                        advance(len(chunk))
        return target
