"""Who calls `/easy/…`: whoever has a key, and on a loopback edge this machine's own programs without one."""

import httpx

from edge.auth.keys import presented, recognised
from edge.parts import Parts
from edge.routes.given import AnyRequest
from edge.services.refusals import refusing
from edge.settings import EdgeSettings
from schemas.access import Scope
from schemas.errors import Refused
from schemas.loopback import is_loopback

# A request that carries one of these came through a proxy, so that from loopback says nothing of who sent it.
_PASSED_ON = ("forwarded", "x-forwarded-", "x-real-ip", "via")


async def caller(request: AnyRequest, parts: Parts, scope: Scope) -> str:
    """The owner that the request speaks for. Raises Refused `unauthorized`, `forbidden`, and while the broker is away.

    A key that was sent must be a valid one, on loopback too.
    """
    text = presented(request) or request.query_params.get("key")
    if not text:
        if at_home(request, parts.settings):
            return parts.settings.heygem.owner
        raise Refused("unauthorized", "send a key: as 'Authorization: Bearer lamp_…', 'X-API-Key' or '?key='")
    with refusing():
        key = await recognised(request, parts, text)
    if key is None:
        raise Refused("unauthorized", "the key is not (or no longer) valid: send another")
    if not key.allows(scope):
        raise Refused("forbidden", f"the key lacks the scope {scope}: use a key that has it")
    return key.owner


def at_home(request: AnyRequest, settings: EdgeSettings) -> bool:
    """Whether the request can only come from a program on this machine, and none that a web page in a browser made.

    The edge hears nothing but loopback, no proxy passed the request on, and both the name it was sent to and the page
    it came from, if any, are this machine: a name of somebody else's that leads to 127.0.0.1 is not.
    """
    headers = request.headers
    if settings.public.listen or not is_loopback(settings.bind):
        return False
    if any(name.lower().startswith(_PASSED_ON) for name in headers):
        return False
    places = [f"//{headers.get('host', '')}", *([headers["origin"]] if "origin" in headers else [])]
    return all(is_loopback(_host_of(place)) for place in places)


def _host_of(place: str) -> str:
    try:
        return httpx.URL(place).host
    except httpx.InvalidURL:
        return ""
