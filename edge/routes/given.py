"""What routes are given: the request, the edge's services, whose things are meant, the language to answer in."""

from typing import Any

from litestar import Request, WebSocket
from litestar.di import NamedDependency

from edge.parts import Parts
from edge.services.messages import Language

AnyRequest = Request[Any, Any, Any]
AnySocket = WebSocket[Any, Any, Any]
Services = NamedDependency[Parts]
Owner = NamedDependency[str]
Speech = NamedDependency[Language]
