"""`/v1/assets`: the files of an owner, by digest. Uploads are streamed; the digest is checked before the response."""

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
    record_audit_event,
)
from edge.http.openapi import DigestsBody, FileBody, RawBody
from edge.http.request_input import is_form, open_owner_form, read_chunks, read_struct
from edge.http.responses import file_response
from schemas.asset import DIGEST_SCHEME, AssetReference, InvalidDigest, choose_media_type, is_digest, parse_digest
from schemas.credentials import ApiKey, Scope
from schemas.endpoint_parts import VOLUMES_OWNER
from schemas.installation import AuditAction
from schemas.problems import ProblemError

DIGESTS_PER_CHECK_LIMIT = 1000
_FILENAME_HEADER = "x-filename"


class AssetView(Struct, frozen=True):
    """An asset of an owner: its digest, size, name and type."""

    digest: str
    sha256: str
    bytes: int
    name: str
    media_type: str
    created_at: str
    url: str


class AssetPageView(Struct, frozen=True):
    """One page of assets. `next_cursor` is null on the last page."""

    assets: list[AssetView]
    next_cursor: str | None = None


class AssetPresence(Struct, frozen=True):
    """The requested digests, split by whether the owner has the asset."""

    present: list[str]
    missing: list[str]


class _DigestsRequest(Struct, frozen=True, forbid_unknown_fields=True):
    digests: list[str]


def to_asset_view(sha256: str, reference: AssetReference) -> AssetView:
    """Build the API view of an asset from the owner's reference to it."""
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
    """Return the digest in a path, with or without `sha256:`. Raises ProblemError `input_invalid`."""
    bare = text.removeprefix(DIGEST_SCHEME).lower()
    if not is_digest(bare):
        raise ProblemError("input_invalid", "this is not an asset digest: send the 64 hex digits of its sha256")
    return bare


def _file_name(request: AnyRequest) -> str:
    return unquote(request.headers.get(_FILENAME_HEADER, "")) or request.query_params.get("name") or "file"


def _is_runner(request: AnyRequest) -> bool:
    """Return whether a runner sends the request, so that the file is a job's output."""
    key: ApiKey = request.auth
    return Scope.RUNNER in key.scopes


def _needs_job(key: ApiKey, scope: Scope, owner: str) -> bool:
    """Return whether the key may access this owner's files only through a job, as a runner's key may."""
    return not (key.allows(scope) and (owner == key.owner or Scope.ADMIN in key.scopes))


async def _check_may_store(services: EdgeServices, key: ApiKey, owner: str) -> None:
    """Raise ProblemError `forbidden` for a runner's key whose host runs no job of the owner."""
    if _needs_job(key, Scope.ASSETS_WRITE, owner) and not await services.index.holds_job(owner, key.host):
        reason = f"this host runs no job of {owner}"
        raise ProblemError("forbidden", f"{reason}: a runner's key may store only files of such a job")


async def _check_may_fetch(services: EdgeServices, key: ApiKey, owner: str, digest: str) -> None:
    """Raise ProblemError `forbidden` for a runner's key whose host has no job with this input and cannot get one.

    Queued jobs count as well: a runner prefetches the inputs of the next job while its slots are busy. Every host may
    read the files of volumes.
    """
    if not _needs_job(key, Scope.ASSETS_READ, owner) or owner == VOLUMES_OWNER:
        return
    offered = None if key.host is None else services.endpoints.offered_by(key.host)
    if not await services.index.may_need(owner, key.host, digest, offered):
        reason = f"no job of {owner} that this host runs or may run has this file as input"
        raise ProblemError("forbidden", f"{reason}: a runner's key may read only such inputs")


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
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, sha256: FromPath[str]
) -> Response[AssetView]:
    """Upload a file under its digest. 201 if it is new to the owner, 200 if it exists, 422 `digest_mismatch`."""
    digest, name = parse_path_digest(sha256), _file_name(request)
    await _check_may_store(services, request.auth, owner)
    kind = choose_media_type(request.headers.get("content-type"), name)
    size, is_result = read_content_length(request), _is_runner(request)
    return _created_response(
        await services.assets.put(owner, request.stream(), digest, name, kind, result=is_result, size=size)
    )


