"""HTTP client of the edge's asset routes: downloads that resume after an interruption, uploads that are durable.

A download grows in a file (`ResumableFile`), from which the next try goes on.
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

import httpx2
import msgspec
from anyio import AsyncFile, CancelScope, to_thread, wrap_file
from msgspec import Struct

from runner.assets.cache import BLOCK_BYTES, InputCache
from runner.assets.port import (
    AssetError,
    AssetGone,
    AssetInfo,
    AssetTransfer,
    EdgeUnavailable,
    NotHeld,
    NotPlainFile,
    SecretMissing,
    SecretsUnavailable,
)
from schemas.asset import Digest, guess_media_type
from schemas.certificates import parse_pins, pinned_context
from schemas.endpoint_parts import JobSecrets
from schemas.job import OutputFile
from schemas.lifecycle import SECRET_MISSING_CODE
from schemas.outbound_rules import bypass_proxies_for_loopback


class ResumableFile:
    """A file that grows, and the hash of what it holds. Blocking."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b", buffering=0)
        self._file.seek(0)
        self._hash = hashlib.file_digest(self._file, "sha256")
        self.size = self._file.tell()

    @property
    def sha256(self) -> Digest:
        """Return the digest of the bytes received so far."""
        return self._hash.hexdigest()

    def restart(self) -> None:
        """Discard the bytes: the server sends the whole file again."""
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, block: bytes) -> None:
        """Append a block to the file and to the hash."""
        rest = memoryview(block)
        while rest:
            rest = rest[os.write(self._file.fileno(), rest) :]
        self._hash.update(block)
        self.size += len(block)

    def close(self) -> None:
        """Close the file; its bytes stay for a later resume."""
        self._file.close()


@asynccontextmanager
async def open_resumable(path: Path) -> AsyncIterator[ResumableFile]:
    download = await to_thread.run_sync(ResumableFile, path)
    try:
        yield download
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(download.close)


# RFC 6266: filename="a.mp4" or filename*=utf-8''a.mp4, percent-encoded.
_SUFFIX = re.compile(r"""filename\*?=[^;]*(\.[A-Za-z0-9]{1,8})"?\s*(?:;|\Z)""", re.ASCII)


HASH_STEP_BYTES = 32 * BLOCK_BYTES  # per thread call: about 20 ms, after which a cancellation takes effect
# A file up to this size is uploaded without asking for the edge's limit: the edge refuses it at once.
UNCHECKED_UPLOAD_LIMIT_BYTES = 32 * BLOCK_BYTES


# Errors of open(2) for a link, a socket, and a name that is gone or not readable any more.
_THE_FILE_S = frozenset({errno.ELOOP, errno.ENXIO, errno.ENOENT, errno.ENOTDIR, errno.EACCES})


class WrongDigest(AssetGone):
    """The edge sent bytes that do not match the digest, twice: they are damaged there."""


class AssetRefused(AssetError):
    """The edge will never accept this file, for example because it is too large."""


# Every other status means: retry. 401 too: the job goes on once the key is corrected.
_ERROR_BY_STATUS: dict[int, type[AssetError]] = {
    400: AssetRefused,
    403: NotHeld,
    404: AssetGone,
    410: AssetGone,
    413: AssetRefused,
}


