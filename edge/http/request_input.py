"""Read what a request brings: query parameters, JSON of at most 1 MiB, and forms whose files become assets.

A query parameter that a route does not have is refused: a misspelt filter would otherwise return everything.

The form reader of the framework keeps texts of any length in memory, and 1 MiB of each file. The reader here bounds
both: FORM_MEMORY_LIMIT_BYTES of all files in memory, the rest in temporary files of the data folder. It reserves quota
before it writes a byte.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple, TypeVar

import msgspec
from litestar.connection import ASGIConnection
from litestar.datastructures import FormMultiDict, UploadFile
from litestar.handlers import HTTPRouteHandler
from litestar.handlers.base import BaseRouteHandler
from litestar.params import QueryParameter
from litestar.types import ASGIApp, Receive, Send
from litestar.types import Scope as AsgiScope
from multipart import MultipartError, MultipartSegment, PushMultipartParser  # type: ignore[import-untyped] # ships no types

from edge.core.concurrency import translate_errors
from edge.core.validation import decode_as, describe_unknown_parameter, input_invalid_problem
from edge.http.dependencies import AnyConnection, AnyRequest, EdgeServices, read_content_length
from edge.http.openapi import EXTRA_PARAMETERS
from edge.owners.quotas import QuotaReservation
from edge.owners.signed_credentials import SIGNED_URL_PARAMETERS
from edge.store.file_io import map_disk_errors
from schemas.asset import DIGEST_SCHEME, choose_media_type
from schemas.credentials import ApiKey, Scope
from schemas.problems import FieldError, ProblemError

T = TypeVar("T")

ANY_PARAMETER = "any_parameter"  # opt of a route that ignores the parameters that it does not know
# On every route: the owner that a request is for, and a token in place of a key.
COMMON_PARAMETERS = ("owner", "token")


class KnownParameters:
    """Litestar middleware that refuses a request with a query parameter that its route does not have: `field_unknown`.

    It is not a guard, because Litestar copies the route's handler for each call of a guard. Routes for programs that
    were written for another service have the opt ANY_PARAMETER.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope.get("query_string"):
            _refuse_unknown_parameters(ASGIConnection(scope), scope["route_handler"])
        await self._app(scope, receive, send)


