"""docs/api.md lists every route of the native API with its scope, and no other route."""

import re
from typing import Any

from edge.app import MODULES
from edge.facades.gateway import gateway
from schemas.credentials import Scope
from tests.support.doc_pages import DOCS

ROW = re.compile(r"^\| `([A-Z]+) (/\S*)` \| (?:`([a-z:]+)`)? *\|", re.MULTILINE)
ROUTES = [route for module in MODULES if module is not gateway for route in module.ROUTES]


def scope_of(route: Any) -> str:
    """Return the scope that the guard of `edge.http.auth.require_scope` requires."""
    scopes = [cell.cell_contents for guard in route.guards or () for cell in guard.__closure__ or ()]
    return "".join(scope for scope in scopes if isinstance(scope, Scope))


def offered() -> set[tuple[str, str, str]]:
    """Return method, path and scope of every route. The page omits HEAD beside GET, and WebSockets beside streams."""
    return {
        (method, path.replace(":str}", "}"), scope_of(route))
        for route in ROUTES
        for method in getattr(route, "http_methods", ())
        for path in route.paths
        if not (method == "HEAD" and "GET" in route.http_methods)
    }


def test_the_page_has_every_route_and_its_scope():
    assert set(ROW.findall((DOCS / "api.md").read_text())) == offered()
