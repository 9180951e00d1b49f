"""Multipart bodies: file parts go to temporary files as they come, texts are held in memory; both are bounded.

The framework's own reader holds a text of any length, and 1 MiB of each file. Here a form has MEMORY_BYTES of its files
in memory, the rest in the data folder, and its owner's quota is asked before a byte is written.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import NamedTuple

from litestar.datastructures import FormMultiDict, UploadFile
from multipart import MultipartError, MultipartSegment, PushMultipartParser  # type: ignore[import-untyped] # ships no types

from edge.parts import Parts
from edge.routes.given import AnyRequest, content_length
from edge.services.quotas import Reservation
from edge.services.refusals import refusing
from edge.store.spool import disk_errors
from schemas.errors import Refused

TEXT_BYTES = 1024 * 1024  # of all texts of a form together
SPOOL_BYTES = 64 * 1024  # of one file in memory
MEMORY_BYTES = 1024 * 1024  # of all files of a form in memory
PARTS = 1000
FILES = 100  # each may be an open file of this process
HEAD_BYTES = 1024  # of one part, generously


class Room(NamedTuple):
    """Where the files of a form go. `limit`: bytes of all of them. `reservation`: of the quota, if there is one."""

    limit: int
    folder: Path
    reservation: Reservation | None = None


class _Form:
    """The parts so far, and the one that is coming in."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._bytes = 0  # of the files
        self._files = 0
        self.fields: list[tuple[str, str | UploadFile]] = []
        self._segment: MultipartSegment | None = None
        self._file: UploadFile | None = None
        self._text = bytearray()
        self._texts = 0

    async def take(self, part: MultipartSegment | bytearray | None) -> None:
        """A part's head, a piece of its body, or None: its end."""
        if isinstance(part, MultipartSegment):
            self._segment = part
            if part.filename:
                self._file = self._opened(part, part.filename)
        elif part:
            await self._piece(part)
        elif self._segment is not None:
            self._end(self._segment)

    def _opened(self, part: MultipartSegment, name: str) -> UploadFile:
        self._files += 1
        if self._files > FILES:
            raise Refused("body_too_large", f"a form may have at most {FILES} files: upload them one by one")
        kind = part.content_type or "text/plain"
        upload = UploadFile(content_type=kind, filename=name, headers=dict(part.headerlist))
        upload.file.close()
        in_memory = SPOOL_BYTES if self._files * SPOOL_BYTES <= MEMORY_BYTES else 1  # 0 would mean: all of it
        upload.file = SpooledTemporaryFile(max_size=in_memory, dir=str(self._room.folder))  # noqa: SIM115 - `close` does
        return upload

    async def _piece(self, piece: bytearray) -> None:
        if self._file is not None:
            self._bytes += len(piece)
            if self._bytes > self._room.limit:
                raise _too_large(self._room.limit)
            if self._room.reservation is not None:
                await self._room.reservation.take(len(piece))
            with disk_errors():
                await self._file.write(piece)
            return
        self._texts += len(piece)
        if self._texts > TEXT_BYTES:
            raise Refused("body_too_large", "the texts of a form may have at most 1 MiB: send larger things as files")
        self._text += piece

    def _end(self, segment: MultipartSegment) -> None:
        value = self._file or self._text.decode(segment.charset or "utf-8")
        self.fields.append((segment.name, value))
        self._segment, self._file, self._text = None, None, bytearray()

    async def close(self) -> None:
        """Let go of the files."""
        for value in (self._file, *(value for _, value in self.fields)):
            if isinstance(value, UploadFile):
                await value.close()


def _too_large(limit: int) -> Refused:
    return Refused("body_too_large", f"the files of a form may have at most {limit} bytes: make them smaller")


@asynccontextmanager
async def owners_form(request: AnyRequest, parts: Parts, owner: str) -> AsyncIterator[FormMultiDict]:
    """As `read_form`, with room of the owner's quota for all its files while the block runs: store them `reserved`.

    Refused also quota_exceeded, owner_deleting, store_full, unavailable.
    """
    size = content_length(request)
    # What is left of the body without the texts and the heads of the parts is files.
    files = None if size is None else max(0, size - TEXT_BYTES - PARTS * HEAD_BYTES)
    if files is not None and files > parts.assets.limit:
        raise _too_large(parts.assets.limit)
    with refusing():
        async with (
            parts.quotas.reserving(owner, files) as reservation,
            read_form(request, Room(parts.assets.limit, parts.forms, reservation)) as form,
        ):
            yield form


@asynccontextmanager
async def read_form(request: AnyRequest, room: Room) -> AsyncIterator[FormMultiDict]:
    """The fields of a multipart body, and its files, there while the block runs.

    Refused body_malformed, body_too_large, quota_exceeded.
    """
    form = _Form(room)
    try:
        await _read(request, form)
        for _, value in form.fields:
            if isinstance(value, UploadFile):
                await value.seek(0)
        yield FormMultiDict(form.fields)
    finally:
        await form.close()


async def _read(request: AnyRequest, form: _Form) -> None:
    boundary = request.content_type[1].get("boundary")
    if boundary is None:
        raise Refused("body_malformed", "the multipart body cannot be read: its Content-Type names no boundary")
    try:
        with PushMultipartParser(boundary, max_segment_count=PARTS) as parser:
            async for chunk in request.stream():  # an empty one says that this was all
                for part in parser.parse(chunk):
                    await form.take(part)
                if parser.closed:
                    break
    except (MultipartError, ValueError, LookupError) as error:  # also text that is not of its charset
        raise Refused("body_malformed", f"the multipart body cannot be read: {error}") from error
