"""`/v1/assets`: an owner's files by digest. Bytes are streamed; the digest is checked before the answer."""

from typing import Annotated
from urllib.parse import unquote

from litestar import Response, delete, post, put
from litestar.datastructures import UploadFile
from litestar.params import FromPath, QueryParameter
from litestar.types import ASGIApp
from msgspec import Struct

from edge.auth.keys import FOR_JOBS, needs
from edge.parts import Parts
from edge.routes.bodies import is_form, pieces, read_struct
from edge.routes.documents import DigestsBody, FileBody, RawBody
from edge.routes.files import download
from edge.routes.forms import owners_form
from edge.routes.given import AnyRequest, Owner, Services, Speech, content_length, get_or_head
from edge.services.messages import DELETED
from schemas.access import ApiKey, Scope
from schemas.asset import SCHEME, InvalidDigest, Reference, declared_type, is_digest, parse
from schemas.errors import Refused

MAX_DIGESTS = 1000
_FILENAME = "x-filename"


class AssetView(Struct, frozen=True):
    """An asset on the wire."""

    digest: str
    sha256: str
    bytes: int
    name: str
    media_type: str
    created_at: str
    url: str


class AssetPage(Struct, frozen=True):
    """One page of an owner's assets."""

    assets: list[AssetView]
    next_cursor: str | None = None


class Presence(Struct, frozen=True):
    """Which of the digests asked for the owner has."""

    present: list[str]
    missing: list[str]


class _Digests(Struct, frozen=True, forbid_unknown_fields=True):
    digests: list[str]


def shown(sha256: str, reference: Reference) -> AssetView:
    """The asset as clients see it."""
    return AssetView(
        digest=SCHEME + sha256,
        sha256=sha256,
        bytes=reference.bytes,
        name=reference.name,
        media_type=reference.media_type,
        created_at=reference.created.isoformat().replace("+00:00", "Z"),
        url=f"/v1/assets/{sha256}",
    )


def digest_of(text: str) -> str:
    """The digest in a path, with or without `sha256:`. Refused input_invalid."""
    bare = text.removeprefix(SCHEME).lower()
    if not is_digest(bare):
        raise Refused("input_invalid", "an asset is named by the 64 hex digits of its sha256")
    return bare


def _name(request: AnyRequest) -> str:
    return unquote(request.headers.get(_FILENAME, "")) or request.query_params.get("name") or "file"


def _is_runner(request: AnyRequest) -> bool:
    """Whether what comes was made by a job."""
    key: ApiKey = request.auth
    return Scope.RUNNER in key.scopes


def _needs_job(key: ApiKey, scope: Scope, owner: str) -> bool:
    """Whether the key gets this owner's files only through a job: it is a runner's, and they are not its own."""
    return not (key.allows(scope) and (owner == key.owner or Scope.ADMIN in key.scopes))


async def _check_may_store(parts: Parts, key: ApiKey, owner: str) -> None:
    """Raises Refused `forbidden` for a runner's key whose host holds no job of the owner."""
    if _needs_job(key, Scope.ASSETS_WRITE, owner) and not await parts.index.holds_job(owner, key.host):
        why = f"this host holds no job of {owner} that has not ended"
        raise Refused("forbidden", f"{why}: a runner's key stores only what such a job made")


async def _check_may_fetch(parts: Parts, key: ApiKey, owner: str, digest: str) -> None:
    """Raises Refused `forbidden` for a runner's key whose host neither holds a job with this input nor may get one.

    Queued jobs count as well: a runner fetches the inputs of the next job while its slots are busy.
    """
    if not _needs_job(key, Scope.ASSETS_READ, owner):
        return
    offered = None if key.host is None else parts.catalog.offered_by(key.host)
    if not await parts.index.may_need(owner, key.host, digest, offered):
        why = f"no job of {owner} that this host holds, or could be given, has this file as input"
        raise Refused("forbidden", f"{why}: a runner's key reads only such inputs")


def _created(stored: tuple[Reference, str, bool]) -> Response[AssetView]:
    reference, sha256, created = stored
    headers = {"Location": f"/v1/assets/{sha256}"}
    return Response(shown(sha256, reference), status_code=201 if created else 200, headers=headers)


