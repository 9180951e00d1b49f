"""`/v1/keys`: who may do what. Scope admin; a secret is shown once."""

from datetime import timedelta
from typing import Annotated

from litestar import delete, get, post
from litestar.params import FromPath, QueryParameter
from msgspec import Meta, Struct

from edge.core.error_handling import translate_errors
from edge.http.auth import record_audit_event, require_scope
from edge.http.dependencies import AnyRequest, ServicesDep
from edge.http.openapi import json_body
from edge.http.request_body import read_struct
from edge.owners.api_keys import ROTATION_GRACE
from edge.owners.tokens import TTL_LIMIT_S
from schemas.auth import CLIENT_SCOPES, ApiKey, Scope
from schemas.ids import Token
from schemas.installation import AuditAction, AuditEvent
from schemas.job import Moment

GRACE_LIMIT_S = 30 * 86_400.0


class KeyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """What a key is to be. Without scopes it gets those of an ordinary client."""

    owner: Token
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] = CLIENT_SCOPES
    name: Annotated[str, Meta(max_length=100)] = ""
    expires_at: Moment | None = None
    language: Annotated[str, Meta(pattern="^(zh|en)$")] | None = None


class KeyRotation(Struct, frozen=True, forbid_unknown_fields=True):
    """How many seconds the secret before is to open too: none for one that was given away."""

    grace_s: Annotated[float, Meta(ge=0, le=GRACE_LIMIT_S)] = ROTATION_GRACE.total_seconds()


class KeyView(Struct, frozen=True, kw_only=True):
    """A key on the wire; `key` only in the answer that makes or rotates it.

    `used_at`: its last use, some minutes behind. `previous_until`: until then the secret before this one opens too.
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
    """The keys there are."""

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
async def create_key(request: AnyRequest, parts: ServicesDep) -> KeyView:
    """A new key: the whole text is in this answer and nowhere afterwards."""
    asked = await read_struct(request, KeyRequest)
    parts.quotas.check_not_deleting(asked.owner)
    with translate_errors():
        key, text = await parts.api_keys.create(
            asked.owner, asked.scopes, name=asked.name, expires_at=asked.expires_at, language=asked.language
        )
    await record_audit_event(request, parts, AuditAction.KEY_CREATED, key.id, owner=key.owner, scopes=key.scopes)
    return _to_key_view(key, text)


@get("/v1/keys", guards=[require_scope(Scope.ADMIN)])
async def list_keys(parts: ServicesDep) -> KeyListView:
    """Every key, without its secret."""
    with translate_errors():
        return KeyListView([_to_key_view(key) for key in await parts.api_keys.list()])


@delete("/v1/keys/{key_id:str}", status_code=204, guards=[require_scope(Scope.ADMIN)])
async def revoke_key(request: AnyRequest, parts: ServicesDep, key_id: FromPath[str]) -> None:
    """Revoke a key: it is refused from now on (on another edge within 5 s)."""
    with translate_errors():
        await parts.api_keys.revoke(key_id)
    await record_audit_event(request, parts, AuditAction.KEY_REVOKED, key_id)


@post(
    "/v1/keys/{key_id:str}/rotate",
    status_code=200,
    guards=[require_scope(Scope.ADMIN)],
    operation_class=json_body(KeyRotation),
)
async def rotate_key(request: AnyRequest, parts: ServicesDep, key_id: FromPath[str]) -> KeyView:
    """A new secret for a key, shown once; the one before opens too for `grace_s`, a day unless told otherwise."""
    asked = await read_struct(request, KeyRotation)
    with translate_errors():
        key, text = await parts.api_keys.rotate(key_id, timedelta(seconds=asked.grace_s))
    await record_audit_event(request, parts, AuditAction.KEY_ROTATED, key.id, owner=key.owner, scopes=key.scopes)
    return _to_key_view(key, text)


# MERGED edge/routes/tokens.py: `/v1/tokens`: a short-lived stand-in for a key, for what can only send a URL.


DEFAULT_TOKEN_TTL_S = 600.0


class TokenRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """What a token is to be. Without scopes it may watch jobs and read files, as far as the key may."""

    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] | None = None
    ttl_s: Annotated[float, Meta(gt=0, le=TTL_LIMIT_S)] = DEFAULT_TOKEN_TTL_S


class TokenView(Struct, frozen=True):
    """A token on the wire: `?token=` takes it until `expires_at`, and no longer than its key works."""

    token: str
    scopes: tuple[Scope, ...]
    expires_at: Moment


@post("/v1/tokens", status_code=201, operation_class=json_body(TokenRequest))
async def create_token(request: AnyRequest, parts: ServicesDep) -> TokenView:
    """A token for `?token=`: EventSource, browser WebSockets, `<video>`. It dies with its key."""
    asked = await read_struct(request, TokenRequest)
    made = parts.tokens.issue(request.auth, asked.scopes, asked.ttl_s)
    return TokenView(made.text, made.scopes, made.expires_at)


# MERGED edge/routes/audit.py: `GET /v1/audit`: what was done to keys, hosts and owners. Scope admin.


class AuditTrail(Struct, frozen=True):
    """Events, newest first."""

    events: list[AuditEvent]


@get("/v1/audit", guards=[require_scope(Scope.ADMIN)])
async def list_audit(parts: ServicesDep, limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100) -> AuditTrail:
    """Who made, rotated and revoked keys, added and removed hosts, and deleted owners; kept for 400 days."""
    with translate_errors():
        return AuditTrail(await parts.audit.recent(limit))


ROUTES = (
    create_key,
    rotate_key,
    list_keys,
    revoke_key,
    create_token,
    list_audit,
)
