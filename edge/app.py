"""The HTTP face of the edge: its routes, who may call them, and what OpenAPI says of them."""

from typing import cast

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.middleware import DefineMiddleware
from starlette.types import ASGIApp

from edge.auth.cors import cors
from edge.auth.keys import OPEN, Authenticate, Connection, owner_of
from edge.draining import Draining
from edge.facades.gateway import route as gateway_route
from edge.facades.gateway.gateway import Gateway
from edge.facades.heygem import routes as heygem
from edge.facades.runpod import routes as runpod
from edge.handshake import Handshake, note_cause
from edge.headers import DefaultHeaders
from edge.openapi import complete, config
from edge.parts import Parts
from edge.problems import answer
from edge.routes import (
    assets,
    audit,
    batches,
    events,
    health,
    jobs,
    joining,
    keys,
    lists,
    owners,
    read,
    tokens,
    uploads,
    usage,
    webhooks,
)
from edge.routes.bodies import JSON_BYTES
from edge.routes.given import Owner, Services, Speech
from edge.services.messages import Language, choose_language
from edge.services.view import Asker

MODULES = (
    *(jobs, batches, lists, events, assets, uploads, webhooks),
    *(read, keys, owners, audit, tokens, usage, joining, health, gateway_route),
)
ROUTES = tuple(route for module in MODULES for route in module.ROUTES)


# One after the other: Litestar opens a task group for dependencies that do not wait for each other, at every request,
# which costs more than all three together.
async def _owner(request: Connection, parts: Services) -> str:
    del parts
    return owner_of(request)


async def _language(request: Connection, owner: Owner) -> Language:
    del owner
    return choose_language(request.headers.get("accept-language"), request.auth.language)


async def _asker(request: Connection, language: Speech) -> Asker:
    return Asker(language, request.auth.id)


async def _parts(request: Connection) -> Parts:
    parts: Parts = request.app.state.parts  # a parameter `state` would be copied for every request
    return parts


async def _gateway(request: Connection) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def create_app(parts: Parts, gateway: Gateway) -> ASGIApp:
    """The app over the services of one edge. It starts and stops nothing: `edge.serve` does."""
    routed = _routed(parts, gateway)
    complete(routed.openapi_schema)
    app = cast("ASGIApp", routed)  # the two libraries spell the same ASGI types differently
    return Handshake(Draining(DefaultHeaders(app)))


def _facades(parts: Parts) -> list[Router]:
    """Other people's protocols over HTTP."""
    return [runpod.router(), *([heygem.router()] if parts.settings.heygem.enabled else [])]


def _routed(parts: Parts, gateway: Gateway) -> Litestar:
    return Litestar(
        route_handlers=[*ROUTES, *_facades(parts)],
        state=State({"parts": parts, "gateway": gateway}),
        middleware=[DefineMiddleware(Authenticate, exclude_from_auth_key=OPEN)],
        dependencies={
            "parts": Provide(_parts),
            "owner": Provide(_owner),
            "language": Provide(_language),
            "asker": Provide(_asker),
            "gateway": Provide(_gateway),
        },
        exception_handlers={Exception: answer},
        after_exception=[note_cause],
        openapi_config=config(),
        cors_config=cors(parts.settings.cors.origins),
        request_max_body_size=JSON_BYTES,
        logging_config=None,
    )
