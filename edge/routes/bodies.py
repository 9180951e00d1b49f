"""Reading request bodies: JSON of at most 1 MiB, and multipart forms whose file parts become assets."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar.datastructures import FormMultiDict, UploadFile
from litestar.exceptions import HTTPException

from edge.parts import Parts
from edge.routes.given import AnyRequest
from edge.services.submission import read_body
from schemas.asset import SCHEME, media_type
from schemas.errors import Refused

JSON_BYTES = 1024 * 1024
PIECE = 1024 * 1024
MALFORMED = 400


async def read_json(request: AnyRequest) -> dict[str, Any]:
    """The body as an object. Refused: body_too_large past 1 MiB, body_malformed when it is no JSON object."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > JSON_BYTES:
            raise Refused("body_too_large", "a JSON body may have at most 1 MiB: upload larger things as assets")
    return parse_object(bytes(body))


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


async def read_form(request: AnyRequest) -> FormMultiDict:
    """The fields and files of a multipart body. Refused body_malformed, body_too_large."""
    try:
        return await request.form()
    except HTTPException as error:
        if error.status_code != MALFORMED:
            raise
        raise Refused("body_malformed", f"the multipart body cannot be read: {error.detail}") from error
    except (ValueError, KeyError) as error:
        raise Refused("body_malformed", f"the multipart body cannot be read: {error}") from error


async def store_part(parts: Parts, owner: str, upload: UploadFile) -> str:
    """Keep a file part as the owner's asset; its `sha256:…`."""
    name = upload.filename or "file"
    kind = upload.content_type or media_type(name)
    _, sha256, _ = await parts.assets.put(owner, pieces(upload), None, name, kind)
    return f"{SCHEME}{sha256}"


async def read_submission(request: AnyRequest, parts: Parts, owner: str) -> dict[str, Any]:
    """The body of a submit: JSON, or multipart with the field `job` and one file part per asset input."""
    if not is_form(request):
        return await read_json(request)
    form = await read_form(request)
    described = form.get("job")
    if not isinstance(described, str):
        raise Refused("body_malformed", "a multipart submit needs the field 'job' with the JSON of the job")
    if len(described) > JSON_BYTES:
        raise Refused("body_too_large", "the field 'job' may have at most 1 MiB")
    body = parse_object(described.encode())
    given = body.setdefault("input", {})
    if not isinstance(given, dict):
        raise Refused("body_malformed", "'input' in the field 'job' must be an object")
    read_body(body)  # what no file can make acceptable is refused before one is kept
    for name, part in form.multi_items():
        if isinstance(part, UploadFile):
            given[name] = await store_part(parts, owner, part)
    return body
