"""What a resumable upload is asked for and brought in, as values."""

import hashlib
from collections import Counter
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
from edge.core.error_handling import translate_errors
from edge.owners.quotas import OwnerQuotas, QuotaReservation, quota_exceeded
from edge.store.fanout import fan_out
from edge.store.upload_state import Upload, UploadAppender, UploadKey, UploadStateStore
from schemas.asset import Digest
from schemas.ids import is_token
from schemas.problems import ProblemError


class UploadParameters(Struct, frozen=True, kw_only=True):
    """An upload as a client asks for it. `length` None: it says so later. `metadata`: to be told again, verbatim."""

    name: str
    media_type: str
    length: int | None = None
    expected: Digest | None = None
    metadata: str = ""


class Checksum(Struct, frozen=True):
    """What a piece must hash to, by one of hashlib's algorithms."""

    algorithm: str
    digest: bytes


class UploadChunk(Struct, frozen=True, kw_only=True):
    """What one request brings: `chunks` from `offset` on. `size` where it was said, `length` where the upload's was
    not said before. A piece with a checksum counts whole or not at all."""

    offset: int
    chunks: AsyncIterator[bytes]
    size: int | None = None
    length: int | None = None
    checksum: Checksum | None = None


# MERGED edge/services/turns.py: One at a time at a thing that a client sends; whoever has fallen silent gives way to
# the client's next try. / A connection that is cut without a word (a phone in a tunnel) stays open here for minutes.
# Its client is back within / seconds, and must not find its own upload locked by its own ghost.


WRITER_WAIT_TIMEOUT_S = 2.0  # for whoever is at it, before it is looked at again
WRITER_SILENCE_TIMEOUT_S = 1.0  # without a byte at that moment: cut


class WriterTurn:
    """Somebody's time at it."""

    def __init__(self) -> None:
        self._last_chunk_at = anyio.current_time()
        self._read_scope: CancelScope | None = None
        self._preempted = False
        self.ended = anyio.Event()

    @property
    def is_silent(self) -> bool:
        """Whether nothing has come for SILENT_S, although something is waited for."""
        return self._read_scope is not None and anyio.current_time() - self._last_chunk_at >= WRITER_SILENCE_TIMEOUT_S

    def preempt(self) -> None:
        """Stop waiting for more; what has come is kept."""
        self._preempted = True
        if self._read_scope is not None:
            self._read_scope.cancel()

    async def read_until_preempted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """`chunks`, until they end or this turn has to give way."""
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
    """Whose turn it is."""

    def __init__(self) -> None:
        self._current: WriterTurn | None = None

    @property
    def is_held(self) -> bool:
        """Whether somebody is at it."""
        return self._current is not None

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[WriterTurn]:
        """My turn, for as long as the block runs. Raises Refused `upload_locked` while somebody is at it."""
        await self.wait_until_free()
        turn = self._current = WriterTurn()
        try:
            yield turn
        finally:
            self._current = None
            turn.ended.set()

    async def wait_until_free(self) -> None:
        """Wait until it is nobody's turn. Raises Refused `upload_locked` where somebody goes on."""
        turn = self._current
        if turn is None:
            return
        with anyio.move_on_after(WRITER_WAIT_TIMEOUT_S):
            await turn.ended.wait()
        if turn.is_silent:
            await self.preempt()
        if self._current is not None:
            raise ProblemError(
                "upload_locked", "another request is sending to this upload: wait for it to end", retry_after_s=1
            )

    async def preempt(self) -> None:
        """Let whoever is at it stop, silent or not."""
        turn = self._current
        if turn is not None:
            turn.preempt()
            with anyio.move_on_after(WRITER_WAIT_TIMEOUT_S):
                await turn.ended.wait()


# MERGED edge/services/uploads.py: Uploads that go on where they were cut: over connections, and over restarts of the
# edge.


SWEEP_INTERVAL_S = 300.0
_ID_BYTES = 16

_log = structlog.get_logger()