def _refuse_unknown_parameters(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Raise ProblemError `field_unknown` for a request with a query parameter that its route does not have."""
    if handler.opt.get(ANY_PARAMETER):
        return
    known = list_known_parameters(handler)
    unknown = [name for name in connection.query_params if name not in known and name not in SIGNED_URL_PARAMETERS]
    if unknown:
        errors = tuple(
            FieldError(f"$.{name}", describe_unknown_parameter(name, known)) for name in dict.fromkeys(unknown)
        )
        raise ProblemError("field_unknown", f"{errors[0].path}: {errors[0].message}", errors=errors)


@cache
def list_known_parameters(handler: BaseRouteHandler) -> frozenset[str]:
    """Return the names that the handler of a route reads, itself or by its parameters."""
    names = {
        parameter.kwarg_definition.name or name
        for name, parameter in handler.parsed_fn_signature.parameters.items()
        if isinstance(parameter.kwarg_definition, QueryParameter)
    }
    methods = handler.http_methods if isinstance(handler, HTTPRouteHandler) else ()
    for path in handler.paths:
        for method in methods:
            described = EXTRA_PARAMETERS.get((path.replace(":str}", "}"), method.lower()), ())
            names |= {parameter.name for parameter in described if parameter.param_in == "query"}
    return frozenset((*names, *COMMON_PARAMETERS))


JSON_BODY_LIMIT_BYTES = 1024 * 1024
READ_CHUNK_BYTES = 1024 * 1024
FORM_TEXT_LIMIT_BYTES = 1024 * 1024  # of all texts of a form
FILE_MEMORY_LIMIT_BYTES = 64 * 1024  # of one file
FORM_MEMORY_LIMIT_BYTES = 1024 * 1024  # of all files of a form
FORM_PART_LIMIT = 1000
FORM_FILE_LIMIT = 100  # each may need an open file descriptor
PART_HEAD_BYTES = 1024  # a generous estimate for the headers of one part
JOB_FIELD = "job"
PLACEHOLDER_DIGEST = DIGEST_SCHEME + "0" * 64  # stands for a file of the form until the file is stored


async def read_json(request: AnyRequest) -> dict[str, Any]:
    """Return the body as a JSON object. Raises ProblemError body_too_large (over 1 MiB) or body_malformed."""
    return parse_object(await _read_limited(request.stream()))


async def read_struct(request: AnyRequest, kind: type[T]) -> T:
    """Return the body as a `kind`. Raises ProblemError as `read_json` does, and field_unknown or input_invalid."""
    return decode_as(await read_json(request), kind)


async def _read_limited(chunks: AsyncIterator[bytes]) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > JSON_BODY_LIMIT_BYTES:
            raise ProblemError("body_too_large", "a JSON body may have at most 1 MiB: upload large files as assets")
    return bytes(body)


def parse_object(text: bytes) -> dict[str, Any]:
    """Return `text` as a JSON object. Raises ProblemError `body_malformed`."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError("body_malformed", f"the body is not JSON ({error}): send a JSON object") from error
    if not isinstance(value, dict):
        raise ProblemError("body_malformed", "the body is not a JSON object: send one")
    return value


async def read_chunks(upload: UploadFile) -> AsyncIterator[bytes]:
    """Yield the bytes of a file part."""
    while chunk := await upload.read(READ_CHUNK_BYTES):
        yield chunk


def is_form(request: AnyRequest) -> bool:
    """Return whether the body is multipart."""
    return request.content_type[0].startswith("multipart/form-data")


async def store_file_part(services: EdgeServices, owner: str, upload: UploadFile) -> str:
    """Store a file of an `open_owner_form` as the owner's asset. Return its `sha256:…`."""
    name = upload.filename or "file"
    kind = choose_media_type(upload.content_type, name)
    _, sha256, _ = await services.assets.put(owner, read_chunks(upload), None, name, kind, reserved=True)
    return f"{DIGEST_SCHEME}{sha256}"


async def read_submission(request: AnyRequest, services: EdgeServices, owner: str) -> dict[str, Any]:
    """Return the body of a submit: JSON, or multipart with the field `job` and one file per asset input.

    Raises ProblemError `forbidden` for files with a key that may not store assets.
    """
    if not is_form(request):
        return await read_json(request)
    key: ApiKey = request.auth
    async with open_owner_form(request, services, owner) as form:
        body = await _parse_job_field(form.getall(JOB_FIELD, []))
        job_input = body.setdefault("input", {})
        if not isinstance(job_input, dict):
            raise ProblemError("body_malformed", "'input' in the field 'job' must be an object")
        files = _file_parts(form, job_input)
        if files and not key.allows(Scope.ASSETS_WRITE):
            raise ProblemError("forbidden", f"the key lacks the scope {Scope.ASSETS_WRITE}, which files in a form need")
        await services.jobs.validate(body | {"input": job_input | dict.fromkeys(files, PLACEHOLDER_DIGEST)})
        for name, upload in files.items():
            job_input[name] = await store_file_part(services, owner, upload)
    return body


async def _parse_job_field(fields: list[Any]) -> dict[str, Any]:
    """Return the JSON of the field `job`. Browsers and `curl -F job=@job.json` send it as a file."""
    if len(fields) != 1:
        raise ProblemError(
            "body_malformed", "a multipart submit needs exactly one field 'job', with the JSON of the job"
        )
    (job,) = fields
    if isinstance(job, UploadFile):
        return parse_object(await _read_limited(read_chunks(job)))
    return parse_object(job.encode())


def _file_parts(form: FormMultiDict, job_input: dict[str, Any]) -> dict[str, UploadFile]:
    """Return the files by input name. Raises ProblemError for another text field, or an input that occurs twice."""
    files: dict[str, UploadFile] = {}
    for name, part in form.multi_items():
        if name == JOB_FIELD:
            continue
        if not isinstance(part, UploadFile):
            error = FieldError(f"$.{name}", "is not a file: a form has the field 'job' and a file for each asset input")
            raise ProblemError("field_unknown", f"{error.path}: {error.message}", errors=(error,))
        if name in files or name in job_input:
            raise input_invalid_problem(FieldError(f"$.input.{name}", "occurs twice: send it once"))
        files[name] = part
    return files


class FormStorage(NamedTuple):
    """The folder for the files of a form, the limit of all files, and the quota reservation, if any."""

    limit_bytes: int
    folder: Path
    reservation: QuotaReservation | None = None


class _FormReader:
    """The parts that were read so far, and the part in progress."""

    def __init__(self, storage: FormStorage) -> None:
        self._storage = storage
        self._file_bytes = 0
        self._file_count = 0
        self.fields: list[tuple[str, str | UploadFile]] = []
        self._segment: MultipartSegment | None = None
        self._file: UploadFile | None = None
        self._text = bytearray()
        self._text_bytes = 0

    async def feed(self, event: MultipartSegment | bytearray | None) -> None:
        """Handle the head of a part, a chunk of its body, or its end (None)."""
        if isinstance(event, MultipartSegment):
            self._segment = event
            if event.filename:
                self._file = self._open_file(event, event.filename)
        elif event:
            await self._write_chunk(event)
        elif self._segment is not None:
            self._end_part(self._segment)

    def _open_file(self, segment: MultipartSegment, name: str) -> UploadFile:
        self._file_count += 1
        if self._file_count > FORM_FILE_LIMIT:
            raise ProblemError(
                "body_too_large", f"a form may have at most {FORM_FILE_LIMIT} files: upload the others one by one"
            )
        kind = segment.content_type or "text/plain"
        upload = UploadFile(content_type=kind, filename=name, headers=dict(segment.headerlist))
        upload.file.close()
        in_memory = (
            FILE_MEMORY_LIMIT_BYTES if self._file_count * FILE_MEMORY_LIMIT_BYTES <= FORM_MEMORY_LIMIT_BYTES else 1
        )  # 0 would keep the whole file in memory
        upload.file = SpooledTemporaryFile(max_size=in_memory, dir=str(self._storage.folder))  # noqa: SIM115 - `close` does
        return upload

    async def _write_chunk(self, chunk: bytearray) -> None:
        if self._file is not None:
            self._file_bytes += len(chunk)
            if self._file_bytes > self._storage.limit_bytes:
                raise _form_too_large(self._storage.limit_bytes)
            if self._storage.reservation is not None:
                await self._storage.reservation.use(len(chunk))
            with map_disk_errors():
                await self._file.write(chunk)
            return
        self._text_bytes += len(chunk)
        if self._text_bytes > FORM_TEXT_LIMIT_BYTES:
            raise ProblemError(
                "body_too_large", "the texts of a form may have at most 1 MiB: send large values as files"
            )
        self._text += chunk

    def _end_part(self, segment: MultipartSegment) -> None:
        value = self._file or self._text.decode(segment.charset or "utf-8")
        self.fields.append((segment.name, value))
        self._segment, self._file, self._text = None, None, bytearray()

    async def close(self) -> None:
        """Close the files, which deletes their temporary files."""
        for value in (self._file, *(value for _, value in self.fields)):
            if isinstance(value, UploadFile):
                await value.close()


def _form_too_large(limit: int) -> ProblemError:
    return ProblemError(
        "body_too_large", f"the files of a form may have at most {limit} bytes: send smaller or fewer files"
    )


@asynccontextmanager
async def open_owner_form(request: AnyRequest, services: EdgeServices, owner: str) -> AsyncIterator[FormMultiDict]:
    """Open a form as `open_form` does, with quota reserved for its files. Store them with `reserved=True`.

    Raises ProblemError as `open_form` does, and quota_exceeded, owner_deleting, store_full, unavailable.
    """
    size = read_content_length(request)
    # A lower bound: the body without the most that texts and heads of parts can take.
    files = None if size is None else max(0, size - FORM_TEXT_LIMIT_BYTES - FORM_PART_LIMIT * PART_HEAD_BYTES)
    if files is not None and files > services.assets.limit:
        raise _form_too_large(services.assets.limit)
    with translate_errors():
        async with (
            services.quotas.reserve(owner, files) as reservation,
            open_form(request, FormStorage(services.assets.limit, services.form_dir, reservation)) as form,
        ):
            yield form


@asynccontextmanager
async def open_form(request: AnyRequest, storage: FormStorage) -> AsyncIterator[FormMultiDict]:
    """Read a multipart body. Its files exist for the duration of the block.

    Raises ProblemError body_malformed, body_too_large, quota_exceeded.
    """
    form = _FormReader(storage)
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
        raise ProblemError("body_malformed", "the multipart body cannot be parsed: its Content-Type names no boundary")
    try:
        with PushMultipartParser(boundary, max_segment_count=FORM_PART_LIMIT) as parser:
            async for chunk in request.stream():  # an empty chunk marks the end
                for event in parser.parse(chunk):
                    await form.feed(event)
                if parser.closed:
                    break
    except (
        MultipartError,
        ValueError,
        LookupError,
    ) as error:  # ValueError and LookupError: text that does not match its charset
        raise ProblemError("body_malformed", f"the multipart body cannot be parsed: {error}") from error
