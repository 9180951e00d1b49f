"""`/v1/assets`: an owner's files by digest. Bytes are streamed; the digest is checked before the answer."""

from typing import Annotated
from urllib.parse import unquote

from litestar import Response, delete, post, put
from litestar.datastructures import UploadFile
from litestar.params import FromPath, QueryParameter
from litestar.types import ASGIApp
from msgspec import Struct

from edge.core.messages import DELETED_TEXT
from edge.http.auth import FOR_JOBS, require_scope
from edge.http.dependencies import (
    AnyRequest,
    EdgeServices,
    LanguageDep,
    OwnerDep,
    ServicesDep,
    get_or_head,
    read_content_length,
)
from edge.http.openapi import DigestsBody, FileBody, RawBody
from edge.http.request_body import is_form, open_owner_form, read_chunks, read_struct
from edge.http.responses import file_response
from schemas.asset import DIGEST_SCHEME, AssetReference, InvalidDigest, choose_media_type, is_digest, parse_digest
from schemas.auth import ApiKey, Scope
from schemas.problems import ProblemError

DIGESTS_PER_CHECK_LIMIT = 1000
_FILENAME_HEADER = "x-filename"


class AssetView(Struct, frozen=True):
    """An asset on the wire."""

    digest: str
    sha256: str
    bytes: int
    name: str
    media_type: str
    created_at: str
    url: str


class AssetPageView(Struct, frozen=True):
    """One page of an owner's assets."""

    assets: list[AssetView]
    next_cursor: str | None = None


class AssetPresence(Struct, frozen=True):
    """Which of the digests asked for the owner has."""

    present: list[str]
    missing: list[str]


class _DigestsRequest(Struct, frozen=True, forbid_unknown_fields=True):
    digests: list[str]


def to_asset_view(sha256: str, reference: AssetReference) -> AssetView:
    """The asset as clients see it."""
    return AssetView(
        digest=DIGEST_SCHEME + sha256,
        sha256=sha256,
        bytes=reference.bytes,
        name=reference.name,
        media_type=reference.media_type,
        created_at=reference.created_at.isoformat().replace("+00:00", "Z"),
        url=f"/v1/assets/{sha256}",
    )


def parse_path_digest(text: str) -> str:
    """The digest in a path, with or without `sha256:`. Refused input_invalid."""
    bare = text.removeprefix(DIGEST_SCHEME).lower()
    if not is_digest(bare):
        raise ProblemError("input_invalid", "an asset is named by the 64 hex digits of its sha256")
    return bare


def _file_name(request: AnyRequest) -> str:
    return unquote(request.headers.get(_FILENAME_HEADER, "")) or request.query_params.get("name") or "file"


def _is_runner(request: AnyRequest) -> bool:
    """Whether what comes was made by a job."""
    key: ApiKey = request.auth
    return Scope.RUNNER in key.scopes


def _needs_job(key: ApiKey, scope: Scope, owner: str) -> bool:
    """Whether the key gets this owner's files only through a job: it is a runner's, and they are not its own."""
    return not (key.allows(scope) and (owner == key.owner or Scope.ADMIN in key.scopes))


async def _check_may_store(parts: EdgeServices, key: ApiKey, owner: str) -> None:
    """Raises Refused `forbidden` for a runner's key whose host holds no job of the owner."""
    if _needs_job(key, Scope.ASSETS_WRITE, owner) and not await parts.index.holds_job(owner, key.host):
        why = f"this host holds no job of {owner} that has not ended"
        raise ProblemError("forbidden", f"{why}: a runner's key stores only what such a job made")


async def _check_may_fetch(parts: EdgeServices, key: ApiKey, owner: str, digest: str) -> None:
    """Raises Refused `forbidden` for a runner's key whose host neither holds a job with this input nor may get one.

    Queued jobs count as well: a runner fetches the inputs of the next job while its slots are busy.
    """
    if not _needs_job(key, Scope.ASSETS_READ, owner):
        return
    offered = None if key.host is None else parts.endpoints.offered_by(key.host)
    if not await parts.index.may_need(owner, key.host, digest, offered):
        why = f"no job of {owner} that this host holds, or could be given, has this file as input"
        raise ProblemError("forbidden", f"{why}: a runner's key reads only such inputs")


def _created_response(stored: tuple[AssetReference, str, bool]) -> Response[AssetView]:
    reference, sha256, created = stored
    headers = {"Location": f"/v1/assets/{sha256}"}
    return Response(to_asset_view(sha256, reference), status_code=201 if created else 200, headers=headers)