@post(
    "/v1/assets",
    status_code=201,
    guards=[require_scope(Scope.ASSETS_WRITE)],
    operation_class=FileBody,
    request_max_body_size=None,
)
async def post_asset(request: AnyRequest, services: ServicesDep, owner: OwnerDep) -> Response[AssetView]:
    """Upload a file, as raw bytes or as the only file of a form. The response contains its digest."""
    if is_form(request):
        async with open_owner_form(request, services, owner) as form:
            upload = next((part for part in form.values() if isinstance(part, UploadFile)), None)
            if upload is None:
                raise ProblemError("body_malformed", "the form has no file: add one")
            name = upload.filename or "file"
            kind = choose_media_type(upload.content_type, name)
            stored = await services.assets.put(owner, read_chunks(upload), None, name, kind, reserved=True)
    else:
        name = _file_name(request)
        kind = choose_media_type(request.headers.get("content-type"), name)
        size = read_content_length(request)
        stored = await services.assets.put(owner, request.stream(), None, name, kind, size=size)
    return _created_response(stored)


@get_or_head(
    "/v1/assets/{sha256:str}",
    guards=[require_scope(Scope.ASSETS_READ, or_runner=True)],
    media_type="application/octet-stream",
    opt={FOR_JOBS: True},
)
async def get_asset(request: AnyRequest, services: ServicesDep, owner: OwnerDep, sha256: FromPath[str]) -> ASGIApp:
    """Return a file. Supports Range and If-None-Match. A read restarts the retention period of the asset."""
    digest = parse_path_digest(sha256)
    await _check_may_fetch(services, request.auth, owner, digest)
    reference, _ = await services.assets.get(owner, digest)
    await services.assets.touch(owner, digest)
    return await file_response(request, services, digest, reference.name, reference.media_type)


class DeletedAsset(Struct, frozen=True):
    """The result of a deletion. `hosts_pending`: hosts that have not yet removed the file from their caches."""

    sha256: str
    message: str
    hosts_pending: tuple[str, ...] = ()


@delete("/v1/assets/{sha256:str}", status_code=202, guards=[require_scope(Scope.ASSETS_WRITE)])
async def delete_asset(
    request: AnyRequest, services: ServicesDep, owner: OwnerDep, language: LanguageDep, sha256: FromPath[str]
) -> DeletedAsset:
    """Delete an asset of the owner. 409 `asset_in_use` while a job that has not ended uses it."""
    digest = parse_path_digest(sha256)
    deleted = await services.assets.delete(owner, digest)
    await record_audit_event(request, services, AuditAction.ASSET_DELETED, digest, owner=owner)
    return DeletedAsset(digest, DELETED_TEXT.render(language), deleted.hosts_pending)


@get_or_head("/v1/assets", guards=[require_scope(Scope.ASSETS_READ)])
async def list_assets(
    services: ServicesDep,
    owner: OwnerDep,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, QueryParameter(max_length=200)] = None,
) -> AssetPageView:
    """List the owner's assets, newest first."""
    page = await services.assets.list(owner, limit, cursor)
    return AssetPageView([to_asset_view(row.sha256, row.reference) for row in page.assets], page.next_cursor)


@post("/v1/assets/check", status_code=200, guards=[require_scope(Scope.ASSETS_READ)], operation_class=DigestsBody)
async def check_assets(request: AnyRequest, services: ServicesDep, owner: OwnerDep) -> AssetPresence:
    """Check which of up to 1000 digests the owner has. Only missing files need an upload."""
    body = await read_struct(request, _DigestsRequest)
    try:
        digests = [
            parse_digest(text) if text.startswith(DIGEST_SCHEME) else parse_digest(DIGEST_SCHEME + text)
            for text in body.digests
        ]
    except InvalidDigest as error:
        raise ProblemError("input_invalid", str(error)) from error
    if len(digests) > DIGESTS_PER_CHECK_LIMIT:
        raise ProblemError("input_invalid", f"a request may name at most {DIGESTS_PER_CHECK_LIMIT} digests: split it")
    present, missing = await services.assets.split_present(owner, digests)
    return AssetPresence([DIGEST_SCHEME + digest for digest in present], [DIGEST_SCHEME + digest for digest in missing])


ROUTES = (
    put_asset,
    post_asset,
    get_asset,
    delete_asset,
    list_assets,
    check_assets,
)
