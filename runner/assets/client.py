"""The edge's asset routes as the runner uses them: downloads that go on after a cut, uploads that are durable."""

import errno
import hashlib
import os
import re
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

import httpx
from anyio import AsyncFile, CancelScope, to_thread, wrap_file

from bus.tls_pinning import create_pinned_ssl_context
from runner.assets.cache import BLOCK_BYTES, InputCache
from runner.assets.port import AssetError, AssetGone, AssetInfo, AssetTransfer, EdgeUnavailable, NotHeld, NotPlainFile
from schemas.asset import Digest, guess_media_type
from schemas.environment import bypass_proxies_for_loopback
from schemas.job import OutputFile

# RFC 6266: filename="a.mp4" or filename*=utf-8''a.mp4, percent-encoded.
_SUFFIX = re.compile(r"""filename\*?=[^;]*(\.[A-Za-z0-9]{1,8})"?\s*(?:;|\Z)""", re.ASCII)


HASH_STEP_BYTES = 32 * BLOCK_BYTES  # in one thread call: some 20 ms, after which a cancellation is noticed
UNCHECKED_UPLOAD_LIMIT_BYTES = (
    32 * BLOCK_BYTES
)  # a file up to this size is hashed and sent without asking: the edge refuses it at once


# What open(2) says of a link, a socket, and a name that is gone or not readable any more.
_THE_FILE_S = frozenset({errno.ELOOP, errno.ENXIO, errno.ENOENT, errno.ENOTDIR, errno.EACCES})


class WrongDigest(AssetGone):
    """What the edge sent, twice, is not what its name says: the bytes there are damaged."""


class AssetRefused(AssetError):
    """The edge will not take this file, now or later (too large, say)."""


# Every other answer means: later. 401 too: a key that is mended lets the job go on.
_ERROR_BY_STATUS: dict[int, type[AssetError]] = {
    400: AssetRefused,
    403: NotHeld,
    404: AssetGone,
    410: AssetGone,
    413: AssetRefused,
}


class AssetClient:
    """Get and put over HTTP in an owner's name. Made by `asset_client`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def is_alive(self) -> bool:
        """Whether the edge gives a sign of life."""
        try:
            return (await self._client.get("/livez")).is_success
        except httpx.HTTPError:
            return False

    async def get_info(self, owner: str, sha256: Digest) -> AssetInfo:
        """What the asset is. Raises AssetGone, EdgeAway."""
        with _map_http_errors():
            answer = await self._client.head(_asset_path(sha256), params={"owner": owner})
            await _raise_for_status(answer)
        return AssetInfo(
            int(answer.headers["content-length"]), filename_suffix(answer.headers.get("content-disposition", ""))
        )

    async def is_key_valid(self) -> bool:
        """Whether our key is one: a host that was removed has none any more. Raises EdgeAway."""
        with _map_http_errors():
            return (await self._client.post("/v1/assets/check", json={"digests": []})).status_code != 401

    async def download(self, owner: str, sha256: Digest, into: Path) -> None:
        """Bring the asset to `into`; what is there already is not asked for again.

        After a cut it goes on by itself as long as every try brings bytes; then EdgeAway, and what came is kept for
        the next call. Bytes that do not make the digest are fetched once more from the start, then WrongDigest.
        """
        for _ in range(2):
            async with _open_download(into) as download:
                await self._download_rest(owner, sha256, download)
                if download.sha256 == sha256:
                    return
            await to_thread.run_sync(into.unlink)
        raise WrongDigest(f"asset {sha256[:12]} is damaged at the edge: delete it there and upload it again")

    async def upload(self, owner: str, path: Path, name: str) -> OutputFile:
        """Upload the file as an asset of `owner`; durable when this returns.

        Raises EdgeAway, AssetRefused, NotPlainFile. Its size is compared before it is hashed, and the hashing can be
        cancelled: both may be a job's choice. It is opened once, so that what is sent is what was hashed.
        """
        async with wrap_file(await to_thread.run_sync(_open_plain, path)) as file:
            size = os.fstat(file.wrapped.fileno()).st_size
            if size > UNCHECKED_UPLOAD_LIMIT_BYTES:
                await self._check_size_limit(name, size)
            sha256 = await _hash_file(file)
            kind = guess_media_type(name)
            await file.seek(0)
            with _map_http_errors():
                answer = await self._client.put(
                    _asset_path(sha256),
                    params={"owner": owner, "name": name},
                    headers={"Content-Length": str(size), "Content-Type": kind},
                    content=_read_blocks(file),
                )
                await _raise_for_status(answer)
        return OutputFile(name=name, sha256=sha256, bytes=size, media_type=kind)

    async def _check_size_limit(self, name: str, size: int) -> None:
        """Raises AssetRefused where the edge takes no file of this size, which it tells those who upload by tus."""
        with _map_http_errors():
            answer = await self._client.options("/v1/uploads")
        most = answer.headers.get("Tus-Max-Size", "")
        if answer.is_success and most.isdecimal() and size > int(most):
            raise AssetRefused(f"{name} has {size} bytes, the edge takes {most}: write smaller files")

    async def _download_rest(self, owner: str, sha256: Digest, download: "_Download") -> None:
        while True:
            before = download.size
            try:
                return await self._download_once(owner, sha256, download)
            except httpx.RequestError as error:
                if download.size == before:
                    raise _edge_unavailable(error) from error

    async def _download_once(self, owner: str, sha256: Digest, download: "_Download") -> None:
        headers = {"Accept-Encoding": "identity"}
        if download.size:
            # Without If-Range: the bytes of a digest never change, and a bucket to which the edge leads tags them in
            # its own way.
            headers |= {"Range": f"bytes={download.size}-"}
        async with self._client.stream("GET", _asset_path(sha256), params={"owner": owner}, headers=headers) as answer:
            if answer.status_code == 416:
                return  # nothing is left to ask for: the digest will tell whether that is right
            await _raise_for_status(answer)
            if answer.status_code != 206:
                await to_thread.run_sync(download.restart)
            async for block in answer.aiter_bytes(BLOCK_BYTES):
                await to_thread.run_sync(download.write, block)


class _Download:
    """A file that grows, and its hash. Blocking."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b", buffering=0)
        self._file.seek(0)
        self._hash = hashlib.file_digest(self._file, "sha256")
        self.size = self._file.tell()

    @property
    def sha256(self) -> Digest:
        """Of what is there so far."""
        return self._hash.hexdigest()

    def restart(self) -> None:
        """Begin anew: the server sends all of it."""
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, block: bytes) -> None:
        """Append."""
        rest = memoryview(block)
        while rest:
            rest = rest[os.write(self._file.fileno(), rest) :]
        self._hash.update(block)
        self.size += len(block)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


