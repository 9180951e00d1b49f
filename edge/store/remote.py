"""The asset store in a bucket of S3, Google Cloud Storage or Azure; the only module that imports obstore.

    sha256/<hex>    the assets
    uploads/…       objects of unfinished uploads, which all edges share
    trash/<hex>     deleted assets, until the edge has checked that no job names them
    fingerprint     identifies the store; written once

An object appears whole or not at all. A body with an expected digest is therefore sent straight to its final key. If
its digest is wrong, the upload is aborted before its end. A move is a copy, then a delete: a crash between the two
leaves both objects, never none.
"""

import hashlib
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import cast

import obstore
from anyio import to_thread
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store, from_url

from edge.store.file_io import fan_out, rechunk
from edge.store.port import (
    BLOCK_BYTES,
    AssetStore,
    AssetTooLarge,
    DigestMismatch,
    SharedObject,
    SharedObjects,
    StoreBroken,
    StoredAsset,
    StoreError,
    Survey,
    require_digest,
)
from schemas.asset import Digest

COPY_LIMIT_BYTES = 5 * 1024**3  # the largest object that S3 copies in one request
PART_BYTES = 8 * 1024**2  # bytes of one part of an upload: 10,000 parts are 80 GB
RETRY_TIMEOUT = timedelta(seconds=20)  # for all retries of one call, before it fails
_FINGERPRINT_KEY = "fingerprint"
_UPLOADS_PREFIX = "uploads/"

# The first match wins. Other errors: "failed".
_ERROR_TEXTS: Mapping[type[Exception], str] = {
    exceptions.UnauthenticatedError: "rejected the credentials: check those in the edge's environment",
    exceptions.PermissionDeniedError: "denied access: its policy must let the edge get, put, copy, list and delete",
    exceptions.NotFoundError: "does not exist: create it, or correct [store] url",
}


@contextmanager
def map_remote_errors() -> Iterator[None]:
    """Map errors of obstore to StoreBroken; FileNotFoundError passes, because each caller treats it differently."""
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
    """Assets as objects of a bucket. Use `open_remote` to create it.

    `scratch`: a local folder for bodies without an expected digest. `can_presign`: `presign_url` may return URLs.
    """

    def __init__(self, bucket: ObjectStore, fingerprint: str, scratch: Path, *, can_presign: bool) -> None:
        self._bucket = bucket
        self._fingerprint = fingerprint
        self._scratch = scratch
        self._can_presign = can_presign

    async def write(self, chunks: AsyncIterator[bytes], expected: Digest | None, limit: int) -> StoredAsset:
        if expected is None:
            return await self._write_unknown_digest(chunks, limit)
        body = _VerifiedBody(chunks, expected, limit)
        try:
            with map_remote_errors():
                await obstore.put_async(self._bucket, _asset_key(expected), body.blocks(), chunk_size=PART_BYTES)
        except StoreError as error:
            raise body.failure or error from error  # an error of the body is not an error of the bucket
        return StoredAsset(expected, body.size)

    async def _write_unknown_digest(self, chunks: AsyncIterator[bytes], limit: int) -> StoredAsset:
        """Write to a local file first: the key needs the digest, which is known only after the last byte."""
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
                await obstore.head_async(self._bucket, _trash_key(sha256))  # S3 reports success for a missing object
                await obstore.delete_async(self._bucket, _trash_key(sha256))
            except FileNotFoundError:
                return False
        return True

    async def survey(self) -> Survey:
        with map_remote_errors():
            found = await obstore.list(self._bucket, "trash/").collect_async()
        names = (entry["path"].rpartition("/")[2] for entry in found)
        return Survey(self._fingerprint, tuple(sorted(names)))

    async def presign_url(self, sha256: Digest, ttl: timedelta) -> str | None:
        if not self._can_presign:
            return None
        try:
            signing = cast("S3Store | GCSStore | AzureStore", self._bucket)
            return await obstore.sign_async(signing, "GET", _asset_key(sha256), ttl)
        except exceptions.BaseError:  # credentials that cannot sign: the edge passes the bytes through
            return None

    def upload_objects(self) -> SharedObjects:
        return BucketObjects(self._bucket)


