"""Reading request bodies: JSON of at most 1 MiB, and multipart forms whose file parts become assets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple, TypeVar

import msgspec
from litestar.datastructures import FormMultiDict, UploadFile
from multipart import MultipartError, MultipartSegment, PushMultipartParser  # type: ignore[import-untyped] # ships no types

from edge.core.error_handling import translate_errors
from edge.core.validation import decode_as, input_invalid_problem
from edge.http.dependencies import AnyRequest, EdgeServices, read_content_length
from edge.owners.quotas import QuotaReservation
from edge.store.atomic_write import map_disk_errors
from schemas.asset import DIGEST_SCHEME, choose_media_type
from schemas.auth import ApiKey, Scope
from schemas.problems import FieldError, ProblemError

JSON_BODY_LIMIT_BYTES = 1024 * 1024
READ_CHUNK_BYTES = 1024 * 1024
MALFORMED = 400
JOB_FIELD = "job"
PLACEHOLDER_DIGEST = DIGEST_SCHEME + "0" * 64  # stands for a file of the form until it is kept

T = TypeVar("T")


async def read_json(request: AnyRequest) -> dict[str, Any]:
    """The body as an object. Refused: body_too_large past 1 MiB, body_malformed when it is no JSON object."""
    return parse_object(await _read_limited(request.stream()))


async def read_struct(request: AnyRequest, kind: type[T]) -> T:
    """The body as a `kind`. Refused as by `read_json`, and field_unknown or input_invalid, naming the path."""
    return decode_as(await read_json(request), kind)


async def _read_limited(chunks: AsyncIterator[bytes]) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > JSON_BODY_LIMIT_BYTES:
            raise ProblemError("body_too_large", "a JSON body may have at most 1 MiB: upload larger things as assets")
    return bytes(body)


def parse_object(text: bytes) -> dict[str, Any]:
    """`text` as a JSON object. Refused body_malformed."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError("body_malformed", f"the body is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProblemError("body_malformed", "the body must be a JSON object")
    return value


async def read_chunks(upload: UploadFile) -> AsyncIterator[bytes]:
    """The bytes of a file part."""
    while piece := await upload.read(READ_CHUNK_BYTES):
        yield piece


def is_form(request: AnyRequest) -> bool:
    """Whether the body is multipart."""
    return request.content_type[0].startswith("multipart/form-data")


async def store_file_part(parts: EdgeServices, owner: str, upload: UploadFile) -> str:
    """Keep a file part of an `owners_form` as the owner's asset; its `sha256:…`."""
    name = upload.filename or "file"
    kind = choose_media_type(upload.content_type, name)
    _, sha256, _ = await parts.assets.put(owner, read_chunks(upload), None, name, kind, reserved=True)
    return f"{DIGEST_SCHEME}{sha256}"


async def read_submission(request: AnyRequest, parts: EdgeServices, owner: str) -> dict[str, Any]:
    """The body of a submit: JSON, or multipart with the field `job` and one file part per asset input.

    Refused `forbidden` where files come with a key that may not store any.
    """
    if not is_form(request):
        return await read_json(request)
    key: ApiKey = request.auth
    async with open_owner_form(request, parts, owner) as form:
        body = await _parse_job_field(form.getall(JOB_FIELD, []))
        given = body.setdefault("input", {})
        if not isinstance(given, dict):
            raise ProblemError("body_malformed", "'input' in the field 'job' must be an object")
        files = _file_parts(form, given)
        if files and not key.allows(Scope.ASSETS_WRITE):
            raise ProblemError("forbidden", f"the key lacks the scope {Scope.ASSETS_WRITE}, which files in a form need")
        await parts.jobs.validate(body | {"input": given | dict.fromkeys(files, PLACEHOLDER_DIGEST)})
        for name, upload in files.items():
            given[name] = await store_file_part(parts, owner, upload)
    return body


async def _parse_job_field(fields: list[Any]) -> dict[str, Any]:
    """The JSON in the field `job`; browsers and `curl -F job=@job.json` send it as a file."""
    if len(fields) != 1:
        raise ProblemError("body_malformed", "a multipart submit needs the field 'job', once, with the JSON of the job")
    (job,) = fields
    if isinstance(job, UploadFile):
        return parse_object(await _read_limited(read_chunks(job)))
    return parse_object(job.encode())


def _file_parts(form: FormMultiDict, given: dict[str, Any]) -> dict[str, UploadFile]:
    """The file parts by the input they are for. Refused: a text field but `job`, an input that is given twice."""
    files: dict[str, UploadFile] = {}
    for name, part in form.multi_items():
        if name == JOB_FIELD:
            continue
        if not isinstance(part, UploadFile):
            error = FieldError(f"$.{name}", "is no file: a form has the field 'job' and a file for each asset input")
            raise ProblemError("field_unknown", f"{error.path}: {error.message}", errors=(error,))
        if name in files or name in given:
            raise input_invalid_problem(FieldError(f"$.input.{name}", "is given twice"))
        files[name] = part
    return files


# MERGED edge/routes/forms.py: Multipart bodies: file parts go to temporary files as they come, texts are held in
# memory; both are bounded. / The framework's own reader holds a text of any length, and 1 MiB of each file. Here a
# form has MEMORY_BYTES of its files / in memory, the rest in the data folder, and its owner's quota is asked before a
# byte is written.