@asynccontextmanager
async def _open_download(path: Path) -> AsyncIterator[_Download]:
    download = await to_thread.run_sync(_Download, path)
    try:
        yield download
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(download.close)


@asynccontextmanager
async def asset_client(
    url: str, key: str, timeout_s: float = 30.0, pin: str | None = None
) -> AsyncIterator[AssetClient]:
    """A client of the edge at `url` with the API key `key` (scope runner); `timeout_s` of silence is a cut.

    `pin`: the file of the one certificate to trust. Redirects are not followed then: they lead to somebody else.
    """
    headers = {"Authorization": f"Bearer {key}"}
    verify = await to_thread.run_sync(create_pinned_ssl_context, Path(pin)) if pin else True
    async with httpx.AsyncClient(
        base_url=url,
        headers=headers,
        timeout=timeout_s,
        follow_redirects=pin is None,
        verify=verify,
        mounts=bypass_proxies_for_loopback(url),
    ) as client:
        yield AssetClient(client)


def filename_suffix(disposition: str) -> str:
    """The ending of the file's name in a Content-Disposition, where it is a safe one: nothing else of what a client
    chose becomes part of a path here."""
    found = _SUFFIX.search(disposition)
    return found[1] if found else ""


def _asset_path(sha256: Digest) -> str:
    return f"/v1/assets/{sha256}"


def _open_plain(path: Path) -> IO[bytes]:
    """Open a regular file, and no link to one. Raises NotPlainFile; OSError for what is not the file's fault."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in _THE_FILE_S:
            raise
        raise NotPlainFile(f"{path.name} cannot be read as a plain file: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise NotPlainFile(f"{path.name} is no regular file: write plain files into out/")
    return os.fdopen(opened, "rb", buffering=0)


async def _hash_file(file: AsyncFile[bytes]) -> Digest:
    """The sha256 of the file's bytes."""
    made = hashlib.sha256()
    while await to_thread.run_sync(_hash_part, file.wrapped, made):
        pass
    return made.hexdigest()


def _hash_part(file: IO[bytes], made: "hashlib._Hash") -> bool:
    """Hash the next part of the file; whether there was any."""
    end = file.tell() + HASH_STEP_BYTES
    while (left := end - file.tell()) > 0 and (block := file.read(min(left, BLOCK_BYTES))):
        made.update(block)
    return left <= 0


async def _read_blocks(file: AsyncFile[bytes]) -> AsyncIterator[bytes]:
    while block := await file.read(BLOCK_BYTES):
        yield block


async def _raise_for_status(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    await answer.aread()
    kind = _ERROR_BY_STATUS.get(answer.status_code, EdgeUnavailable)
    raise kind(f"the edge answered {answer.status_code} for {answer.request.url.path}: {answer.text[:200]}")


@contextmanager
def _map_http_errors() -> Iterator[None]:
    """The border to httpx: whatever happened on the way is EdgeAway, a redirect that no upload can follow too."""
    try:
        yield
    except (httpx.RequestError, httpx.StreamError) as error:
        raise _edge_unavailable(error) from error


def _edge_unavailable(error: httpx.RequestError | httpx.StreamError) -> EdgeUnavailable:
    return EdgeUnavailable(
        f"the edge is not reachable ({type(error).__name__} {error}): check its address and the network"
    )


class EdgeAssetTransfer(AssetTransfer):
    """What the execution uses: inputs through the cache, outputs straight to the edge."""

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