@put(
    "/v1/assets/{sha256:str}",
    status_code=201,
    guards=[needs(Scope.ASSETS_WRITE, or_runner=True)],
    operation_class=RawBody,
    request_max_body_size=None,
    opt={FOR_JOBS: True},
)
async def put_asset(request: AnyRequest, parts: Services, owner: Owner, sha256: FromPath[str]) -> Response[AssetView]:
    """Upload the file with this digest: 201 when new to the owner, 200 when there; 422 `digest_mismatch`."""
    digest, name = digest_of(sha256), _name(request)
    await _check_may_store(parts, request.auth, owner)
    kind = declared_type(request.headers.get("content-type"), name)
    size, result = content_length(request), _is_runner(request)
    return _created(await parts.assets.put(owner, request.stream(), digest, name, kind, result=result, size=size))


@post(
    "/v1/assets",
    status_code=201,
    guards=[needs(Scope.ASSETS_WRITE)],
    operation_class=FileBody,
    request_max_body_size=None,
)
async def post_asset(request: AnyRequest, parts: Services, owner: Owner) -> Response[AssetView]:
    """Upload a file, raw or as the one file part of a form; the answer names its digest."""
    if is_form(request):
        async with owners_form(request, parts, owner) as form:
            upload = next((part for part in form.values() if isinstance(part, UploadFile)), None)
            if upload is None:
                raise Refused("body_malformed", "the form has no file part")
            name = upload.filename or "file"
            kind = declared_type(upload.content_type, name)
            stored = await parts.assets.put(owner, pieces(upload), None, name, kind, reserved=True)
    else:
        name = _name(request)
        kind = declared_type(request.headers.get("content-type"), name)
        size = content_length(request)
        stored = await parts.assets.put(owner, request.stream(), None, name, kind, size=size)
    return _created(stored)


@get_or_head(
    "/v1/assets/{sha256:str}",
    guards=[needs(Scope.ASSETS_READ, or_runner=True)],
    media_type="application/octet-stream",
    opt={FOR_JOBS: True},
)
async def get_asset(request: AnyRequest, parts: Services, owner: Owner, sha256: FromPath[str]) -> ASGIApp:
    """The file, with Range and ETag. Asking for it keeps it: retention counts from the last use."""
    digest = digest_of(sha256)
    await _check_may_fetch(parts, request.auth, owner, digest)
    reference, _ = await parts.assets.head(owner, digest)
    await parts.assets.touch(owner, digest)
    return await download(request, parts, digest, reference.name, reference.media_type)


class DeletedAsset(Struct, frozen=True):
    """What `delete_asset` answers. `hosts_pending`: hosts that still have to drop it from their caches."""

    sha256: str
    message: str
    hosts_pending: tuple[str, ...] = ()


@delete("/v1/assets/{sha256:str}", status_code=202, guards=[needs(Scope.ASSETS_WRITE)])
async def delete_asset(parts: Services, owner: Owner, language: Speech, sha256: FromPath[str]) -> DeletedAsset:
    """Drop the owner's reference; 409 `asset_in_use` while a job that has not ended names it."""
    digest = digest_of(sha256)
    deleted = await parts.assets.delete(owner, digest)
    return DeletedAsset(digest, DELETED.say(language), deleted.hosts_pending)


@get_or_head("/v1/assets", guards=[needs(Scope.ASSETS_READ)])
async def list_assets(
    parts: Services,
    owner: Owner,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, QueryParameter(max_length=200)] = None,
) -> AssetPage:
    """The owner's assets."""
    page = await parts.assets.list(owner, limit, cursor)
    return AssetPage([shown(row.sha256, row.reference) for row in page.assets], page.next_cursor)


@post("/v1/assets/check", status_code=200, guards=[needs(Scope.ASSETS_READ)], operation_class=DigestsBody)
async def check_assets(request: AnyRequest, parts: Services, owner: Owner) -> Presence:
    """Which of at most 1000 digests the owner has: what is present need not be uploaded."""
    asked = await read_struct(request, _Digests)
    try:
        digests = [parse(text) if text.startswith(SCHEME) else parse(SCHEME + text) for text in asked.digests]
    except InvalidDigest as error:
        raise Refused("input_invalid", str(error)) from error
    if len(digests) > MAX_DIGESTS:
        raise Refused("input_invalid", f"at most {MAX_DIGESTS} digests can be asked for at once")
    present, missing = await parts.assets.check(owner, digests)
    return Presence([SCHEME + digest for digest in present], [SCHEME + digest for digest in missing])


ROUTES = (
    put_asset,
    post_asset,
    get_asset,
    delete_asset,
    list_assets,
    check_assets,
)
