"""The ASGI app of one edge: routes, facades, dependencies of handlers and middleware.

Start here to see which routes exist: `MODULES` lists the modules of the native API.
"""

from collections.abc import Sequence
from functools import partial
from typing import cast

from litestar import Litestar, Router
from litestar.di import Provide
from litestar.middleware import DefineMiddleware
from starlette.types import ASGIApp

from edge.console import ConsoleSettings
from edge.facades import runpod
from edge.facades.gateway import gateway as gateway_route
from edge.facades.gateway.gateway import Gateway
from edge.facades.heygem import routes as heygem_routes
from edge.facades.heygem.facade import HeygemFacade
from edge.http.auth import NO_AUTH, AuthenticationMiddleware, request_owner
from edge.http.dependencies import AnyConnection, EdgeServices, OwnerDep, ServicesDep
from edge.http.middleware import (
    DefaultHeaders,
    ProxiedRequests,
    RequestMetrics,
    RequestObserver,
    UnreadBodyDiscard,
    WebSocketDenialResponse,
    log_request,
    make_cors_config,
    store_denial_cause,
)
from edge.http.openapi import make_openapi_config
from edge.http.problems import find_language, handle_exception
from edge.http.request_input import JSON_BODY_LIMIT_BYTES, KnownParameters
from edge.http.routes import assets, endpoints, events, hosts, jobs, keys, monitoring, owners, pages, uploads, webhooks
from edge.jobs.view import Asker
from schemas.texts import Language

MODULES = (
    jobs,
    events,
    assets,
    uploads,
    webhooks,
    endpoints,
    hosts,
    keys,
    owners,
    monitoring,
    pages,
    gateway_route,
)
ROUTES = tuple(route for module in MODULES for route in module.ROUTES)


async def _provide_gateway(request: AnyConnection) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


# Services, owner, then language or asker: each takes the one before it as a parameter, even where it does not use it.
# For dependencies without an order Litestar opens a task group at every request, which costs more than these functions.
# A route takes the language or the asker, not both.
async def _provide_services(request: AnyConnection) -> EdgeServices:
    services: EdgeServices = request.app.state.services  # Litestar copies a parameter `state` for every request
    return services


async def _provide_owner(request: AnyConnection, services: ServicesDep) -> str:
    del services
    return request_owner(request)


async def _provide_language(request: AnyConnection, owner: OwnerDep) -> Language:
    del owner
    return find_language(request.scope)


async def _provide_asker(request: AnyConnection, owner: OwnerDep) -> Asker:
    del owner
    return Asker(find_language(request.scope), request.auth.id)


def create_app(
    routes: Litestar, services: EdgeServices, gateway: Gateway, *, heygem: HeygemFacade | None = None
) -> ASGIApp:
    """Return the app that serves `routes` over the services of one edge. It starts and stops no task.

    `routes`: of `make_routes`, for this edge alone. `heygem`: what the routes of HeyGem's interface need.
    """
    routes.state.update(services=services, gateway=gateway, heygem=heygem, stream_cursors=runpod.StreamCursors())
    inner = UnreadBodyDiscard(DefaultHeaders(cast("ASGIApp", routes)))  # the types of ASGI, which Litestar defines too
    proxied = ProxiedRequests(WebSocketDenialResponse(inner), services.trusted_proxies, services.client_events)
    return RequestMetrics(RequestObserver(proxied, log_request), services.metrics)


def make_routes(
    *, heygem: bool = False, cors_origins: Sequence[str] = (), console_settings: ConsoleSettings | None = None
) -> Litestar:
    """Return the routes of an edge without its services. It takes 0.1 s, so the tests use them again.

    `heygem`: with `/easy/…` and `/tts/…`. `cors_origins`: the origins whose pages may call the API.
    `console_settings`: where the console is served; None leaves it out.
    """
    facades = [runpod.make_router()]
    if heygem:
        facades += [heygem_routes.make_router(), heygem_routes.make_speech_router()]
    shown = console_settings if console_settings is not None and console_settings.enabled else None
    if shown is not None:
        facades.append(pages.make_console_router(shown))
    app = _make_litestar(facades, cors_origins)
    app.state.console_path = None if shown is None else shown.path
    app.state.encode_api_document = partial(_encode_api_document, app)
    return app


def _encode_api_document(app: Litestar) -> bytes:
    from edge.http.api_document import encode_document  # noqa: PLC0415 - no edge needs it before the first reader asks

    return encode_document(app, ROUTES)


def _make_litestar(facades: Sequence[Router], cors_origins: Sequence[str]) -> Litestar:
    return Litestar(
        route_handlers=[*ROUTES, *facades],
        middleware=[DefineMiddleware(AuthenticationMiddleware, exclude_from_auth_key=NO_AUTH), KnownParameters],
        dependencies={
            "services": Provide(_provide_services),
            "owner": Provide(_provide_owner),
            "language": Provide(_provide_language),
            "asker": Provide(_provide_asker),
            "gateway": Provide(_provide_gateway),
        },
        exception_handlers={Exception: handle_exception},
        after_exception=[store_denial_cause],
        openapi_config=make_openapi_config(),
        cors_config=make_cors_config(cors_origins),
        request_max_body_size=JSON_BODY_LIMIT_BYTES,
        logging_config=None,
    )
