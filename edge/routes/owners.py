"""`/v1/owners`: deleting a whole owner, and the report of that. Scope admin."""

from litestar import delete, get
from litestar.params import FromPath

from edge.auth.keys import audited, needs
from edge.routes.given import AnyRequest, Services
from schemas.access import ApiKey, Scope
from schemas.audit import Action
from schemas.erasure import Erasure
from schemas.errors import Refused
from schemas.words import is_token


def _owner(text: str) -> str:
    if not is_token(text):
        raise Refused("input_invalid", "an owner is 1 to 64 of A-Z a-z 0-9 _ -")
    return text


@delete("/v1/owners/{owner_id:str}", status_code=202, guards=[needs(Scope.ADMIN)])
async def delete_owner(request: AnyRequest, parts: Services, owner_id: FromPath[str]) -> Erasure:
    """Delete everything of an owner. It goes on by itself, over restarts; asked again it is the same deletion.

    Until it is done nothing new of that owner is taken (409 `owner_deleting`); what runs is cancelled first.
    """
    key: ApiKey = request.auth
    if key.owner == _owner(owner_id):
        raise Refused("conflict", "this key is that owner's own: use another owner's admin key")
    begun = await parts.erasures.begin(owner_id, by=key.id)
    await audited(request, parts, Action.OWNER_DELETED, owner_id)
    return begun


@get("/v1/owners/{owner_id:str}/deletion", guards=[needs(Scope.ADMIN)])
async def owner_deletion(parts: Services, owner_id: FromPath[str]) -> Erasure:
    """How far the deletion is, and what went; kept for 30 days."""
    return await parts.erasures.report(_owner(owner_id))


ROUTES = (delete_owner, owner_deletion)
