"""The sources of files of volumes: any HTTP server, or the assets of one owner at the edge.

Every file is verified by its digest, so the server is not trusted. Its address may be private: endpoint.toml is written
by the operator of this host, and no client can change it. The SSRF guard of the edge is for URLs of clients.
"""

import errno
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx2
from anyio import to_thread

from runner.assets.client import AssetClient, ResumableFile, WrongDigest, open_resumable
from runner.assets.port import AssetError, AssetGone, EdgeUnavailable, NotHeld
from schemas.endpoint_parts import VOLUMES_OWNER, VolumeFile
from schemas.outbound_rules import bypass_proxies_for_loopback

HTTP_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)  # for one wait
REDIRECT_LIMIT = 5
PLAIN_FILE_HEADERS = {"Accept-Encoding": "identity"}
BLOCK_BYTES = 1 << 16  # what a cut connection loses at most
UNKNOWN_SIZE_STEP_BYTES = 64 << 20  # room for so much more is asked for while the server does not tell the size
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)", re.ASCII)


class FillFailure(StrEnum):
    """Reasons for which a file did not arrive."""

    NOT_FOUND = "not_found"
    REFUSED = "refused"
    WRONG_DIGEST = "wrong_digest"
    DISK_FULL = "disk_full"
    QUOTA = "quota"
    UNREACHABLE = "unreachable"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class FillFailed(Exception):
    """The file did not arrive. What arrived of it is kept for the next try, unless it is wrong."""

    def __init__(self, code: FillFailure, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


OnSize = Callable[[int], Awaitable[None]]


class VolumeSource(Protocol):
    """Source of the files of volumes."""

    async def download(self, file: VolumeFile, into: Path, on_size: OnSize) -> None:
        """Download the file to `into`, resuming at the bytes there; it is verified when this returns.

        `on_size` gets the size of the whole file as soon as it is known, and repeatedly a larger one while it is not.
        It may raise. Raises FillFailed, OSError (disk).
        """
        ...

    async def find_size(self, file: VolumeFile) -> int | None:
        """Return the size of the file, without downloading it; None if its server does not tell, or does not answer."""
        ...


def server_name(file: VolumeFile) -> str:
    """Return the name of the server, for messages. The rest of a URL may hold a token."""
    return (urlsplit(file.url).hostname or "") if file.url else "the edge"


class HttpVolumeSource:
    """Files by URL over `client`, and the others from the edge; `lamplighter try` has no `edge`."""

    def __init__(self, client: httpx2.AsyncClient, edge: AssetClient | None) -> None:
        self._client = client
        self._edge = edge

    async def download(self, file: VolumeFile, into: Path, on_size: OnSize) -> None:
        if file.url is None:
            return await self._download_asset(file, into, on_size)
        for _ in range(2):
            async with open_resumable(into) as download:
                was_resumed = download.size > 0
                await self._download_while_it_grows(file, file.url, download, on_size)
                digest = download.sha256
                if digest == file.sha256:
                    return None
            await to_thread.run_sync(into.unlink)
            if not was_resumed:
                break
        raise FillFailed(FillFailure.WRONG_DIGEST, f"it has the sha256 {digest[:12]}… and not {file.sha256[:12]}…")

    async def find_size(self, file: VolumeFile) -> int | None:
        if file.bytes is not None:
            return file.bytes
        try:
            if file.url is None:
                return (await self._edge.get_info(VOLUMES_OWNER, file.sha256)).bytes if self._edge else None
            answer = await self._client.head(file.url, headers=PLAIN_FILE_HEADERS)
        except (AssetError, httpx2.RequestError):
            return None  # the download says what is wrong
        length = answer.headers.get("content-length", "")
        is_plain = answer.headers.get("content-encoding", "identity") == "identity"
        return int(length) if answer.is_success and is_plain and length.isdecimal() else None

    async def _download_while_it_grows(
        self, file: VolumeFile, url: str, download: ResumableFile, on_size: OnSize
    ) -> None:
        """Request the rest again as long as each try brings the file further than any before. Raises FillFailed."""
        furthest = download.size
        while True:
            try:
                return await self._download_once(file, url, download, on_size)
            except httpx2.RequestError as error:
                if download.size <= furthest:
                    raise _fill_failed(error) from error
                furthest = download.size

    async def _download_once(self, file: VolumeFile, url: str, download: ResumableFile, on_size: OnSize) -> None:
        headers = {**PLAIN_FILE_HEADERS, **({"Range": f"bytes={download.size}-"} if download.size else {})}
        async with self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE:
                return  # nothing is left to request; the digest shows whether the file is right
            _raise_for_status(answer)
            total = await _begin(answer, download)
            if None not in (total, file.bytes) and total != file.bytes:
                raise FillFailed(FillFailure.WRONG_DIGEST, f"it has {total} bytes and not {file.bytes}")
            expected = total if total is not None else file.bytes
            await _receive(answer, download, expected, on_size)

    async def _download_asset(self, file: VolumeFile, into: Path, on_size: OnSize) -> None:
        if self._edge is None:
            raise FillFailed(FillFailure.NOT_FOUND, "there is no edge here: give a folder for the volume")
        try:
            await on_size((await self._edge.get_info(VOLUMES_OWNER, file.sha256)).bytes)
            await self._edge.download(VOLUMES_OWNER, file.sha256, into)
        except AssetError as error:
            code = next(code for kind, code in _ASSET_FAILURES.items() if isinstance(error, kind))
            raise FillFailed(code, str(error)) from error


_ASSET_FAILURES: Mapping[type[AssetError], FillFailure] = {
    WrongDigest: FillFailure.WRONG_DIGEST,
    AssetGone: FillFailure.NOT_FOUND,
    NotHeld: FillFailure.REFUSED,
    EdgeUnavailable: FillFailure.UNREACHABLE,
    AssetError: FillFailure.FAILED,
}
_STATUS_FAILURES: Mapping[int, FillFailure] = {
    401: FillFailure.REFUSED,
    403: FillFailure.REFUSED,
    404: FillFailure.NOT_FOUND,
    410: FillFailure.NOT_FOUND,
}


def _raise_for_status(answer: httpx2.Response) -> None:
    if not answer.is_success:
        code = _STATUS_FAILURES.get(answer.status_code, FillFailure.FAILED)
        raise FillFailed(code, f"it answered {answer.status_code}")
    coding = answer.headers.get("content-encoding", "identity").strip().lower()
    if coding not in {"identity", ""}:
        raise FillFailed(FillFailure.FAILED, f"it sent {coding[:40]} although the plain file was requested")


async def _begin(answer: httpx2.Response, download: ResumableFile) -> int | None:
    """Prepare the file for the body that follows; return the size of the whole file, None if it is not known."""
    if answer.status_code == httpx2.codes.PARTIAL_CONTENT:
        found = _CONTENT_RANGE.match(answer.headers.get("content-range", ""))
        if found is None or int(found[1]) != download.size:
            await to_thread.run_sync(download.restart)
            raise FillFailed(FillFailure.INTERRUPTED, "it sent another part of the file than was requested")
        return None if found[2] == "*" else int(found[2])
    await to_thread.run_sync(download.restart)
    length = answer.headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


async def _receive(answer: httpx2.Response, download: ResumableFile, expected: int | None, on_size: OnSize) -> None:
    """Append the body. Raises FillFailed if it is not as long as the file."""
    room = UNKNOWN_SIZE_STEP_BYTES if expected is None else expected
    await on_size(room)
    async for block in answer.aiter_raw(BLOCK_BYTES):
        if expected is None and download.size + len(block) > room:
            room = download.size + len(block) + UNKNOWN_SIZE_STEP_BYTES
            await on_size(room)
        if expected is not None and download.size + len(block) > expected:
            await to_thread.run_sync(download.restart)
            raise FillFailed(FillFailure.WRONG_DIGEST, f"it has more than {expected} bytes")
        await to_thread.run_sync(download.write, block)
    if expected is not None and download.size < expected:
        raise FillFailed(FillFailure.INTERRUPTED, f"it ended after {download.size} of {expected} bytes")


def _fill_failed(error: httpx2.RequestError) -> FillFailed:
    text = f"{type(error).__name__} {error}".strip()[:200]
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        return FillFailed(FillFailure.UNREACHABLE, text)
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.TooManyRedirects):
        return FillFailed(FillFailure.FAILED, text)
    return FillFailed(FillFailure.INTERRUPTED, text)


def disk_failure(error: OSError) -> FillFailed:
    """Return the failure for an error of the disk."""
    is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return FillFailed(FillFailure.DISK_FULL if is_full else FillFailure.FAILED, error.strerror or str(error))


@asynccontextmanager
async def open_volume_source(edge: AssetClient | None) -> AsyncIterator[HttpVolumeSource]:
    """Yield the real source. Proxies of the environment are used, as for the edge."""
    async with httpx2.AsyncClient(
        timeout=HTTP_TIMEOUT,
        follow_redirects=True,
        max_redirects=REDIRECT_LIMIT,
        mounts=bypass_proxies_for_loopback(),
    ) as client:
        yield HttpVolumeSource(client, edge)
