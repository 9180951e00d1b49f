"""Uploads that go on where they were cut: over connections, and over restarts of the edge."""

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

from edge.services.assets import Assets
from edge.services.clock import Clock, Entropy
from edge.services.pieces import Piece, Wanted
from edge.services.quotas import Quotas, Reservation, no_room
from edge.services.refusals import refusing
from edge.services.turns import Turn, Turns
from edge.store.partial import Appending, Partials, Upload, UploadKey
from edge.store.pipeline import pour
from schemas.errors import Refused
from schemas.words import is_token

SWEEP_EVERY_S = 300.0
_ID_BYTES = 16

log = structlog.get_logger()


class UploadSettings(Struct, frozen=True):
    """`ttl_s`: an upload to which nothing comes for so long is forgotten. `max_open`: how many an owner may have."""

    ttl_s: Annotated[float, Meta(gt=0)] = 86_400.0
    max_open: Annotated[int, Meta(ge=1)] = 1000


class _Held:
    """An upload that this process has seen. `hasher`: of its bytes up to the offset, None: they must be re-read."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.hasher: hashlib._Hash | None = hashlib.sha256() if upload.offset == 0 else None
        self.turns = Turns()


class Uploads:
    """All uploads of one edge. `limit`: bytes of the largest."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with, and three bounds
        self,
        partials: Partials,
        assets: Assets,
        clock: Clock,
        entropy: Entropy,
        settings: UploadSettings,
        limit: int,
        quotas: Quotas | None = None,
    ) -> None:
        self._partials = partials
        self._assets = assets
        self._clock = clock
        self._entropy = entropy
        self._ttl = timedelta(seconds=settings.ttl_s)
        self._max_open = settings.max_open
        self.limit = limit
        self._quotas = quotas
        self._known: dict[UploadKey, _Held] = {}
        self._promising = anyio.Lock()
        self._growing: dict[UploadKey, int] = {}  # uploads without a length that are being sent, by their offset before
        self._grown: Counter[str] = Counter()  # bytes that they brought in all, by owner

    async def create(self, owner: str, wanted: Wanted) -> Upload:
        """A new upload, durable. Raises Refused `body_too_large`, `quota_exceeded`, `store_full`.

        One after the other: what one of them is promised must be written before the next is measured.
        """
        async with self._promising:
            return await self._create(owner, wanted)

    async def _create(self, owner: str, wanted: Wanted) -> Upload:
        await self._check_room(owner, wanted.length)
        with refusing():
            if await to_thread.run_sync(self._partials.unfinished, owner) >= self._max_open:
                raise Refused("quota_exceeded", f"{self._max_open} uploads are open: end or delete some of them first")
            upload = Upload(
                **structs.asdict(wanted), id=self._entropy(_ID_BYTES).hex(), owner=owner, expires=self._expiry()
            )
            await to_thread.run_sync(self._partials.begin, upload)
        self._known[upload.key] = _Held(upload)
        return upload

    async def promised(self, owner: str) -> int:
        """How many bytes the owner's uploads here have, or are to have, that are no assets yet. Raises StoreError.

        Bytes that have a reservation are not among them. Those whose reservation ends while the folder is read are.
        """
        grown, growing = self._grown[owner], dict(self._growing)
        promised = await to_thread.run_sync(self._partials.promised, owner, growing)
        return promised + self._grown[owner] - grown

    async def look(self, owner: str, upload_id: str) -> Upload:
        """How far it is. Raises Refused `not_found`.

        A connection that has fallen silent is ended first, so that the offset told is the one to go on from; and an
        upload that a crash kept from becoming an asset becomes one.
        """
        held = await self._held(owner, upload_id)
        try:
            await held.turns.free()
        except Refused:  # somebody is sending: what is durable so far is told
            return held.upload
        async with self._at(owner, upload_id) as (held, _):
            return await self._finished(held)

    async def append(self, owner: str, upload_id: str, piece: Piece) -> Upload:
        """Take what comes; the upload as it is then, and durable. It became an asset if that was the rest of it.

        A body that ends early has brought what it brought. Raises Refused: `not_found`, `upload_locked`,
        `offset_mismatch`, `body_too_large`, `checksum_mismatch`, `digest_mismatch` (then it is gone), `store_full`.
        """
        async with self._at(owner, upload_id) as (held, turn):
            if piece.offset != held.upload.offset:
                raise Refused("offset_mismatch", f"the upload stands at {held.upload.offset}: go on from there")
            if piece.length is not None:
                await self._lengthen(held, piece.length)
            if held.upload.whole is None:
                await self._receive(held, piece, turn)
            return await self._finished(held)

    async def remove(self, owner: str, upload_id: str) -> None:
        """End it, whatever has come and whoever is sending. What became an asset stays one. Raises Refused
        `not_found`, `upload_locked`."""
        held = await self._held(owner, upload_id)
        await held.turns.end()
        async with self._at(owner, upload_id):
            await self._forget(held.upload.key)

    async def remove_all(self, owner: str) -> int:
        """End every upload of the owner, for a deletion; how many there were. Raises Refused."""
        with refusing():
            keys = await to_thread.run_sync(self._partials.keys, owner)
        for key in keys:
            if key in self._known:
                await self._known[key].turns.end()
            await self._forget(key)
        return len(keys)

    async def run(self) -> None:
        """Sweep at start, then every SWEEP_EVERY_S."""
        while True:
            try:
                await self.sweep()
            except Refused as refused:
                log.warning("uploads_not_swept", why=refused.detail)
            await anyio.sleep(SWEEP_EVERY_S)

    async def sweep(self) -> None:
        """Forget what has expired, and finish what a crash left complete and no asset. Raises Refused."""
        with refusing():
            keys = await to_thread.run_sync(self._partials.keys)
        for key in keys:
            try:
                await self._swept(key)
            except Refused as refused:
                if refused.code == "not_found":
                    await self._forget(key)  # of bytes without a state, too
                else:
                    log.warning("upload_not_finished", upload=key.id, owner=key.owner, why=refused.detail)

    async def _swept(self, key: UploadKey) -> None:
        if not (await self._held(*key)).turns.taken:
            async with self._at(*key) as (held, _):
                await self._finished(held)

    async def _check_room(self, owner: str, length: int | None, had: int = 0) -> None:
        """Raises Refused for a `length`, of which `had` are here, that is too much; for an owner that is deleted."""
        if length is not None and length > self.limit:
            raise Refused("body_too_large", f"an upload may have at most {self.limit} bytes: make the file smaller")
        if self._quotas is None:
            return
        with refusing():
            room = await self._quotas.room(owner)
        if room is not None and length is not None and length - had > room:
            raise no_room(room)

    async def _held(self, owner: str, upload_id: str) -> _Held:
        key = UploadKey(owner, upload_id)
        if key not in self._known and is_token(upload_id):
            with refusing():
                upload = await to_thread.run_sync(self._partials.load, key)
            if upload is not None:
                self._known.setdefault(key, _Held(upload))
        held = self._known.get(key)
        if held is not None and not held.turns.taken and held.upload.expires <= self._clock():
            await self._forget(key)
            held = None
        if held is None:
            raise _unknown(upload_id)
        return held

    @asynccontextmanager
    async def _at(self, owner: str, upload_id: str) -> AsyncIterator[tuple[_Held, Turn]]:
        """The upload and a turn at it. Raises Refused `not_found`, `upload_locked`."""
        held = await self._held(owner, upload_id)
        async with held.turns.take() as turn:
            if self._known.get(held.upload.key) is not held:  # it was removed while this one waited
                raise _unknown(upload_id)
            yield held, turn

    async def _lengthen(self, held: _Held, length: int) -> None:
        if held.upload.length not in {None, length} or length < held.upload.offset:
            raise Refused("input_invalid", "the length of this upload was said already, and was another")
        if held.upload.length is None:
            async with self._promising:
                await self._check_room(held.upload.owner, length, held.upload.offset)
                upload = structs.replace(held.upload, length=length)
                with refusing():
                    await to_thread.run_sync(self._partials.save, upload)
                held.upload = upload

    async def _receive(self, held: _Held, piece: Piece, turn: Turn) -> None:
        upload, checksum = held.upload, piece.checksum
        room = (self.limit if upload.length is None else upload.length) - upload.offset
        if piece.size is not None and piece.size > room:
            raise Refused("body_too_large", f"{piece.size} bytes are sent, {room} are missing to the upload's length")
        chunks = turn.heard(piece.chunks)
        checking = hashlib.new(checksum.algorithm, usedforsecurity=False) if checksum else None
        async with self._reserving(held) as reservation, self._appending(held) as part:
            if reservation is not None:
                chunks = reservation.metered(chunks)
            sinks = [part.hasher.update, *([checking.update, part.write] if checking else [part.checkpoint])]
            await pour(chunks, room, sinks)
            if checking and checksum and checking.digest() != checksum.digest:
                raise Refused("checksum_mismatch", "the bytes do not have the checksum named: send them again")
            await to_thread.run_sync(self._save, part)
            held.hasher = part.hasher

    def _save(self, part: Appending) -> None:
        done = part.end == part.upload.length
        part.save(expires=self._expiry(), whole=part.hasher.hexdigest() if done else None)

    @asynccontextmanager
    async def _reserving(self, held: _Held) -> AsyncIterator[Reservation | None]:
        """Room for the bytes of an upload without a length, reserved as they come; None where it needs no reservation.

        Bytes that become durable in the block stay reserved to its end. `promised` counts them only then.
        """
        upload = held.upload
        if self._quotas is None or upload.length is not None:
            yield None
            return
        with refusing():
            async with self._quotas.reserving(upload.owner, None) as reservation:
                self._growing[upload.key] = upload.offset
                try:
                    yield reservation
                finally:  # without a wait between this and the end of the reservation
                    del self._growing[upload.key]
                    self._grown[upload.owner] += held.upload.offset - upload.offset

    @asynccontextmanager
    async def _appending(self, held: _Held) -> AsyncIterator[Appending]:
        """The bytes, open. Whatever happens, `held` is afterwards what the disk says."""
        with refusing():
            part = await to_thread.run_sync(Appending, self._partials, held.upload, held.hasher)
            held.hasher = None
            try:
                yield part
            finally:
                held.upload = part.upload
                with CancelScope(shield=True):
                    await to_thread.run_sync(part.close)

    async def _finished(self, held: _Held) -> Upload:
        """The upload as an asset, once every byte of it is there."""
        upload = held.upload
        if upload.whole is None or upload.kept:
            return upload
        if upload.expected not in {None, upload.whole}:
            await self._forget(upload.key)
            raise Refused(
                "digest_mismatch",
                f"the bytes' sha256 is {upload.whole}, not {upload.expected}: damaged on the way, or the file changed",
            )
        path = self._partials.bytes_of(upload.key)
        await self._assets.adopt(upload.owner, path, upload.whole, upload.name, upload.media_type)
        held.upload, held.hasher = structs.replace(upload, kept=True), None
        with refusing():
            await to_thread.run_sync(self._partials.save, held.upload)
            await to_thread.run_sync(self._partials.drop_bytes, upload.key)
        return held.upload

    async def _forget(self, key: UploadKey) -> None:
        self._known.pop(key, None)
        with refusing():
            await to_thread.run_sync(self._partials.remove, key)

    def _expiry(self) -> datetime:
        return self._clock() + self._ttl


def _unknown(upload_id: str) -> Refused:
    return Refused("not_found", f"you have no upload {upload_id[:64]!r}, or it has expired: start it anew")
