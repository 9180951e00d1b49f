"""Resumable uploads: they continue after a lost connection and after a restart of the edge.

The bytes of an upload become an asset when all of them are durable. One request at a time may send to an upload.
A connection that is lost silently (a phone in a tunnel) stays open here for minutes, but its client is back within
seconds. A silent writer therefore gives way to the client's next request.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Annotated

import anyio
import structlog
from anyio import CancelScope, to_thread
from msgspec import Meta, Struct, structs

from edge.assets.service import AssetService
from edge.core.clock import Clock, Entropy
from edge.core.concurrency import translate_errors
from edge.owners.quotas import OwnerQuotas, QuotaReservation, quota_exceeded
from edge.store.file_io import fan_out
from edge.store.unfinished_uploads import Upload, UploadAppender, UploadKey, UploadStateStore
from schemas.asset import Digest
from schemas.job import is_token
from schemas.problems import ProblemError

WRITER_WAIT_TIMEOUT_S = 2.0  # wait so long for the current writer, then check whether it is silent
WRITER_SILENCE_TIMEOUT_S = 1.0  # a writer without a byte for this long is silent
SWEEP_INTERVAL_S = 300.0
_ID_BYTES = 16

_log = structlog.get_logger()


class UploadParameters(Struct, frozen=True, kw_only=True):
    """A requested upload. `length`: None if the client names it later. `metadata`: returned to the client unchanged."""

    name: str
    media_type: str
    length: int | None = None
    expected: Digest | None = None
    metadata: str = ""


class Checksum(Struct, frozen=True):
    """The expected digest of a chunk, by one of hashlib's algorithms."""

    algorithm: str
    digest: bytes


class UploadChunk(Struct, frozen=True, kw_only=True):
    """The content of one request: bytes from `offset` on.

    `size`: of this request, if declared. `length`: of the upload, if it was not named before. A chunk with a checksum
    is accepted as a whole or not at all.
    """

    offset: int
    chunks: AsyncIterator[bytes]
    size: int | None = None
    length: int | None = None
    checksum: Checksum | None = None


class WriterTurn:
    """One request that has the exclusive right to send to an upload."""

    def __init__(self) -> None:
        self._last_chunk_at = anyio.current_time()
        self._read_scope: CancelScope | None = None
        self._preempted = False
        self.ended = anyio.Event()

    @property
    def is_silent(self) -> bool:
        """Return whether the request waits for bytes and received none for WRITER_SILENCE_TIMEOUT_S."""
        return self._read_scope is not None and anyio.current_time() - self._last_chunk_at >= WRITER_SILENCE_TIMEOUT_S

    def preempt(self) -> None:
        """Stop reading. Bytes that were read are kept."""
        self._preempted = True
        if self._read_scope is not None:
            self._read_scope.cancel()

    async def read_until_preempted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield `chunks` until they end or the turn is preempted."""
        while not self._preempted:
            chunk: bytes | None = None
            with CancelScope() as self._read_scope:
                chunk = await anext(chunks, None)
            self._read_scope = None
            self._last_chunk_at = anyio.current_time()
            if chunk is None:
                return
            yield chunk


class ExclusiveWriter:
    """A lock for the writer of one upload. A new request preempts a silent writer."""

    def __init__(self) -> None:
        self._current: WriterTurn | None = None

    @property
    def is_held(self) -> bool:
        """Return whether a request is sending."""
        return self._current is not None

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[WriterTurn]:
        """Hold the turn while the block runs. Raises ProblemError `upload_locked` while another request sends."""
        if not await self.wait_until_free():
            raise ProblemError(
                "upload_locked", "another request is sending to this upload: wait for it to end", retry_after_s=1
            )
        turn = self._current = WriterTurn()
        try:
            yield turn
        finally:
            self._current = None
            turn.ended.set()

    async def wait_until_free(self) -> bool:
        """Wait until no request sends, and preempt a silent one. Return False if a request continues to send."""
        turn = self._current
        if turn is None:
            return True
        with anyio.move_on_after(WRITER_WAIT_TIMEOUT_S):
            await turn.ended.wait()
        if turn.is_silent:
            await self.preempt()
        return self._current is None

    async def preempt(self) -> None:
        """Stop the current writer, silent or not."""
        turn = self._current
        if turn is not None:
            turn.preempt()
            with anyio.move_on_after(WRITER_WAIT_TIMEOUT_S):
                await turn.ended.wait()


class UploadSettings(Struct, frozen=True):
    """The `[uploads]` section: limits of resumable uploads."""

    ttl_s: Annotated[float, Meta(gt=0)] = 86_400.0
    """An upload without new bytes expires after this time."""
    max_open: Annotated[int, Meta(ge=1)] = 1000
    """Unfinished uploads of one owner."""
    shared: bool = True
    """With `[store] url`, an upload continues at any edge: its bytes go to the store as they arrive, and once more when
    it is complete. Off, for a single edge: only the complete file goes to the store.
    """


class _OpenUpload:
    """An upload known to this process. `hasher`: of the bytes up to the offset; None if they must be read again."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.hasher: hashlib._Hash | None = hashlib.sha256() if upload.offset == 0 else None
        self.writer = ExclusiveWriter()

    def accept(self, upload: Upload) -> None:
        """Replace the state by a newer one, of which this process has not hashed all bytes."""
        known = self.upload
        if upload.is_stored or upload.offset > known.offset or upload.length != known.length:
            self.upload, self.hasher = upload, None


