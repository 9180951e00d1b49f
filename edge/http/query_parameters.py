"""Refuse query parameters that a route does not have: a misspelt filter would otherwise return everything."""

from functools import cache

from litestar.connection import ASGIConnection
from litestar.handlers import HTTPRouteHandler
from litestar.handlers.base import BaseRouteHandler
from litestar.params import QueryParameter
from litestar.types import ASGIApp, Receive, Scope, Send

from edge.core.signed_urls import SIGNED_URL_PARAMETERS
from edge.core.validation import describe_unknown_parameter
from edge.http.auth import AnyConnection
from edge.http.openapi import EXTRA_PARAMETERS
from schemas.problems import FieldError, ProblemError

ANY_PARAMETER = "any_parameter"  # opt of a route that ignores the parameters that it does not know
# On every route: the owner that a request is for, and a token in place of a key.
COMMON_PARAMETERS = ("owner", "token")


class KnownParameters:
    """Litestar middleware that refuses a request with a query parameter that its route does not have: `field_unknown`.

    It is not a guard, because Litestar copies the route's handler for each call of a guard. Routes for programs that
    were written for another service have the opt ANY_PARAMETER.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("query_string"):
            _refuse_unknown_parameters(ASGIConnection(scope), scope["route_handler"])
        await self._app(scope, receive, send)


def _refuse_unknown_parameters(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Raise ProblemError `field_unknown` for a request with a query parameter that its route does not have."""
    if handler.opt.get(ANY_PARAMETER):
        return
    known = list_known_parameters(handler)
    unknown = [name for name in connection.query_params if name not in known and name not in SIGNED_URL_PARAMETERS]
    if unknown:
        errors = tuple(
            FieldError(f"$.{name}", describe_unknown_parameter(name, known)) for name in dict.fromkeys(unknown)
        )
        raise ProblemError("field_unknown", f"{errors[0].path}: {errors[0].message}", errors=errors)


@cache
def list_known_parameters(handler: BaseRouteHandler) -> frozenset[str]:
    """Return the names that the handler of a route reads, itself or by its parameters."""
    names = {
        parameter.kwarg_definition.name or name
        for name, parameter in handler.parsed_fn_signature.parameters.items()
        if isinstance(parameter.kwarg_definition, QueryParameter)
    }
    methods = handler.http_methods if isinstance(handler, HTTPRouteHandler) else ()
    for path in handler.paths:
        for method in methods:
            described = EXTRA_PARAMETERS.get((path.replace(":str}", "}"), method.lower()), ())
            names |= {parameter.name for parameter in described if parameter.param_in == "query"}
    return frozenset((*names, *COMMON_PARAMETERS))