FORM_TEXT_LIMIT_BYTES = 1024 * 1024  # of all texts of a form together
FILE_MEMORY_LIMIT_BYTES = 64 * 1024  # of one file in memory
FORM_MEMORY_LIMIT_BYTES = 1024 * 1024  # of all files of a form in memory
FORM_PART_LIMIT = 1000
FORM_FILE_LIMIT = 100  # each may be an open file of this process
PART_HEAD_BYTES = 1024  # of one part, generously


class FormStorage(NamedTuple):
    """Where the files of a form go. `limit`: bytes of all of them. `reservation`: of the quota, if there is one."""

    limit_bytes: int
    folder: Path
    reservation: QuotaReservation | None = None


class _FormReader:
    """The parts so far, and the one that is coming in."""

    def __init__(self, room: FormStorage) -> None:
        self._storage = room
        self._file_bytes = 0  # of the files
        self._file_count = 0
        self.fields: list[tuple[str, str | UploadFile]] = []
        self._segment: MultipartSegment | None = None
        self._file: UploadFile | None = None
        self._text = bytearray()
        self._text_bytes = 0

    async def feed(self, part: MultipartSegment | bytearray | None) -> None:
        """A part's head, a piece of its body, or None: its end."""
        if isinstance(part, MultipartSegment):
            self._segment = part
            if part.filename:
                self._file = self._open_file(part, part.filename)
        elif part:
            await self._write_chunk(part)
        elif self._segment is not None:
            self._end_part(self._segment)

    def _open_file(self, part: MultipartSegment, name: str) -> UploadFile:
        self._file_count += 1
        if self._file_count > FORM_FILE_LIMIT:
            raise ProblemError(
                "body_too_large", f"a form may have at most {FORM_FILE_LIMIT} files: upload them one by one"
            )
        kind = part.content_type or "text/plain"
        upload = UploadFile(content_type=kind, filename=name, headers=dict(part.headerlist))
        upload.file.close()
        in_memory = (
            FILE_MEMORY_LIMIT_BYTES if self._file_count * FILE_MEMORY_LIMIT_BYTES <= FORM_MEMORY_LIMIT_BYTES else 1
        )  # 0 would mean: all of it
        upload.file = SpooledTemporaryFile(max_size=in_memory, dir=str(self._storage.folder))  # noqa: SIM115 - `close` does
        return upload

    async def _write_chunk(self, piece: bytearray) -> None:
        if self._file is not None:
            self._file_bytes += len(piece)
            if self._file_bytes > self._storage.limit_bytes:
                raise _form_too_large(self._storage.limit_bytes)
            if self._storage.reservation is not None:
                await self._storage.reservation.use(len(piece))
            with map_disk_errors():
                await self._file.write(piece)
            return
        self._text_bytes += len(piece)
        if self._text_bytes > FORM_TEXT_LIMIT_BYTES:
            raise ProblemError(
                "body_too_large", "the texts of a form may have at most 1 MiB: send larger things as files"
            )
        self._text += piece

    def _end_part(self, segment: MultipartSegment) -> None:
        value = self._file or self._text.decode(segment.charset or "utf-8")
        self.fields.append((segment.name, value))
        self._segment, self._file, self._text = None, None, bytearray()

    async def close(self) -> None:
        """Let go of the files."""
        for value in (self._file, *(value for _, value in self.fields)):
            if isinstance(value, UploadFile):
                await value.close()


def _form_too_large(limit: int) -> ProblemError:
    return ProblemError("body_too_large", f"the files of a form may have at most {limit} bytes: make them smaller")


@asynccontextmanager
async def open_owner_form(request: AnyRequest, parts: EdgeServices, owner: str) -> AsyncIterator[FormMultiDict]:
    """As `read_form`, with room of the owner's quota for all its files while the block runs: store them `reserved`.

    Refused also quota_exceeded, owner_deleting, store_full, unavailable.
    """
    size = read_content_length(request)
    # What is left of the body without the texts and the heads of the parts is files.
    files = None if size is None else max(0, size - FORM_TEXT_LIMIT_BYTES - FORM_PART_LIMIT * PART_HEAD_BYTES)
    if files is not None and files > parts.assets.limit:
        raise _form_too_large(parts.assets.limit)
    with translate_errors():
        async with (
            parts.quotas.reserve(owner, files) as reservation,
            open_form(request, FormStorage(parts.assets.limit, parts.form_dir, reservation)) as form,
        ):
            yield form


@asynccontextmanager
async def open_form(request: AnyRequest, room: FormStorage) -> AsyncIterator[FormMultiDict]:
    """The fields of a multipart body, and its files, there while the block runs.

    Refused body_malformed, body_too_large, quota_exceeded.
    """
    form = _FormReader(room)
    try:
        await _parse_form(request, form)
        for _, value in form.fields:
            if isinstance(value, UploadFile):
                await value.seek(0)
        yield FormMultiDict(form.fields)
    finally:
        await form.close()


async def _parse_form(request: AnyRequest, form: _FormReader) -> None:
    boundary = request.content_type[1].get("boundary")
    if boundary is None:
        raise ProblemError("body_malformed", "the multipart body cannot be read: its Content-Type names no boundary")
    try:
        with PushMultipartParser(boundary, max_segment_count=FORM_PART_LIMIT) as parser:
            async for chunk in request.stream():  # an empty one says that this was all
                for part in parser.parse(chunk):
                    await form.feed(part)
                if parser.closed:
                    break
    except (MultipartError, ValueError, LookupError) as error:  # also text that is not of its charset
        raise ProblemError("body_malformed", f"the multipart body cannot be read: {error}") from error