class UploadService:
    """The uploads of one edge. `limit`: size of the largest upload in bytes."""

    def __init__(  # noqa: PLR0913, PLR0917 - its services, and three limits
        self,
        states: UploadStateStore,
        assets: AssetService,
        clock: Clock,
        entropy: Entropy,
        settings: UploadSettings,
        limit: int,
        quotas: OwnerQuotas | None = None,
    ) -> None:
        self._states = states
        self._assets = assets
        self._clock = clock
        self._entropy = entropy
        self._ttl = timedelta(seconds=settings.ttl_s)
        self._max_open = settings.max_open
        self.limit = limit
        self._quotas = quotas
        self._uploads: dict[UploadKey, _OpenUpload] = {}
        self._length_lock = anyio.Lock()

    async def create(self, owner: str, parameters: UploadParameters) -> Upload:
        """Create an upload durably. Raises ProblemError `body_too_large`, `quota_exceeded`, `store_full`.

        The lock makes the length of one upload durable before the quota is checked for the next.
        """
        async with self._length_lock:
            return await self._create(owner, parameters)

    async def _create(self, owner: str, parameters: UploadParameters) -> Upload:
        await self._check_room(owner, parameters.length)
        with translate_errors():
            if await to_thread.run_sync(self._states.count_unfinished, owner) >= self._max_open:
                raise ProblemError(
                    "quota_exceeded", f"{self._max_open} uploads are open: finish or delete some of them first"
                )
            upload = Upload(
                **structs.asdict(parameters), id=self._entropy(_ID_BYTES).hex(), owner=owner, expires=self._expires_at()
            )
            await to_thread.run_sync(self._states.create, upload)
        self._uploads[upload.key] = _OpenUpload(upload)
        return upload

    async def status(self, owner: str, upload_id: str) -> Upload:
        """Return the state of an upload. Raises ProblemError `not_found`.

        A silent connection is ended first, so that the client can continue from the returned offset. A complete upload
        that a crash kept from becoming an asset becomes one.
        """
        entry = await self._get_upload(owner, upload_id)
        if not await entry.writer.wait_until_free():
            return entry.upload  # a request is sending: return what is durable so far
        async with self._exclusive(owner, upload_id) as (entry, _):
            return await self._finish(entry)

    async def append(self, owner: str, upload_id: str, chunk: UploadChunk) -> Upload:
        """Append a chunk; return the durable state. With its last byte the upload becomes an asset.

        Bytes of a body that ends early are kept. Raises ProblemError `not_found`, `upload_locked`, `offset_mismatch`,
        `body_too_large`, `checksum_mismatch`, `digest_mismatch` (the upload is removed), `store_full`.
        """
        async with self._exclusive(owner, upload_id) as (entry, turn):
            if chunk.offset != entry.upload.offset:
                raise ProblemError(
                    "offset_mismatch", f"the offset of the upload is {entry.upload.offset}: continue from there"
                )
            if chunk.length is not None:
                await self._set_length(entry, chunk.length)
            if entry.upload.final_sha256 is None:
                await self._write_chunk(entry, chunk, turn)
            return await self._finish(entry)

    async def remove(self, owner: str, upload_id: str) -> None:
        """Remove an upload, also while a request sends. An asset that it became stays.

        Raises ProblemError `not_found`, `upload_locked`.
        """
        entry = await self._get_upload(owner, upload_id)
        await entry.writer.preempt()
        async with self._exclusive(owner, upload_id):
            await self._remove(entry.upload.key)

    async def remove_all(self, owner: str) -> int:
        """Remove all uploads of the owner; return how many there were. Raises ProblemError."""
        with translate_errors():
            keys = await to_thread.run_sync(self._states.list_keys, owner)
        for key in keys:
            if key in self._uploads:
                await self._uploads[key].writer.preempt()
            await self._remove(key)
        return len(keys)

    async def run(self) -> None:
        """Sweep at start, then every SWEEP_INTERVAL_S, until cancelled."""
        while True:
            try:
                await self.sweep()
            except ProblemError as problem:
                _log.warning("upload_sweep_failed", error=problem.detail)
            await anyio.sleep(SWEEP_INTERVAL_S)

    async def sweep(self) -> None:
        """Remove expired uploads; finish complete ones that a crash kept from becoming assets. Raises ProblemError."""
        with translate_errors():
            keys = await to_thread.run_sync(self._states.list_keys)
        for key in keys:
            try:
                await self._sweep_one(key)
            except ProblemError as problem:
                if problem.code == "not_found":
                    await self._remove(key)  # removes bytes without a state, too
                else:
                    _log.warning("upload_finish_failed", upload=key.id, owner=key.owner, error=problem.detail)

    async def _sweep_one(self, key: UploadKey) -> None:
        if not (await self._get_upload(*key)).writer.is_held:
            async with self._exclusive(*key) as (entry, _):
                await self._finish(entry)

    async def _check_room(self, owner: str, length: int | None, stored: int = 0) -> None:
        """Check limit and quota for `length` bytes, of which `stored` are here already. Raises ProblemError."""
        if length is not None and length > self.limit:
            raise ProblemError(
                "body_too_large", f"an upload may have at most {self.limit} bytes: make the file smaller"
            )
        if self._quotas is None:
            return
        with translate_errors():
            room = await self._quotas.bytes_left(owner)
        if room is not None and length is not None and length - stored > room:
            raise quota_exceeded(room)

    async def _get_upload(self, owner: str, upload_id: str) -> _OpenUpload:
        key = UploadKey(owner, upload_id)
        entry = self._uploads.get(key)
        if is_token(upload_id) and (entry is None or (self._states.is_shared and not entry.writer.is_held)):
            entry = await self._load(key)
        if entry is not None and not entry.writer.is_held and entry.upload.expires <= self._clock():
            await self._remove(key)
            entry = None
        if entry is None:
            raise _upload_not_found(upload_id)
        return entry

    async def _load(self, key: UploadKey) -> _OpenUpload | None:
        """Read the state again: other edges may have changed it. While a request sends, this edge knows it best."""
        with translate_errors():
            upload = await to_thread.run_sync(self._states.load, key)
        entry = self._uploads.get(key)
        if entry is not None and entry.writer.is_held:
            return entry
        if upload is None:
            self._uploads.pop(key, None)
            return None
        if entry is None:
            entry = self._uploads[key] = _OpenUpload(upload)
        entry.accept(upload)
        return entry

    @asynccontextmanager
    async def _exclusive(self, owner: str, upload_id: str) -> AsyncIterator[tuple[_OpenUpload, WriterTurn]]:
        """Yield the upload and the turn to write to it. Raises ProblemError `not_found`, `upload_locked`."""
        entry = await self._get_upload(owner, upload_id)
        async with entry.writer.acquire() as turn:
            if self._uploads.get(entry.upload.key) is not entry:  # it was removed while this request waited
                raise _upload_not_found(upload_id)
            yield entry, turn

    async def _set_length(self, entry: _OpenUpload, length: int) -> None:
        if entry.upload.length not in {None, length} or length < entry.upload.offset:
            raise ProblemError(
                "input_invalid", "the length is less than the offset, or differs from the one named before: correct it"
            )
        if entry.upload.length is None:
            async with self._length_lock:
                await self._check_room(entry.upload.owner, length, entry.upload.offset)
                upload = structs.replace(entry.upload, length=length)
                with translate_errors():
                    await to_thread.run_sync(self._states.save, upload)
                entry.upload = upload

    async def _write_chunk(self, entry: _OpenUpload, chunk: UploadChunk, turn: WriterTurn) -> None:
        upload, checksum = entry.upload, chunk.checksum
        room = (self.limit if upload.length is None else upload.length) - upload.offset
        if chunk.size is not None and chunk.size > room:
            raise ProblemError("body_too_large", f"{chunk.size} bytes are sent, but only {room} are missing")
        chunks = turn.read_until_preempted(chunk.chunks)
        checker = hashlib.new(checksum.algorithm, usedforsecurity=False) if checksum else None
        async with self._reserve_growth(entry) as reservation, self._open_appender(entry) as appender:
            if reservation is not None:
                chunks = reservation.meter_chunks(chunks)
            sinks = [
                appender.hasher.update,
                *([checker.update, appender.write] if checker else [appender.write_with_checkpoint]),
            ]
            await fan_out(chunks, room, sinks)
            if checker and checksum and checker.digest() != checksum.digest:
                raise ProblemError("checksum_mismatch", "the bytes do not match their checksum: send them again")
            await to_thread.run_sync(self._save_state, appender)
            entry.hasher = appender.hasher

    def _save_state(self, appender: UploadAppender) -> None:
        is_complete = appender.end_offset == appender.upload.length
        appender.save(expires=self._expires_at(), final_sha256=appender.hasher.hexdigest() if is_complete else None)

    @asynccontextmanager
    async def _reserve_growth(self, entry: _OpenUpload) -> AsyncIterator[QuotaReservation | None]:
        """Reserve the bytes of an upload without a length as they arrive; yield None if it needs no reservation."""
        if self._quotas is None or entry.upload.length is not None:
            yield None
            return
        with translate_errors():
            async with self._quotas.reserve_growth(entry.upload.key, lambda: entry.upload.offset) as reservation:
                yield reservation

    @asynccontextmanager
    async def _open_appender(self, entry: _OpenUpload) -> AsyncIterator[UploadAppender]:
        """Open the upload for appending. Afterwards `entry.upload` matches the disk, also after an error."""
        with translate_errors():
            appender = await to_thread.run_sync(UploadAppender, self._states, entry.upload, entry.hasher)
            entry.hasher = None
            try:
                yield appender
            finally:
                entry.upload = appender.upload
                with CancelScope(shield=True):
                    await to_thread.run_sync(appender.close)

    async def _finish(self, entry: _OpenUpload) -> Upload:
        """Turn a complete upload into an asset; return its state."""
        if entry.upload.final_sha256 is None and entry.upload.offset == entry.upload.length:
            await self._hash_complete(entry)
        upload = entry.upload
        if upload.final_sha256 is None or upload.is_stored:
            return upload
        if upload.expected not in {None, upload.final_sha256}:
            await self._remove(upload.key)
            raise ProblemError(
                "digest_mismatch",
                f"the bytes' sha256 is {upload.final_sha256}, not {upload.expected}: "
                "it was damaged in transit, or the file changed",
            )
        path = self._states.data_path(upload.key)
        await self._assets.import_file(upload.owner, path, upload.final_sha256, upload.name, upload.media_type)
        entry.upload, entry.hasher = structs.replace(upload, is_stored=True), None
        with translate_errors():
            await to_thread.run_sync(self._states.save, entry.upload)
            await to_thread.run_sync(self._states.delete_data, upload.key)
        return entry.upload

    async def _hash_complete(self, entry: _OpenUpload) -> None:
        """Set the digest of an upload whose last bytes another edge received."""
        async with self._open_appender(entry) as appender:
            await to_thread.run_sync(self._save_state, appender)

    async def _remove(self, key: UploadKey) -> None:
        self._uploads.pop(key, None)
        with translate_errors():
            await to_thread.run_sync(self._states.remove, key)

    def _expires_at(self) -> datetime:
        return self._clock() + self._ttl


def _upload_not_found(upload_id: str) -> ProblemError:
    return ProblemError("not_found", f"you have no upload {upload_id[:64]!r}, or it has expired: start it again")
