"""`/v1/keys`: who may do what. Scope admin; a secret is shown once."""

from datetime import timedelta
from typing import Annotated

from litestar import delete, get, post
from litestar.params import FromPath
from msgspec import Meta, Struct

from edge.auth.keys import audited, needs
from edge.routes.bodies import read_struct
from edge.routes.documents import body_of
from edge.routes.given import AnyRequest, Services
from edge.services.keys import ROTATION
from edge.services.refusals import refusing
from schemas.access import CLIENT_SCOPES, ApiKey, Scope
from schemas.audit import Action
from schemas.job import Moment
from schemas.words import Token

LONGEST_GRACE_S = 30 * 86_400.0


class NewKey(Struct, frozen=True, forbid_unknown_fields=True):
    """What a key is to be. Without scopes it gets those of an ordinary client."""

    owner: Token
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] = CLIENT_SCOPES
    name: Annotated[str, Meta(max_length=100)] = ""
    expires_at: Moment | None = None
    language: Annotated[str, Meta(pattern="^(zh|en)$")] | None = None


class Rotation(Struct, frozen=True, forbid_unknown_fields=True):
    """How many seconds the secret before is to open too: none for one that was given away."""

    grace_s: Annotated[float, Meta(ge=0, le=LONGEST_GRACE_S)] = ROTATION.total_seconds()


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


class Keys(Struct, frozen=True):
    """The keys there are."""

    keys: list[KeyView]


def _shown(key: ApiKey, text: str | None = None) -> KeyView:
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


@post("/v1/keys", status_code=201, guards=[needs(Scope.ADMIN)], operation_class=body_of(NewKey))
async def create_key(request: AnyRequest, parts: Services) -> KeyView:
    """A new key: the whole text is in this answer and nowhere afterwards."""
    asked = await read_struct(request, NewKey)
    parts.quotas.check_open(asked.owner)
    with refusing():
        key, text = await parts.keys.create(
            asked.owner, asked.scopes, name=asked.name, expires_at=asked.expires_at, language=asked.language
        )
    await audited(request, parts, Action.KEY_CREATED, key.id, owner=key.owner, scopes=key.scopes)
    return _shown(key, text)


@get("/v1/keys", guards=[needs(Scope.ADMIN)])
async def list_keys(parts: Services) -> Keys:
    """Every key, without its secret."""
    with refusing():
        return Keys([_shown(key) for key in await parts.keys.list()])


@delete("/v1/keys/{key_id:str}", status_code=204, guards=[needs(Scope.ADMIN)])
async def revoke_key(request: AnyRequest, parts: Services, key_id: FromPath[str]) -> None:
    """Revoke a key: it is refused from now on (on another edge within 5 s)."""
    with refusing():
        await parts.keys.revoke(key_id)
    await audited(request, parts, Action.KEY_REVOKED, key_id)


@post("/v1/keys/{key_id:str}/rotate", status_code=200, guards=[needs(Scope.ADMIN)], operation_class=body_of(Rotation))
async def rotate_key(request: AnyRequest, parts: Services, key_id: FromPath[str]) -> KeyView:
    """A new secret for a key, shown once; the one before opens too for `grace_s`, a day unless told otherwise."""
    asked = await read_struct(request, Rotation)
    with refusing():
        key, text = await parts.keys.rotate(key_id, timedelta(seconds=asked.grace_s))
    await audited(request, parts, Action.KEY_ROTATED, key.id, owner=key.owner, scopes=key.scopes)
    return _shown(key, text)


ROUTES = (
    create_key,
    rotate_key,
    list_keys,
    revoke_key,
)