class BucketObjects(SharedObjects):
    """Objects below `uploads/` of a bucket."""

    def __init__(self, bucket: ObjectStore) -> None:
        self._bucket = bucket

    def create(self, name: str, body: bytes) -> bool:
        with map_remote_errors():
            try:
                obstore.put(self._bucket, _UPLOADS_PREFIX + name, body, mode="create")
            except exceptions.AlreadyExistsError:
                return False
        return True

    def read(self, name: str) -> bytes:
        with map_remote_errors():
            try:
                return bytes(obstore.get(self._bucket, _UPLOADS_PREFIX + name).bytes())
            except FileNotFoundError:
                raise KeyError(name) from None

    def list(self, folder: str = "") -> Sequence[SharedObject]:
        with map_remote_errors():
            found = obstore.list(self._bucket, _UPLOADS_PREFIX + folder).collect()
        # A listing has the paths without the prefix of the bucket's own URL, and with ours.
        return [
            SharedObject(entry["path"].removeprefix(_UPLOADS_PREFIX), entry["size"], entry["last_modified"])
            for entry in found
        ]

    def delete(self, names: Iterable[str]) -> None:
        with map_remote_errors(), suppress(FileNotFoundError):
            paths = [_UPLOADS_PREFIX + name for name in names]
            if paths:
                obstore.delete(self._bucket, paths)


class _VerifiedBody:
    """A body that fails before its end if its digest or its size is wrong, so that the bucket drops the upload."""

    def __init__(self, chunks: AsyncIterator[bytes], expected: Digest, limit: int) -> None:
        self._chunks, self._expected, self._limit = chunks, expected, limit
        self.size = 0
        self.failure: Exception | None = None

    async def blocks(self) -> AsyncIterator[bytes]:
        """Yield the body; keep its error in `failure`. Raises DigestMismatch, AssetTooLarge, and errors of `chunks`."""
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
    """Open the store at `url` (`s3://bucket/prefix`, `gs://…`, `az://account/container/…`) while the block runs.

    Credentials, region and endpoint come from the environment, under the names that each cloud's own tools use
    (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …). Raises StoreError.
    """
    await to_thread.run_sync(lambda: scratch.mkdir(parents=True, exist_ok=True, mode=0o700))
    try:
        bucket = from_url(
            url,
            # A large object takes one long response, so only silence is an error. Plain HTTP is allowed for an
            # endpoint that the operator names without TLS.
            client_options={"connect_timeout": "10s", "read_timeout": "30s", "timeout": "6h", "allow_http": True},
            retry_config={"max_retries": 5, "retry_timeout": RETRY_TIMEOUT},
        )
    except (exceptions.BaseError, ValueError) as error:
        raise StoreBroken(f"[store] url {url!r} is not a store: {str(error).splitlines()[0][:200]}") from error
    fingerprint = await _get_or_create_fingerprint(bucket, new_id)
    can_presign = presign and isinstance(bucket, S3Store | GCSStore | AzureStore)
    yield RemoteStore(bucket, fingerprint, scratch, can_presign=can_presign)


async def _get_or_create_fingerprint(bucket: ObjectStore, new_id: Callable[[], str]) -> str:
    try:
        with map_remote_errors():
            with suppress(exceptions.AlreadyExistsError):
                await obstore.put_async(bucket, _FINGERPRINT_KEY, new_id().encode(), mode="create")
            found = await obstore.get_async(bucket, _FINGERPRINT_KEY)
            return bytes(await found.bytes_async()).decode()
    except FileNotFoundError as error:
        raise _to_store_broken(error) from error
