"""Multipart bodies: file parts go to temporary files as they come, texts are held in memory; both are bounded.

The framework's own reader holds a text of any length: a part without a file name is enough to fill the memory.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar.datastructures import FormMultiDict, UploadFile
from multipart import MultipartError, MultipartSegment, PushMultipartParser  # type: ignore[import-untyped] # ships no types

from edge.routes.given import AnyRequest
from schemas.errors import Refused

TEXT_BYTES = 1024 * 1024  # of all texts of a form together
PARTS = 1000


class _Form:
    """The parts so far, and the one that is coming in. `limit`: bytes of the largest file."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0  # of the file that is coming in
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
                kind = part.content_type or "text/plain"
                self._file = UploadFile(content_type=kind, filename=part.filename, headers=dict(part.headerlist))
        elif part:
            await self._piece(part)
        elif self._segment is not None:
            self._end(self._segment)

    async def _piece(self, piece: bytearray) -> None:
        if self._file is not None:
            self._bytes += len(piece)
            if self._bytes > self._limit:
                raise Refused("body_too_large", f"a file may have at most {self._limit} bytes: make it smaller")
            await self._file.write(piece)
            return
        self._texts += len(piece)
        if self._texts > TEXT_BYTES:
            raise Refused("body_too_large", "the texts of a form may have at most 1 MiB: send larger things as files")
        self._text += piece

    def _end(self, segment: MultipartSegment) -> None:
        value = self._file or self._text.decode(segment.charset or "utf-8")
        self.fields.append((segment.name, value))
        self._segment, self._file, self._text, self._bytes = None, None, bytearray(), 0

    async def close(self) -> None:
        """Let go of the files."""
        for value in (self._file, *(value for _, value in self.fields)):
            if isinstance(value, UploadFile):
                await value.close()


@asynccontextmanager
async def read_form(request: AnyRequest, limit: int) -> AsyncIterator[FormMultiDict]:
    """The fields of a multipart body, and its files of at most `limit` bytes each, there while the block runs.

    Refused body_malformed, body_too_large.
    """
    form = _Form(limit)
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
