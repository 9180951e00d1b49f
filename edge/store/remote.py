"""The store in a bucket of S3, Google Cloud Storage or Azure; the only code that imports obstore.

    sha256/<hex>    the assets        trash/<hex>    deleted, while it is checked that nothing names them
    fingerprint     written once

An object appears whole or not at all, so a body whose digest is named goes straight to its place: where it turns out to
be another, the upload is dropped before its end. A move is a copy, then a delete: the new name first, as in the folder.
"""

import hashlib
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import cast

import obstore
from anyio import to_thread
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store, from_url

from edge.store.fanout import fan_out, rechunk
from edge.store.port import (
    BLOCK_BYTES,
    AssetStore,
    AssetTooLarge,
    DigestMismatch,
    StoreBroken,
    StoredAsset,
    StoreError,
    Survey,
    require_digest,
)
from schemas.asset import Digest

COPY_LIMIT_BYTES = 5 * 1024**3  # the largest object that S3 copies in one request
PART_BYTES = 8 * 1024**2  # bytes of one part of an upload: 10,000 parts are 80 GB
RETRY_TIMEOUT = timedelta(seconds=20)  # of retries, before the bucket counts as away
_FINGERPRINT_KEY = "fingerprint"

# First match wins; the rest is "failed".
_ERROR_TEXTS: Mapping[type[Exception], str] = {
    exceptions.UnauthenticatedError: "refused who asks: check the credentials in the edge's environment",
    exceptions.PermissionDeniedError: "refused: its policy must let the edge get, put, copy, list and delete",
    exceptions.NotFoundError: "is not there: make it, or correct [store] url",
}


@contextmanager
def map_remote_errors() -> Iterator[None]:
    """The border to obstore. What is not there stays FileNotFoundError, for the caller to say what that means."""
    try:
        yield
    except (FileNotFoundError, StoreError):
        raise
    except (exceptions.BaseError, OSError) as error:
        raise _to_store_broken(error) from error


def _to_store_broken(error: Exception) -> StoreBroken:
    why = next(
        (text for kind, text in _ERROR_TEXTS.items() if isinstance(error, kind)), "failed: check it and the network"
    )
    return StoreBroken(f"the asset store's bucket {why} ({str(error).splitlines()[0][:200]})")


