"""What routes are given: the request, the edge's services, whose things are meant, who asks and in what language."""

from functools import partial
from typing import Any

from litestar import Request, WebSocket, route
from litestar.di import NamedDependency

from edge.parts import Parts
from edge.services.messages import Language
from edge.services.view import Asker

AnyRequest = Request[Any, Any, Any]
AnySocket = WebSocket[Any, Any, Any]
Services = NamedDependency[Parts]
Owner = NamedDependency[str]
Speech = NamedDependency[Language]
Asking = NamedDependency[Asker]

# RFC 9110, 9.1: whoever answers GET answers HEAD. Litestar does not do it by itself; streams are left out.
get_or_head = partial(route, http_method=["GET", "HEAD"])


def content_length(request: AnyRequest) -> int | None:
    """The size of the body where the request says it; the server lets no more through."""
    said = request.headers.get("content-length", "")
    return int(said) if said.isascii() and said.isdecimal() else None