@put(
    "/v1/assets/{sha256:str}",
    status_code=201,
    guards=[require_scope(Scope.ASSETS_WRITE, or_runner=True)],
    operation_class=RawBody,
    request_max_body_size=None,
    opt={FOR_JOBS: True},
)
async def put_asset(
    request: AnyRequest, parts: ServicesDep, owner: OwnerDep, sha256: FromPath[str]
) -> Response[AssetView]:
    """Upload the file with this digest: 201 when new to the owner, 200 when there; 422 `digest_mismatch`."""
    digest, name = parse_path_digest(sha256), _file_name(request)
    await _check_may_store(parts, request.auth, owner)
    kind = choose_media_type(request.headers.get("content-type"), name)
    size, result = read_content_length(request), _is_runner(request)
    return _created_response(
        await parts.assets.put(owner, request.stream(), digest, name, kind, result=result, size=size)
    )


@post(
    "/v1/assets",
    status_code=201,
    guards=[require_scope(Scope.ASSETS_WRITE)],
    operation_class=FileBody,
    request_max_body_size=None,
)
async def post_asset(request: AnyRequest, parts: ServicesDep, owner: OwnerDep) -> Response[AssetView]:
    """Upload a file, raw or as the one file part of a form; the answer names its digest."""
    if is_form(request):
        async with open_owner_form(request, parts, owner) as form:
            upload = next((part for part in form.values() if isinstance(part, UploadFile)), None)
            if upload is None:
                raise ProblemError("body_malformed", "the form has no file part")
            name = upload.filename or "file"
            kind = choose_media_type(upload.content_type, name)
            stored = await parts.assets.put(owner, read_chunks(upload), None, name, kind, reserved=True)
    else:
        name = _file_name(request)
        kind = choose_media_type(request.headers.get("content-type"), name)
        size = read_content_length(request)
        stored = await parts.assets.put(owner, request.stream(), None, name, kind, size=size)
    return _created_response(stored)


@get_or_head(
    "/v1/assets/{sha256:str}",
    guards=[require_scope(Scope.ASSETS_READ, or_runner=True)],
    media_type="application/octet-stream",
    opt={FOR_JOBS: True},
)
async def get_asset(request: AnyRequest, parts: ServicesDep, owner: OwnerDep, sha256: FromPath[str]) -> ASGIApp:
    """The file, with Range and ETag. Asking for it keeps it: retention counts from the last use."""
    digest = parse_path_digest(sha256)
    await _check_may_fetch(parts, request.auth, owner, digest)
    reference, _ = await parts.assets.get(owner, digest)
    await parts.assets.touch(owner, digest)
    return await file_response(request, parts, digest, reference.name, reference.media_type)


class DeletedAsset(Struct, frozen=True):
    """What `delete_asset` answers. `hosts_pending`: hosts that still have to drop it from their caches."""

    sha256: str
    message: str
    hosts_pending: tuple[str, ...] = ()


@delete("/v1/assets/{sha256:str}", status_code=202, guards=[require_scope(Scope.ASSETS_WRITE)])
async def delete_asset(
    parts: ServicesDep, owner: OwnerDep, language: LanguageDep, sha256: FromPath[str]
) -> DeletedAsset:
    """Drop the owner's reference; 409 `asset_in_use` while a job that has not ended names it."""
    digest = parse_path_digest(sha256)
    deleted = await parts.assets.delete(owner, digest)
    return DeletedAsset(digest, DELETED_TEXT.render(language), deleted.hosts_pending)


@get_or_head("/v1/assets", guards=[require_scope(Scope.ASSETS_READ)])
async def list_assets(
    parts: ServicesDep,
    owner: OwnerDep,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, QueryParameter(max_length=200)] = None,
) -> AssetPageView:
    """The owner's assets."""
    page = await parts.assets.list(owner, limit, cursor)
    return AssetPageView([to_asset_view(row.sha256, row.reference) for row in page.assets], page.next_cursor)


@post("/v1/assets/check", status_code=200, guards=[require_scope(Scope.ASSETS_READ)], operation_class=DigestsBody)
async def check_assets(request: AnyRequest, parts: ServicesDep, owner: OwnerDep) -> AssetPresence:
    """Which of at most 1000 digests the owner has: what is present need not be uploaded."""
    asked = await read_struct(request, _DigestsRequest)
    try:
        digests = [
            parse_digest(text) if text.startswith(DIGEST_SCHEME) else parse_digest(DIGEST_SCHEME + text)
            for text in asked.digests
        ]
    except InvalidDigest as error:
        raise ProblemError("input_invalid", str(error)) from error
    if len(digests) > DIGESTS_PER_CHECK_LIMIT:
        raise ProblemError("input_invalid", f"at most {DIGESTS_PER_CHECK_LIMIT} digests can be asked for at once")
    present, missing = await parts.assets.split_present(owner, digests)
    return AssetPresence([DIGEST_SCHEME + digest for digest in present], [DIGEST_SCHEME + digest for digest in missing])


ROUTES = (
    put_asset,
    post_asset,
    get_asset,
    delete_asset,
    list_assets,
    check_assets,
)