class AssetClient:
    """Transfers assets over HTTP on behalf of an owner. `asset_client` creates it."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    async def is_alive(self) -> bool:
        """Return whether the edge answers."""
        try:
            return (await self._client.get("/livez")).is_success
        except httpx2.HTTPError:
            return False

    async def get_info(self, owner: str, sha256: Digest) -> AssetInfo:
        """Return the properties of the asset. Raises AssetGone, EdgeUnavailable."""
        with _map_http_errors():
            answer = await self._client.head(_asset_path(sha256), params={"owner": owner})
            await _raise_for_status(answer)
        return AssetInfo(
            int(answer.headers["content-length"]), filename_suffix(answer.headers.get("content-disposition", ""))
        )

    async def is_key_valid(self) -> bool:
        """Return whether our key is valid; that of a removed host is not. Raises EdgeUnavailable."""
        with _map_http_errors():
            return (await self._client.post("/v1/assets/check", json={"digests": []})).status_code != 401

    async def leave(self, host: str) -> None:
        """Have the edge remove `host`, to which our key belongs. Raises AssetError."""
        with _map_http_errors():
            answer = await self._client.post(f"/v1/hosts/{host}/leave")
            if answer.status_code != 401:  # 401: it is removed already
                await _raise_for_status(answer)

    async def download(self, owner: str, sha256: Digest, into: Path) -> None:
        """Download the asset to `into`; bytes that are there already are not requested again.

        An interrupted download resumes as long as every try brings bytes. Then EdgeUnavailable is raised, and the bytes
        are kept for the next call. Bytes that do not match the digest are downloaded once more from the start, then
        WrongDigest is raised.
        """
        for _ in range(2):
            async with open_resumable(into) as download:
                await self._download_rest(owner, sha256, download)
                if download.sha256 == sha256:
                    return
            await to_thread.run_sync(into.unlink)
        raise WrongDigest(f"asset {sha256[:12]} is damaged at the edge: delete it there and upload it again")

    async def upload(self, owner: str, path: Path, name: str) -> OutputFile:
        """Upload the file as an asset of `owner`; it is durable when this returns.

        Raises EdgeUnavailable, AssetRefused, NotPlainFile. The size is compared with the edge's limit before the file
        is hashed, and the hashing can be cancelled: a job chooses both. The file is opened once, so the bytes sent are
        the bytes hashed.
        """
        async with wrap_file(await to_thread.run_sync(_open_plain, path)) as file:
            size = os.fstat(file.wrapped.fileno()).st_size
            if size > UNCHECKED_UPLOAD_LIMIT_BYTES:
                await self._check_size_limit(name, size)
            sha256 = await _hash_file(file)
            media_type = guess_media_type(name)
            await file.seek(0)
            with _map_http_errors():
                answer = await self._client.put(
                    _asset_path(sha256),
                    params={"owner": owner, "name": name},
                    headers={"Content-Length": str(size), "Content-Type": media_type},
                    content=_read_blocks(file),
                )
                await _raise_for_status(answer)
        return OutputFile(name=name, sha256=sha256, bytes=size, media_type=media_type)

    async def fetch_secrets(self, owner: str, job_id: str) -> Mapping[str, str]:
        """Return the secrets of a job that this host runs. Raises SecretMissing, EdgeUnavailable."""
        with _map_http_errors():
            answer = await self._client.post(f"/v1/jobs/{job_id}/secrets", params={"owner": owner})
        if answer.is_success:
            try:
                return msgspec.json.decode(answer.content, type=JobSecrets).secrets
            except msgspec.MsgspecError:  # its text may quote the body
                raise SecretsUnavailable("the edge's answer holds no secrets: is it of another release?") from None
        problem = _read_problem(answer)
        if problem.code == SECRET_MISSING_CODE:
            raise SecretMissing(problem.detail)
        raise SecretsUnavailable(f"the edge answered {answer.status_code} for the job's secrets: {problem.detail}")

    async def _check_size_limit(self, name: str, size: int) -> None:
        """Raise AssetRefused if the edge accepts no file of this size. It publishes its limit for tus uploads."""
        with _map_http_errors():
            answer = await self._client.options("/v1/uploads")
        limit = answer.headers.get("Tus-Max-Size", "")
        if answer.is_success and limit.isdecimal() and size > int(limit):
            raise AssetRefused(f"{name} has {size} bytes, the edge takes {limit}: write smaller files")

    async def _download_rest(self, owner: str, sha256: Digest, download: ResumableFile) -> None:
        while True:
            before = download.size
            try:
                return await self._download_once(owner, sha256, download)
            except httpx2.RequestError as error:
                if download.size == before:
                    raise _edge_unavailable(error) from error

    async def _download_once(self, owner: str, sha256: Digest, download: ResumableFile) -> None:
        headers = {"Accept-Encoding": "identity"}
        if download.size:
            # No If-Range: the bytes of a digest never change, and a bucket that the edge redirects to has its own tags.
            headers |= {"Range": f"bytes={download.size}-"}
        async with self._client.stream("GET", _asset_path(sha256), params={"owner": owner}, headers=headers) as answer:
            if answer.status_code == 416:
                return  # nothing is left to request; the digest shows whether the file is right
            await _raise_for_status(answer)
            if answer.status_code != 206:
                await to_thread.run_sync(download.restart)
            async for block in answer.aiter_bytes(BLOCK_BYTES):
                await to_thread.run_sync(download.write, block)


@asynccontextmanager
async def asset_client(
    url: str, key: str, timeout_s: float = 30.0, pin: str | None = None
) -> AsyncIterator[AssetClient]:
    """Yield a client of the edge at `url` with the API key `key` (scope runner).

    `timeout_s` of silence interrupts a transfer. `pin`: see `schemas.certificates.parse_pins`, which
    raises PinInvalid. Redirects are not followed then: they lead to another server.
    """
    headers = {"Authorization": f"Bearer {key}"}
    verify = pinned_context(await to_thread.run_sync(parse_pins, pin)) if pin else True
    async with httpx2.AsyncClient(
        base_url=url,
        headers=headers,
        timeout=timeout_s,
        follow_redirects=pin is None,
        verify=verify,
        mounts=bypass_proxies_for_loopback(url),
    ) as client:
        yield AssetClient(client)


class _SecretProblem(Struct):
    """The part of a problem document that decides whether the job waits."""

    code: str = ""
    detail: str = ""


def _read_problem(answer: httpx2.Response) -> _SecretProblem:
    try:
        return msgspec.json.decode(answer.content, type=_SecretProblem)
    except msgspec.MsgspecError:
        return _SecretProblem(detail=answer.reason_phrase)


def filename_suffix(disposition: str) -> str:
    """Return the file name's ending from a Content-Disposition, if it is safe.

    Nothing else of a name that a client chose becomes part of a path here.
    """
    found = _SUFFIX.search(disposition)
    return found[1] if found else ""


def _asset_path(sha256: Digest) -> str:
    return f"/v1/assets/{sha256}"


def _open_plain(path: Path) -> IO[bytes]:
    """Open a regular file, not a link to one. Raises NotPlainFile; OSError for a problem that is not the file's."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in _THE_FILE_S:
            raise
        raise NotPlainFile(f"{path.name} cannot be read as a plain file: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise NotPlainFile(f"{path.name} is not a regular file: write plain files into out/")
    return os.fdopen(opened, "rb", buffering=0)


async def _hash_file(file: AsyncFile[bytes]) -> Digest:
    """Return the sha256 of the file's bytes."""
    hasher = hashlib.sha256()
    while await to_thread.run_sync(_hash_part, file.wrapped, hasher):
        pass
    return hasher.hexdigest()


def _hash_part(file: IO[bytes], hasher: "hashlib._Hash") -> bool:
    """Hash the next part of the file; return whether there was any."""
    end = file.tell() + HASH_STEP_BYTES
    while (left := end - file.tell()) > 0 and (block := file.read(min(left, BLOCK_BYTES))):
        hasher.update(block)
    return left <= 0


async def _read_blocks(file: AsyncFile[bytes]) -> AsyncIterator[bytes]:
    while block := await file.read(BLOCK_BYTES):
        yield block


async def _raise_for_status(answer: httpx2.Response) -> None:
    if answer.is_success:
        return
    await answer.aread()
    error_type = _ERROR_BY_STATUS.get(answer.status_code, EdgeUnavailable)
    said = answer.text[:200] or answer.reason_phrase  # the answer to HEAD has no text
    raise error_type(f"the edge answered {answer.status_code} for {answer.request.url.path}: {said}")


@contextmanager
def _map_http_errors() -> Iterator[None]:
    """Translate errors of httpx2 to EdgeUnavailable, also for a redirect that no upload can follow."""
    try:
        yield
    except (httpx2.RequestError, httpx2.StreamError) as error:
        raise _edge_unavailable(error) from error


def _edge_unavailable(error: httpx2.RequestError | httpx2.StreamError) -> EdgeUnavailable:
    return EdgeUnavailable(
        f"the edge is not reachable ({type(error).__name__} {error}): check its address and the network"
    )


class EdgeAssetTransfer(AssetTransfer):
    """The real AssetTransfer: inputs through the cache, outputs straight to the edge."""

    def __init__(self, cache: InputCache, client: AssetClient) -> None:
        self._cache = cache
        self._client = client

    async def prefetch(self, owner: str, sha256: Digest) -> None:
        await self._cache.prefetch(owner, sha256)

    async def stage(self, owner: str, sha256: Digest, to: Path) -> None:
        await self._cache.stage(owner, sha256, to)

    async def filename_suffix(self, owner: str, sha256: Digest) -> str:
        return await self._cache.filename_suffix(owner, sha256)

    async def upload(self, owner: str, path: Path, name: str) -> OutputFile:
        return await self._client.upload(owner, path, name)

    async def fetch_secrets(self, owner: str, job_id: str) -> Mapping[str, str]:
        return await self._client.fetch_secrets(owner, job_id)
