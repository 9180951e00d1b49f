"""`/v1/keys`: who may do what. Scope admin; a secret is shown once."""

from typing import Annotated

from litestar import delete, get, post
from litestar.params import FromPath
from msgspec import Meta, Struct

from edge.auth.keys import needs
from edge.routes.bodies import read_struct
from edge.routes.documents import body_of
from edge.routes.given import AnyRequest, Services
from edge.services.refusals import refusing
from schemas.access import CLIENT_SCOPES, ApiKey, Scope
from schemas.job import Moment
from schemas.words import Token


class NewKey(Struct, frozen=True, forbid_unknown_fields=True):
    """What a key is to be. Without scopes it gets those of an ordinary client."""

    owner: Token
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] = CLIENT_SCOPES
    name: Annotated[str, Meta(max_length=100)] = ""
    expires_at: Moment | None = None
    language: Annotated[str, Meta(pattern="^(zh|en)$")] | None = None


class KeyView(Struct, frozen=True, kw_only=True):
    """A key on the wire; `key` only in the answer that creates it."""

    id: str
    owner: str
    scopes: tuple[Scope, ...]
    name: str
    created_at: Moment
    expires_at: Moment | None
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
        key=text,
    )


@post("/v1/keys", status_code=201, guards=[needs(Scope.ADMIN)], operation_class=body_of(NewKey))
async def create_key(request: AnyRequest, parts: Services) -> KeyView:
    """A new key: the whole text is in this answer and nowhere afterwards."""
    asked = await read_struct(request, NewKey)
    with refusing():
        key, text = await parts.keys.create(
            asked.owner, asked.scopes, name=asked.name, expires_at=asked.expires_at, language=asked.language
        )
    return _shown(key, text)


@get("/v1/keys", guards=[needs(Scope.ADMIN)])
async def list_keys(parts: Services) -> Keys:
    """Every key, without its secret."""
    with refusing():
        return Keys([_shown(key) for key in await parts.keys.list()])


@delete("/v1/keys/{key_id:str}", status_code=204, guards=[needs(Scope.ADMIN)])
async def revoke_key(parts: Services, key_id: FromPath[str]) -> None:
    """Revoke a key: it is refused from now on (on another edge within 5 s)."""
    with refusing():
        await parts.keys.revoke(key_id)


ROUTES = (
    create_key,
    list_keys,
    revoke_key,
)
