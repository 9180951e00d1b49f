"""Reading request bodies: JSON of at most 1 MiB, and multipart forms whose file parts become assets."""

from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec
from litestar.datastructures import FormMultiDict, UploadFile

from edge.parts import Parts
from edge.routes.forms import owners_form
from edge.routes.given import AnyRequest
from edge.services.inputs import invalid
from edge.services.submission import read_as
from schemas.access import ApiKey, Scope
from schemas.asset import SCHEME, declared_type
from schemas.errors import FieldError, Refused

JSON_BYTES = 1024 * 1024
PIECE = 1024 * 1024
MALFORMED = 400
JOB = "job"
NOT_YET = SCHEME + "0" * 64  # stands for a file of the form until it is kept

T = TypeVar("T")


async def read_json(request: AnyRequest) -> dict[str, Any]:
    """The body as an object. Refused: body_too_large past 1 MiB, body_malformed when it is no JSON object."""
    return parse_object(await _at_most(request.stream()))


async def read_struct(request: AnyRequest, kind: type[T]) -> T:
    """The body as a `kind`. Refused as by `read_json`, and field_unknown or input_invalid, naming the path."""
    return read_as(await read_json(request), kind)


async def _at_most(chunks: AsyncIterator[bytes]) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > JSON_BYTES:
            raise Refused("body_too_large", "a JSON body may have at most 1 MiB: upload larger things as assets")
    return bytes(body)


def parse_object(text: bytes) -> dict[str, Any]:
    """`text` as a JSON object. Refused body_malformed."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("body_malformed", f"the body is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refused("body_malformed", "the body must be a JSON object")
    return value


async def pieces(upload: UploadFile) -> AsyncIterator[bytes]:
    """The bytes of a file part."""
    while piece := await upload.read(PIECE):
        yield piece


def is_form(request: AnyRequest) -> bool:
    """Whether the body is multipart."""
    return request.content_type[0].startswith("multipart/form-data")


async def store_part(parts: Parts, owner: str, upload: UploadFile) -> str:
    """Keep a file part of an `owners_form` as the owner's asset; its `sha256:…`."""
    name = upload.filename or "file"
    kind = declared_type(upload.content_type, name)
    _, sha256, _ = await parts.assets.put(owner, pieces(upload), None, name, kind, reserved=True)
    return f"{SCHEME}{sha256}"


async def read_submission(request: AnyRequest, parts: Parts, owner: str) -> dict[str, Any]:
    """The body of a submit: JSON, or multipart with the field `job` and one file part per asset input.

    Refused `forbidden` where files come with a key that may not store any.
    """
    if not is_form(request):
        return await read_json(request)
    key: ApiKey = request.auth
    async with owners_form(request, parts, owner) as form:
        body = await _described(form.getall(JOB, []))
        given = body.setdefault("input", {})
        if not isinstance(given, dict):
            raise Refused("body_malformed", "'input' in the field 'job' must be an object")
        files = _files(form, given)
        if files and not key.allows(Scope.ASSETS_WRITE):
            raise Refused("forbidden", f"the key lacks the scope {Scope.ASSETS_WRITE}, which files in a form need")
        await parts.intake.vet(body | {"input": given | dict.fromkeys(files, NOT_YET)})
        for name, upload in files.items():
            given[name] = await store_part(parts, owner, upload)
    return body


async def _described(fields: list[Any]) -> dict[str, Any]:
    """The JSON in the field `job`; browsers and `curl -F job=@job.json` send it as a file."""
    if len(fields) != 1:
        raise Refused("body_malformed", "a multipart submit needs the field 'job', once, with the JSON of the job")
    (job,) = fields
    if isinstance(job, UploadFile):
        return parse_object(await _at_most(pieces(job)))
    return parse_object(job.encode())


def _files(form: FormMultiDict, given: dict[str, Any]) -> dict[str, UploadFile]:
    """The file parts by the input they are for. Refused: a text field but `job`, an input that is given twice."""
    files: dict[str, UploadFile] = {}
    for name, part in form.multi_items():
        if name == JOB:
            continue
        if not isinstance(part, UploadFile):
            error = FieldError(f"$.{name}", "is no file: a form has the field 'job' and a file for each asset input")
            raise Refused("field_unknown", f"{error.path}: {error.message}", errors=(error,))
        if name in files or name in given:
            raise invalid(FieldError(f"$.input.{name}", "is given twice"))
        files[name] = part
    return files
