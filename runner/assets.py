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

from bus.pins import trusting
from runner.cache import BLOCK
from runner.supplies import About, AssetGone, EdgeAway, NotHeld, NotPlainFile, SuppliesError
from schemas.asset import Digest, media_type
from schemas.job import File
from schemas.loopback import past_proxies

# RFC 6266: filename="a.mp4" or filename*=utf-8''a.mp4, percent-encoded.
_SUFFIX = re.compile(r"""filename\*?=[^;]*(\.[A-Za-z0-9]{1,8})"?\s*(?:;|\Z)""", re.ASCII)


HASHED_BYTES = 32 * BLOCK  # in one thread call: some 20 ms, after which a cancellation is noticed
UNASKED_BYTES = 32 * BLOCK  # a file up to this size is hashed and sent without asking: the edge refuses it at once


# What open(2) says of a link, a socket, and a name that is gone or not readable any more.
_THE_FILE_S = frozenset({errno.ELOOP, errno.ENXIO, errno.ENOENT, errno.ENOTDIR, errno.EACCES})


class WrongDigest(AssetGone):
    """What the edge sent, twice, is not what its name says: the bytes there are damaged."""


class AssetRefused(SuppliesError):
    """The edge will not take this file, now or later (too large, say)."""


# Every other answer means: later. 401 too: a key that is mended lets the job go on.
_STATUS: dict[int, type[SuppliesError]] = {
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

    async def answers(self) -> bool:
        """Whether the edge gives a sign of life."""
        try:
            return (await self._client.get("/livez")).is_success
        except httpx.HTTPError:
            return False

    async def about(self, owner: str, sha256: Digest) -> About:
        """What the asset is. Raises AssetGone, EdgeAway."""
        with _edge_errors():
            answer = await self._client.head(_path(sha256), params={"owner": owner})
            await _check(answer)
        return About(int(answer.headers["content-length"]), suffix_of(answer.headers.get("content-disposition", "")))

    async def knows_us(self) -> bool:
        """Whether our key is one: a host that was removed has none any more. Raises EdgeAway."""
        with _edge_errors():
            return (await self._client.post("/v1/assets/check", json={"digests": []})).status_code != 401

    async def get(self, owner: str, sha256: Digest, into: Path) -> None:
        """Bring the asset to `into`; what is there already is not asked for again.

        After a cut it goes on by itself as long as every try brings bytes; then EdgeAway, and what came is kept for
        the next call. Bytes that do not make the digest are fetched once more from the start, then WrongDigest.
        """
        for _ in range(2):
            async with _download(into) as download:
                await self._fill(owner, sha256, download)
                if download.sha256 == sha256:
                    return
            await to_thread.run_sync(into.unlink)
        raise WrongDigest(f"asset {sha256[:12]} is damaged at the edge: delete it there and upload it again")

    async def put(self, owner: str, path: Path, name: str) -> File:
        """Upload the file as an asset of `owner`; durable when this returns.

        Raises EdgeAway, AssetRefused, NotPlainFile. Its size is compared before it is hashed, and the hashing can be
        cancelled: both may be a job's choice. It is opened once, so that what is sent is what was hashed.
        """
        async with wrap_file(await to_thread.run_sync(_open_plain, path)) as file:
            size = os.fstat(file.wrapped.fileno()).st_size
            if size > UNASKED_BYTES:
                await self._refuse_over_limit(name, size)
            sha256 = await _hashed(file)
            kind = media_type(name)
            await file.seek(0)
            with _edge_errors():
                answer = await self._client.put(
                    _path(sha256),
                    params={"owner": owner, "name": name},
                    headers={"Content-Length": str(size), "Content-Type": kind},
                    content=_blocks(file),
                )
                await _check(answer)
        return File(name=name, sha256=sha256, bytes=size, media_type=kind)

    async def _refuse_over_limit(self, name: str, size: int) -> None:
        """Raises AssetRefused where the edge takes no file of this size, which it tells those who upload by tus."""
        with _edge_errors():
            answer = await self._client.options("/v1/uploads")
        most = answer.headers.get("Tus-Max-Size", "")
        if answer.is_success and most.isdecimal() and size > int(most):
            raise AssetRefused(f"{name} has {size} bytes, the edge takes {most}: write smaller files")

    async def _fill(self, owner: str, sha256: Digest, download: "_Download") -> None:
        while True:
            before = download.size
            try:
                return await self._attempt(owner, sha256, download)
            except httpx.RequestError as error:
                if download.size == before:
                    raise _away(error) from error

    async def _attempt(self, owner: str, sha256: Digest, download: "_Download") -> None:
        headers = {"Accept-Encoding": "identity"}
        if download.size:
            # Without If-Range: the bytes of a digest never change, and a bucket to which the edge leads tags them in
            # its own way.
            headers |= {"Range": f"bytes={download.size}-"}
        async with self._client.stream("GET", _path(sha256), params={"owner": owner}, headers=headers) as answer:
            if answer.status_code == 416:
                return  # nothing is left to ask for: the digest will tell whether that is right
            await _check(answer)
            if answer.status_code != 206:
                await to_thread.run_sync(download.restart)
            async for block in answer.aiter_bytes(BLOCK):
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
async def _download(path: Path) -> AsyncIterator[_Download]:
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
    verify = await to_thread.run_sync(trusting, Path(pin)) if pin else True
    async with httpx.AsyncClient(
        base_url=url,
        headers=headers,
        timeout=timeout_s,
        follow_redirects=pin is None,
        verify=verify,
        mounts=past_proxies(url),
    ) as client:
        yield AssetClient(client)


def suffix_of(disposition: str) -> str:
    """The ending of the file's name in a Content-Disposition, where it is a safe one: nothing else of what a client
    chose becomes part of a path here."""
    found = _SUFFIX.search(disposition)
    return found[1] if found else ""


def _path(sha256: Digest) -> str:
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


async def _hashed(file: AsyncFile[bytes]) -> Digest:
    """The sha256 of the file's bytes."""
    made = hashlib.sha256()
    while await to_thread.run_sync(_hash_some, file.wrapped, made):
        pass
    return made.hexdigest()


def _hash_some(file: IO[bytes], made: "hashlib._Hash") -> bool:
    """Hash the next part of the file; whether there was any."""
    end = file.tell() + HASHED_BYTES
    while (left := end - file.tell()) > 0 and (block := file.read(min(left, BLOCK))):
        made.update(block)
    return left <= 0


async def _blocks(file: AsyncFile[bytes]) -> AsyncIterator[bytes]:
    while block := await file.read(BLOCK):
        yield block


async def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    await answer.aread()
    kind = _STATUS.get(answer.status_code, EdgeAway)
    raise kind(f"the edge answered {answer.status_code} for {answer.request.url.path}: {answer.text[:200]}")


@contextmanager
def _edge_errors() -> Iterator[None]:
    """The border to httpx: whatever happened on the way is EdgeAway, a redirect that no upload can follow too."""
    try:
        yield
    except (httpx.RequestError, httpx.StreamError) as error:
        raise _away(error) from error


def _away(error: httpx.RequestError | httpx.StreamError) -> EdgeAway:
    return EdgeAway(f"the edge is not reachable ({type(error).__name__} {error}): check its address and the network")
