"""Who calls `/easy/…`: whoever has a key, and by a port of its own this machine's programs without one."""

import httpx

from edge.auth.keys import presented, recognised
from edge.facades.heygem.keyless import came_in_keyless
from edge.parts import Parts
from edge.routes.given import AnyRequest
from edge.services.refusals import refusing
from schemas.access import Scope
from schemas.errors import Refused
from schemas.loopback import is_loopback

# A request that carries one of these came through a proxy, so that from loopback says nothing of who sent it.
_PASSED_ON = ("forwarded", "x-forwarded-", "x-real-ip", "via", "true-client-ip", "cf-")


async def caller(request: AnyRequest, parts: Parts, scope: Scope) -> str:
    """The owner that the request speaks for. Raises Refused `unauthorized`, `forbidden`, and while the broker is away.

    A key that was sent must be a valid one, on loopback too.
    """
    text = presented(request) or request.query_params.get("key")
    if not text:
        if at_home(request):
            return parts.settings.heygem.owner
        raise Refused("unauthorized", "send a key: as 'Authorization: Bearer lamp_…', 'X-API-Key' or '?key='")
    with refusing():
        key = await recognised(request, parts, text)
    if key is None:
        raise Refused("unauthorized", "the key is not (or no longer) valid: send another")
    if not key.allows(scope):
        raise Refused("forbidden", f"the key lacks the scope {scope}: use a key that has it")
    return key.owner


def at_home(request: AnyRequest) -> bool:
    """Whether the request can only come from a program on this machine, and none that a web page in a browser made.

    It came in by the port that asks for no key, no proxy or tunnel shows in it, and both the place it was sent to and
    the page it came from, if any, are this machine: a name of somebody else's that leads to 127.0.0.1 is not, nor is
    another port than the one that was opened. A TCP tunnel to the very port cannot be told from a program here.
    """
    headers = request.headers
    if not came_in_keyless(request.scope) or any(name.lower().startswith(_PASSED_ON) for name in headers):
        return False
    sent_to = _url(f"//{headers.get('host', '')}")
    _, own_port = request.scope.get("server") or ("", None)
    if sent_to is None or not is_loopback(sent_to.host) or sent_to.port != own_port:
        return False
    page = _url(headers["origin"]) if "origin" in headers else sent_to
    return page is not None and is_loopback(page.host)


def _url(place: str) -> httpx.URL | None:
    try:
        return httpx.URL(place)
    except httpx.InvalidURL:
        return None
