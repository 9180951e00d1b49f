"""`/v1/tokens`: a short-lived stand-in for a key, for what can only send a URL."""

from typing import Annotated

from litestar import post
from msgspec import Meta, Struct

from edge.routes.bodies import read_struct
from edge.routes.documents import body_of
from edge.routes.given import AnyRequest, Services
from edge.services.tokens import MAX_TTL_S
from schemas.access import Scope
from schemas.job import Moment

TTL_S = 600.0


class NewToken(Struct, frozen=True, forbid_unknown_fields=True):
    """What a token is to be. Without scopes it may watch jobs and read files, as far as the key may."""

    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] | None = None
    ttl_s: Annotated[float, Meta(gt=0, le=MAX_TTL_S)] = TTL_S


class TokenView(Struct, frozen=True):
    """A token on the wire: `?token=` takes it until `expires_at`, and no longer than its key works."""

    token: str
    scopes: tuple[Scope, ...]
    expires_at: Moment


@post("/v1/tokens", status_code=201, operation_class=body_of(NewToken))
async def create_token(request: AnyRequest, parts: Services) -> TokenView:
    """A token for `?token=`: EventSource, browser WebSockets, `<video>`. It dies with its key."""
    asked = await read_struct(request, NewToken)
    made = parts.tokens.make(request.auth, asked.scopes, asked.ttl_s)
    return TokenView(made.text, made.scopes, made.expires_at)


ROUTES = (create_token,)
