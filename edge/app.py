"""The HTTP face of the edge: its routes, who may call them, and what OpenAPI says of them."""

from typing import cast

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.middleware import DefineMiddleware
from starlette.types import ASGIApp

from edge.core.messages import Language, choose_language
from edge.facades.gateway import gateway as gateway_route
from edge.facades.gateway.gateway import Gateway
from edge.facades.heygem import routes as heygem
from edge.facades.runpod import routes as runpod
from edge.http.auth import NO_AUTH, AnyConnection, AuthenticationMiddleware, request_owner
from edge.http.dependencies import EdgeServices, LanguageDep, OwnerDep, ServicesDep
from edge.http.middleware import (
    DefaultHeaders,
    RequestBodyDrain,
    WebSocketDenialResponse,
    make_cors_config,
    store_denial_cause,
)
from edge.http.openapi import complete_document, make_openapi_config
from edge.http.problems import handle_exception
from edge.http.request_body import JSON_BODY_LIMIT_BYTES
from edge.http.routes import assets, endpoints, events, health, hosts, jobs, keys, owners, uploads, webhooks
from edge.jobs.view import Asker

MODULES = (jobs, events, assets, uploads, webhooks, endpoints, hosts, keys, owners, health, gateway_route)
ROUTES = tuple(route for module in MODULES for route in module.ROUTES)


# One after the other: Litestar opens a task group for dependencies that do not wait for each other, at every request,
# which costs more than all three together.
async def _provide_owner(request: AnyConnection, parts: ServicesDep) -> str:
    del parts
    return request_owner(request)


async def _provide_language(request: AnyConnection, owner: OwnerDep) -> Language:
    del owner
    return choose_language(request.headers.get("accept-language"), request.auth.language)


async def _asker(request: AnyConnection, language: LanguageDep) -> Asker:
    return Asker(language, request.auth.id)


async def _provide_services(request: AnyConnection) -> EdgeServices:
    parts: EdgeServices = request.app.state.parts  # a parameter `state` would be copied for every request
    return parts


async def _provide_gateway(request: AnyConnection) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def create_app(parts: EdgeServices, gateway: Gateway) -> ASGIApp:
    """The app over the services of one edge. It starts and stops nothing: `edge.process` does."""
    routed = _make_litestar(parts, gateway)
    complete_document(routed.openapi_schema)
    app = cast("ASGIApp", routed)  # the two libraries spell the same ASGI types differently
    return WebSocketDenialResponse(RequestBodyDrain(DefaultHeaders(app)))


def _facade_routers(parts: EdgeServices) -> list[Router]:
    """Other people's protocols over HTTP."""
    return [runpod.router(), *([heygem.router()] if parts.settings.heygem.enabled else [])]


def _make_litestar(parts: EdgeServices, gateway: Gateway) -> Litestar:
    return Litestar(
        route_handlers=[*ROUTES, *_facade_routers(parts)],
        state=State({"parts": parts, "gateway": gateway}),
        middleware=[DefineMiddleware(AuthenticationMiddleware, exclude_from_auth_key=NO_AUTH)],
        dependencies={
            "parts": Provide(_provide_services),
            "owner": Provide(_provide_owner),
            "language": Provide(_provide_language),
            "asker": Provide(_asker),
            "gateway": Provide(_provide_gateway),
        },
        exception_handlers={Exception: handle_exception},
        after_exception=[store_denial_cause],
        openapi_config=make_openapi_config(),
        cors_config=make_cors_config(parts.settings.cors.origins),
        request_max_body_size=JSON_BODY_LIMIT_BYTES,
        logging_config=None,
    )
