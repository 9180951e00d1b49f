"""`POST /v1/hosts` and `DELETE /v1/hosts/{id}`: who may come in as a host. Scope admin; a token is shown once."""

from contextlib import suppress

from litestar import delete, post
from litestar.params import FromPath
from msgspec import Struct

from bus.port import BusError
from edge.auth.keys import audited, needs
from edge.routes.bodies import read_struct
from edge.routes.documents import body_of
from edge.routes.given import AnyRequest, Services
from edge.services.refusals import refusing
from schemas.access import Scope
from schemas.audit import Action
from schemas.errors import Refused
from schemas.joining import encode
from schemas.words import Token, is_token


class NewHost(Struct, frozen=True, forbid_unknown_fields=True):
    """The host that is to join."""

    id: Token


class Welcomed(Struct, frozen=True):
    """`command` is what to type on that machine; the token in it is shown here and nowhere afterwards."""

    id: str
    token: str
    command: str


@post("/v1/hosts", status_code=201, guards=[needs(Scope.ADMIN)], operation_class=body_of(NewHost))
async def add_host(request: AnyRequest, parts: Services) -> Welcomed:
    """Let a machine join: broker credentials and an asset key of its own."""
    asked = await read_struct(request, NewHost)
    with refusing():
        token = encode(await parts.joining.add(asked.id))
    await audited(request, parts, Action.HOST_ADDED, asked.id)
    return Welcomed(asked.id, token, f"lamplighter runner --join {token}")


@delete("/v1/hosts/{host:str}", status_code=204, guards=[needs(Scope.ADMIN)])
async def remove_host(request: AnyRequest, parts: Services, host: FromPath[str]) -> None:
    """Put a host out: its key is refused and its connection to the broker is cut at once (other edges: within 5 s)."""
    if not is_token(host):
        raise Refused("not_found", "there is no such host")
    with refusing():
        await parts.joining.remove(host)
    await audited(request, parts, Action.HOST_REMOVED, host)
    with suppress(BusError):  # out it is; who is still there is read again soon
        await parts.hosts.refresh()


ROUTES = (add_host, remove_host)