class UploadSettings(Struct, frozen=True):
    """`ttl_s`: an upload to which nothing comes for so long is forgotten. `max_open`: how many an owner may have."""

    ttl_s: Annotated[float, Meta(gt=0)] = 86_400.0
    max_open: Annotated[int, Meta(ge=1)] = 1000


class _OpenUpload:
    """An upload that this process has seen. `hasher`: of its bytes up to the offset, None: they must be re-read."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.hasher: hashlib._Hash | None = hashlib.sha256() if upload.offset == 0 else None
        self.writer = ExclusiveWriter()


class UploadService:
    """All uploads of one edge. `limit`: bytes of the largest."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with, and three bounds
        self,
        partials: UploadStateStore,
        assets: AssetService,
        clock: Clock,
        entropy: Entropy,
        settings: UploadSettings,
        limit: int,
        quotas: OwnerQuotas | None = None,
    ) -> None:
        self._states = partials
        self._assets = assets
        self._clock = clock
        self._entropy = entropy
        self._ttl = timedelta(seconds=settings.ttl_s)
        self._max_open = settings.max_open
        self.limit = limit
        self._quotas = quotas
        self._uploads: dict[UploadKey, _OpenUpload] = {}
        self._promising = anyio.Lock()
        self._growing: dict[UploadKey, int] = {}  # uploads without a length that are being sent, by their offset before
        self._grown: Counter[str] = Counter()  # bytes that they brought in all, by owner

    async def create(self, owner: str, wanted: UploadParameters) -> Upload:
        """A new upload, durable. Raises Refused `body_too_large`, `quota_exceeded`, `store_full`.

        One after the other: what one of them is promised must be written before the next is measured.
        """
        async with self._promising:
            return await self._create(owner, wanted)

    async def _create(self, owner: str, wanted: UploadParameters) -> Upload:
        await self._check_room(owner, wanted.length)
        with translate_errors():
            if await to_thread.run_sync(self._states.count_unfinished, owner) >= self._max_open:
                raise ProblemError(
                    "quota_exceeded", f"{self._max_open} uploads are open: end or delete some of them first"
                )
            upload = Upload(
                **structs.asdict(wanted), id=self._entropy(_ID_BYTES).hex(), owner=owner, expires=self._expires_at()
            )
            await to_thread.run_sync(self._states.create, upload)
        self._uploads[upload.key] = _OpenUpload(upload)
        return upload

    async def pending_bytes(self, owner: str) -> int:
        """How many bytes the owner's uploads here have, or are to have, that are no assets yet. Raises StoreError.

        Bytes that have a reservation are not among them. Those whose reservation ends while the folder is read are.
        """
        grown, growing = self._grown[owner], dict(self._growing)
        promised = await to_thread.run_sync(self._states.pending_bytes, owner, growing)
        return promised + self._grown[owner] - grown

    async def status(self, owner: str, upload_id: str) -> Upload:
        """How far it is. Raises Refused `not_found`.

        A connection that has fallen silent is ended first, so that the offset told is the one to go on from; and an
        upload that a crash kept from becoming an asset becomes one.
        """
        held = await self._get_upload(owner, upload_id)
        try:
            await held.writer.wait_until_free()
        except ProblemError:  # somebody is sending: what is durable so far is told
            return held.upload
        async with self._exclusive(owner, upload_id) as (held, _):
            return await self._finish(held)

    async def append(self, owner: str, upload_id: str, piece: UploadChunk) -> Upload:
        """Take what comes; the upload as it is then, and durable. It became an asset if that was the rest of it.

        A body that ends early has brought what it brought. Raises Refused: `not_found`, `upload_locked`,
        `offset_mismatch`, `body_too_large`, `checksum_mismatch`, `digest_mismatch` (then it is gone), `store_full`.
        """
        async with self._exclusive(owner, upload_id) as (held, turn):
            if piece.offset != held.upload.offset:
                raise ProblemError("offset_mismatch", f"the upload stands at {held.upload.offset}: go on from there")
            if piece.length is not None:
                await self._set_length(held, piece.length)
            if held.upload.final_sha256 is None:
                await self._write_chunk(held, piece, turn)
            return await self._finish(held)

    async def remove(self, owner: str, upload_id: str) -> None:
        """End it, whatever has come and whoever is sending. What became an asset stays one. Raises Refused
        `not_found`, `upload_locked`."""
        held = await self._get_upload(owner, upload_id)
        await held.writer.preempt()
        async with self._exclusive(owner, upload_id):
            await self._remove(held.upload.key)

    async def remove_all(self, owner: str) -> int:
        """End every upload of the owner, for a deletion; how many there were. Raises Refused."""
        with translate_errors():
            keys = await to_thread.run_sync(self._states.list_keys, owner)
        for key in keys:
            if key in self._uploads:
                await self._uploads[key].writer.preempt()
            await self._remove(key)
        return len(keys)

    async def run(self) -> None:
        """Sweep at start, then every SWEEP_EVERY_S."""
        while True:
            try:
                await self.sweep()
            except ProblemError as refused:
                _log.warning("uploads_not_swept", why=refused.detail)
            await anyio.sleep(SWEEP_INTERVAL_S)

    async def sweep(self) -> None:
        """Forget what has expired, and finish what a crash left complete and no asset. Raises Refused."""
        with translate_errors():
            keys = await to_thread.run_sync(self._states.list_keys)
        for key in keys:
            try:
                await self._sweep_one(key)
            except ProblemError as refused:
                if refused.code == "not_found":
                    await self._remove(key)  # of bytes without a state, too
                else:
                    _log.warning("upload_not_finished", upload=key.id, owner=key.owner, why=refused.detail)

    async def _sweep_one(self, key: UploadKey) -> None:
        if not (await self._get_upload(*key)).writer.is_held:
            async with self._exclusive(*key) as (held, _):
                await self._finish(held)

    async def _check_room(self, owner: str, length: int | None, had: int = 0) -> None:
        """Raises Refused for a `length`, of which `had` are here, that is too much; for an owner that is deleted."""
        if length is not None and length > self.limit:
            raise ProblemError(
                "body_too_large", f"an upload may have at most {self.limit} bytes: make the file smaller"
            )
        if self._quotas is None:
            return
        with translate_errors():
            room = await self._quotas.bytes_left(owner)
        if room is not None and length is not None and length - had > room:
            raise quota_exceeded(room)

    async def _get_upload(self, owner: str, upload_id: str) -> _OpenUpload:
        key = UploadKey(owner, upload_id)
        if key not in self._uploads and is_token(upload_id):
            with translate_errors():
                upload = await to_thread.run_sync(self._states.load, key)
            if upload is not None:
                self._uploads.setdefault(key, _OpenUpload(upload))
        held = self._uploads.get(key)
        if held is not None and not held.writer.is_held and held.upload.expires <= self._clock():
            await self._remove(key)
            held = None
        if held is None:
            raise _upload_not_found(upload_id)
        return held

    @asynccontextmanager
    async def _exclusive(self, owner: str, upload_id: str) -> AsyncIterator[tuple[_OpenUpload, WriterTurn]]:
        """The upload and a turn at it. Raises Refused `not_found`, `upload_locked`."""
        held = await self._get_upload(owner, upload_id)
        async with held.writer.acquire() as turn:
            if self._uploads.get(held.upload.key) is not held:  # it was removed while this one waited
                raise _upload_not_found(upload_id)
            yield held, turn

    async def _set_length(self, held: _OpenUpload, length: int) -> None:
        if held.upload.length not in {None, length} or length < held.upload.offset:
            raise ProblemError("input_invalid", "the length of this upload was said already, and was another")
        if held.upload.length is None:
            async with self._promising:
                await self._check_room(held.upload.owner, length, held.upload.offset)
                upload = structs.replace(held.upload, length=length)
                with translate_errors():
                    await to_thread.run_sync(self._states.save, upload)
                held.upload = upload

    async def _write_chunk(self, held: _OpenUpload, piece: UploadChunk, turn: WriterTurn) -> None:
        upload, checksum = held.upload, piece.checksum
        room = (self.limit if upload.length is None else upload.length) - upload.offset
        if piece.size is not None and piece.size > room:
            raise ProblemError(
                "body_too_large", f"{piece.size} bytes are sent, {room} are missing to the upload's length"
            )
        chunks = turn.read_until_preempted(piece.chunks)
        checking = hashlib.new(checksum.algorithm, usedforsecurity=False) if checksum else None
        async with self._reserving(held) as reservation, self._open_appender(held) as part:
            if reservation is not None:
                chunks = reservation.meter_chunks(chunks)
            sinks = [part.hasher.update, *([checking.update, part.write] if checking else [part.write_with_checkpoint])]
            await fan_out(chunks, room, sinks)
            if checking and checksum and checking.digest() != checksum.digest:
                raise ProblemError("checksum_mismatch", "the bytes do not have the checksum named: send them again")
            await to_thread.run_sync(self._save_state, part)
            held.hasher = part.hasher

    def _save_state(self, part: UploadAppender) -> None:
        done = part.end_offset == part.upload.length
        part.save(expires=self._expires_at(), final_sha256=part.hasher.hexdigest() if done else None)

    @asynccontextmanager
    async def _reserving(self, held: _OpenUpload) -> AsyncIterator[QuotaReservation | None]:
        """Room for the bytes of an upload without a length, reserved as they come; None where it needs no reservation.

        Bytes that become durable in the block stay reserved to its end. `promised` counts them only then.
        """
        upload = held.upload
        if self._quotas is None or upload.length is not None:
            yield None
            return
        with translate_errors():
            async with self._quotas.reserve(upload.owner, None) as reservation:
                self._growing[upload.key] = upload.offset
                try:
                    yield reservation
                finally:  # without a wait between this and the end of the reservation
                    del self._growing[upload.key]
                    self._grown[upload.owner] += held.upload.offset - upload.offset

    @asynccontextmanager
    async def _open_appender(self, held: _OpenUpload) -> AsyncIterator[UploadAppender]:
        """The bytes, open. Whatever happens, `held` is afterwards what the disk says."""
        with translate_errors():
            part = await to_thread.run_sync(UploadAppender, self._states, held.upload, held.hasher)
            held.hasher = None
            try:
                yield part
            finally:
                held.upload = part.upload
                with CancelScope(shield=True):
                    await to_thread.run_sync(part.close)

    async def _finish(self, held: _OpenUpload) -> Upload:
        """The upload as an asset, once every byte of it is there."""
        upload = held.upload
        if upload.final_sha256 is None or upload.is_stored:
            return upload
        if upload.expected not in {None, upload.final_sha256}:
            await self._remove(upload.key)
            raise ProblemError(
                "digest_mismatch",
                f"the bytes' sha256 is {upload.final_sha256}, not {upload.expected}: "
                "damaged on the way, or the file changed",
            )
        path = self._states.data_path(upload.key)
        await self._assets.import_file(upload.owner, path, upload.final_sha256, upload.name, upload.media_type)
        held.upload, held.hasher = structs.replace(upload, is_stored=True), None
        with translate_errors():
            await to_thread.run_sync(self._states.save, held.upload)
            await to_thread.run_sync(self._states.delete_data, upload.key)
        return held.upload

    async def _remove(self, key: UploadKey) -> None:
        self._uploads.pop(key, None)
        with translate_errors():
            await to_thread.run_sync(self._states.remove, key)

    def _expires_at(self) -> datetime:
        return self._clock() + self._ttl


def _upload_not_found(upload_id: str) -> ProblemError:
    return ProblemError("not_found", f"you have no upload {upload_id[:64]!r}, or it has expired: start it anew")
