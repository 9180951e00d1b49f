"""`/v1/keys`, `/v1/tokens` and `/v1/audit`: API keys, short-lived tokens, and the audit log."""

from datetime import timedelta
from typing import Annotated

from litestar import delete, get, post
from litestar.params import FromPath, QueryParameter
from msgspec import Meta, Struct, structs

from edge.core.error_handling import translate_errors
from edge.http.auth import record_audit_event, require_scope
from edge.http.dependencies import AnyRequest, ServicesDep
from edge.http.openapi import json_body
from edge.http.request_body import read_struct
from edge.index.paging import decode_cursor, encode_cursor
from edge.owners.api_keys import ROTATION_GRACE
from edge.owners.audit_log import AuditFilter
from edge.owners.tokens import TTL_LIMIT_S
from schemas.auth import CLIENT_SCOPES, ApiKey, Scope
from schemas.ids import Token
from schemas.installation import AuditAction, AuditEvent
from schemas.job import Moment

GRACE_LIMIT_S = 30 * 86_400.0


class KeyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A key to create. Without `scopes` it gets those of an ordinary client."""

    owner: Token
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] = CLIENT_SCOPES
    name: Annotated[str, Meta(max_length=100)] = ""
    expires_at: Moment | None = None
    language: Annotated[str, Meta(pattern="^(zh|en)$")] | None = None


class KeyRotation(Struct, frozen=True, forbid_unknown_fields=True):
    """`grace_s`: how long the previous secret remains valid; 0 for a secret that was leaked."""

    grace_s: Annotated[float, Meta(ge=0, le=GRACE_LIMIT_S)] = ROTATION_GRACE.total_seconds()


class KeyView(Struct, frozen=True, kw_only=True):
    """An API key. `key` contains the secret, only in the response that creates or rotates it.

    `used_at`: the last use, with a delay of some minutes. `previous_until`: the previous secret is valid until then.
    """

    id: str
    owner: str
    scopes: tuple[Scope, ...]
    name: str
    created_at: Moment
    expires_at: Moment | None
    language: str | None = None
    used_at: Moment | None = None
    previous_until: Moment | None = None
    key: str | None = None


class KeyListView(Struct, frozen=True):
    """The keys of all owners, without their secrets."""

    keys: list[KeyView]


def _to_key_view(key: ApiKey, text: str | None = None) -> KeyView:
    return KeyView(
        id=key.id,
        owner=key.owner,
        scopes=key.scopes,
        name=key.name,
        created_at=key.created_at,
        expires_at=key.expires_at,
        language=key.language,
        used_at=key.used_at,
        previous_until=key.previous_until,
        key=text,
    )


@post("/v1/keys", status_code=201, guards=[require_scope(Scope.ADMIN)], operation_class=json_body(KeyRequest))
async def create_key(request: AnyRequest, services: ServicesDep) -> KeyView:
    """Create a key. Only this response contains its secret."""
    body = await read_struct(request, KeyRequest)
    services.quotas.check_not_deleting(body.owner)
    with translate_errors():
        key, text = await services.api_keys.create(
            body.owner, body.scopes, name=body.name, expires_at=body.expires_at, language=body.language
        )
    await record_audit_event(request, services, AuditAction.KEY_CREATED, key.id, owner=key.owner, scopes=key.scopes)
    return _to_key_view(key, text)


@get("/v1/keys", guards=[require_scope(Scope.ADMIN)])
async def list_keys(services: ServicesDep) -> KeyListView:
    """List all keys, without their secrets."""
    with translate_errors():
        return KeyListView([_to_key_view(key) for key in await services.api_keys.list()])


@delete("/v1/keys/{key_id:str}", status_code=204, guards=[require_scope(Scope.ADMIN)])
async def revoke_key(request: AnyRequest, services: ServicesDep, key_id: FromPath[str]) -> None:
    """Revoke a key. It stops working at once, on other edges within 5 s."""
    with translate_errors():
        await services.api_keys.revoke(key_id)
    await record_audit_event(request, services, AuditAction.KEY_REVOKED, key_id)


@post(
    "/v1/keys/{key_id:str}/rotate",
    status_code=200,
    guards=[require_scope(Scope.ADMIN)],
    operation_class=json_body(KeyRotation),
)
async def rotate_key(request: AnyRequest, services: ServicesDep, key_id: FromPath[str]) -> KeyView:
    """Replace the secret of a key. Only this response contains the new one; the old one is valid for `grace_s`."""
    body = await read_struct(request, KeyRotation)
    with translate_errors():
        key, text = await services.api_keys.rotate(key_id, timedelta(seconds=body.grace_s))
    await record_audit_event(request, services, AuditAction.KEY_ROTATED, key.id, owner=key.owner, scopes=key.scopes)
    return _to_key_view(key, text)


DEFAULT_TOKEN_TTL_S = 600.0


class TokenRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A token to create. Without `scopes` it may follow jobs and read files, as far as the key may."""

    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] | None = None
    ttl_s: Annotated[float, Meta(gt=0, le=TTL_LIMIT_S)] = DEFAULT_TOKEN_TTL_S


class TokenView(Struct, frozen=True):
    """A token for `?token=`. It is valid until `expires_at`, or until its key is revoked."""

    token: str
    scopes: tuple[Scope, ...]
    expires_at: Moment


@post("/v1/tokens", status_code=201, operation_class=json_body(TokenRequest))
async def create_token(request: AnyRequest, services: ServicesDep) -> TokenView:
    """Create a short-lived token for `?token=`, for EventSource, WebSockets in browsers, and `<video>`."""
    body = await read_struct(request, TokenRequest)
    token = services.tokens.issue(request.auth, body.scopes, body.ttl_s)
    return TokenView(token.text, token.scopes, token.expires_at)


class AuditEventView(AuditEvent, frozen=True, kw_only=True, omit_defaults=True):
    """An event of the audit log. `id`: its place in the log."""

    id: int


class AuditTrail(Struct, frozen=True):
    """One page of the audit log, newest first. `next_cursor` is null on the last page."""

    events: list[AuditEventView]
    next_cursor: str | None = None


@get("/v1/audit", guards=[require_scope(Scope.ADMIN)])
async def list_audit(
    services: ServicesDep,
    by: Annotated[str | None, QueryParameter(max_length=64)] = None,
    action: Annotated[str | None, QueryParameter(max_length=64)] = None,
    subject: Annotated[str | None, QueryParameter(max_length=64)] = None,
    of_owner: Annotated[
        str | None,
        QueryParameter(name="owner", max_length=64, description="Only what was done to things of this owner"),
    ] = None,
    since: Annotated[Moment | None, QueryParameter(name="from")] = None,
    until: Annotated[Moment | None, QueryParameter(name="to")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, QueryParameter(max_length=200)] = None,
) -> AuditTrail:
    """List who did what to which key, host, owner, job, asset or setting. Events are kept for 400 days.

    A page may have fewer events than `limit`, or none, although `next_cursor` names another one.
    """
    wanted = AuditFilter(by=by, action=action, subject=subject, owner=of_owner, since=since, until=until)
    start = None if cursor is None else decode_cursor(cursor)[0]
    entries, before = await services.audit.read(wanted, limit, start)
    views = [AuditEventView(id=entry.sequence, **structs.asdict(entry.event)) for entry in entries]
    return AuditTrail(views, None if before is None else encode_cursor(before, "audit"))


ROUTES = (
    create_key,
    rotate_key,
    list_keys,
    revoke_key,
    create_token,
    list_audit,
)
