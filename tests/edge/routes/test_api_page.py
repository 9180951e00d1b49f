"""docs/api.md lists every route of the native API, with the scope that it asks for, and no other."""

import re
from typing import Any

from edge.app import MODULES
from edge.facades.gateway import gateway
from schemas.auth import Scope
from tests.support.doc_pages import DOCS

ROW = re.compile(r"^\| `([A-Z]+) (/\S*)` \| (?:`([a-z:]+)`)? *\|", re.MULTILINE)
ROUTES = [route for module in MODULES if module is not gateway for route in module.ROUTES]


def scope_of(route: Any) -> str:
    """What its guard asks for: `edge.http.auth.require_scope` holds it."""
    scopes = [cell.cell_contents for guard in route.guards or () for cell in guard.__closure__ or ()]
    return "".join(scope for scope in scopes if isinstance(scope, Scope))


def offered() -> set[tuple[str, str, str]]:
    """Method, path and scope; a HEAD beside a GET and a WebSocket beside a stream go without saying."""
    return {
        (method, path.replace(":str}", "}"), scope_of(route))
        for route in ROUTES
        for method in getattr(route, "http_methods", ())
        for path in route.paths
        if not (method == "HEAD" and "GET" in route.http_methods)
    }


def test_the_page_has_every_route_and_its_scope():
    assert set(ROW.findall((DOCS / "api.md").read_text())) == offered()