class RemoteStore(AssetStore):
    """Assets as objects. `scratch`: a folder of this machine for bodies whose digest nobody named. `signs`: `link` may
    give URLs of the bucket's own. Made by `open_remote`."""

    def __init__(self, bucket: ObjectStore, fingerprint: str, scratch: Path, *, signs: bool) -> None:
        self._bucket = bucket
        self._fingerprint = fingerprint
        self._scratch = scratch
        self._can_presign = signs

    async def write(self, chunks: AsyncIterator[bytes], expected: Digest | None, limit: int) -> StoredAsset:
        if expected is None:
            return await self._write_unknown_digest(chunks, limit)
        body = _VerifiedBody(chunks, expected, limit)
        try:
            with map_remote_errors():
                await obstore.put_async(self._bucket, _asset_key(expected), body.blocks(), chunk_size=PART_BYTES)
        except StoreError as error:
            raise body.failure or error from error  # what the body raised is no fault of the bucket
        return StoredAsset(expected, body.size)

    async def _write_unknown_digest(self, chunks: AsyncIterator[bytes], limit: int) -> StoredAsset:
        """By way of a local file: a place in the bucket needs the digest, which only the last byte tells."""
        with await to_thread.run_sync(lambda: tempfile.NamedTemporaryFile(dir=self._scratch)) as file:
            hasher = hashlib.sha256()
            await fan_out(chunks, limit, [hasher.update, file.write])
            await to_thread.run_sync(file.flush)
            return await self.import_file(Path(file.name), hasher.hexdigest())

    async def import_file(self, path: Path, sha256: Digest) -> StoredAsset:
        with map_remote_errors():
            await obstore.put_async(self._bucket, _asset_key(sha256), path, chunk_size=PART_BYTES)
        return StoredAsset(sha256, (await to_thread.run_sync(path.stat)).st_size)

    async def stat(self, sha256: Digest) -> StoredAsset | None:
        with map_remote_errors():
            try:
                return StoredAsset(sha256, (await obstore.head_async(self._bucket, _asset_key(sha256)))["size"])
            except FileNotFoundError:
                return None

    async def read(self, sha256: Digest, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        stored = await self.stat(sha256)
        if stored is None:
            raise KeyError(sha256)
        end = stored.bytes if stop is None else min(stop, stored.bytes)
        if start >= end:
            return
        with map_remote_errors():
            try:
                found = await obstore.get_async(self._bucket, _asset_key(sha256), options={"range": (start, end)})
            except FileNotFoundError as error:
                raise KeyError(sha256) from error
            async for block in found.stream(min_chunk_size=BLOCK_BYTES):
                yield bytes(block)

    async def trash(self, sha256: Digest) -> bool:
        return await self._move(_asset_key(sha256), _trash_key(sha256))

    async def restore(self, sha256: Digest) -> bool:
        return await self._move(_trash_key(sha256), _asset_key(sha256))

    async def _move(self, source: str, target: str) -> bool:
        with map_remote_errors():
            try:
                if (await obstore.head_async(self._bucket, source))["size"] > COPY_LIMIT_BYTES:
                    found = await obstore.get_async(self._bucket, source)
                    await obstore.put_async(
                        self._bucket, target, found.stream(min_chunk_size=PART_BYTES), chunk_size=PART_BYTES
                    )
                else:
                    await obstore.copy_async(self._bucket, source, target)
            except FileNotFoundError:
                return False
            await obstore.delete_async(self._bucket, source)
        return True

    async def erase(self, sha256: Digest) -> bool:
        with map_remote_errors():
            try:
                await obstore.head_async(self._bucket, _trash_key(sha256))  # S3 deletes what is not there, too
                await obstore.delete_async(self._bucket, _trash_key(sha256))
            except FileNotFoundError:
                return False
        return True

    async def survey(self) -> Survey:
        with map_remote_errors():
            found = await obstore.list(self._bucket, "trash/").collect_async()
        names = (entry["path"].rpartition("/")[2] for entry in found)
        return Survey(self._fingerprint, sys.maxsize, tuple(sorted(names)))

    async def presign_url(self, sha256: Digest, ttl: timedelta) -> str | None:
        if not self._can_presign:
            return None
        try:
            signing = cast("S3Store | GCSStore | AzureStore", self._bucket)
            return await obstore.sign_async(signing, "GET", _asset_key(sha256), ttl)
        except exceptions.BaseError:  # credentials that can read and not sign: the edge passes the bytes through
            return None


class _VerifiedBody:
    """A body on its way whose last block is let through only if all of it is what was named."""

    def __init__(self, chunks: AsyncIterator[bytes], expected: Digest, limit: int) -> None:
        self._chunks, self._expected, self._limit = chunks, expected, limit
        self.size = 0
        self.failure: Exception | None = None

    async def blocks(self) -> AsyncIterator[bytes]:
        """What is put. Raises DigestMismatch, TooLarge, and what the body raises."""
        try:
            async for block in self._verified_blocks():
                yield block
        except Exception as error:
            self.failure = error
            raise

    async def _verified_blocks(self) -> AsyncIterator[bytes]:
        hasher = hashlib.sha256()
        async for block in rechunk(self._chunks):
            self.size += len(block)
            if self.size > self._limit:
                raise AssetTooLarge(self._limit)
            await to_thread.run_sync(hasher.update, block)
            yield block
        if hasher.hexdigest() != self._expected:
            raise DigestMismatch(self._expected, hasher.hexdigest())


def _asset_key(sha256: Digest) -> str:
    return f"sha256/{require_digest(sha256)}"


def _trash_key(sha256: Digest) -> str:
    return f"trash/{require_digest(sha256)}"


def _random_id() -> str:
    return uuid.uuid4().hex


@asynccontextmanager
async def open_remote(
    url: str, scratch: Path, *, presign: bool = True, new_id: Callable[[], str] = _random_id
) -> AsyncIterator[RemoteStore]:
    """The store at `url` (`s3://bucket/prefix`, `gs://…`, `az://account/container/…`) while the block runs.

    Credentials, region and endpoint come from the environment, under the names that each cloud's own tools use
    (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …). Raises StoreError.
    """
    await to_thread.run_sync(lambda: scratch.mkdir(parents=True, exist_ok=True, mode=0o700))
    try:
        bucket = from_url(
            url,
            # A large object is one long answer, so only its silence is a fault. Plain HTTP is for whoever names an
            # endpoint without TLS.
            client_options={"connect_timeout": "10s", "read_timeout": "30s", "timeout": "6h", "allow_http": True},
            retry_config={"max_retries": 5, "retry_timeout": RETRY_TIMEOUT},
        )
    except (exceptions.BaseError, ValueError) as error:
        raise StoreBroken(f"[store] url {url!r} names no store: {str(error).splitlines()[0][:200]}") from error
    fingerprint = await _get_or_create_fingerprint(bucket, new_id)
    signs = presign and isinstance(bucket, S3Store | GCSStore | AzureStore)
    yield RemoteStore(bucket, fingerprint, scratch, signs=signs)


async def _get_or_create_fingerprint(bucket: ObjectStore, new_id: Callable[[], str]) -> str:
    try:
        with map_remote_errors():
            with suppress(exceptions.AlreadyExistsError):
                await obstore.put_async(bucket, _FINGERPRINT_KEY, new_id().encode(), mode="create")
            found = await obstore.get_async(bucket, _FINGERPRINT_KEY)
            return bytes(await found.bytes_async()).decode()
    except FileNotFoundError as error:
        raise _to_store_broken(error) from error
