"""Held: every operation of the API against no key, wrong keys, keys that lack its scope, and another owner's ids.

The operations are those of our own OpenAPI document, so one that is added later is attacked as well. The scope of each
is read from docs/api.md, which another test compares with the guards.
"""

import re
from typing import Any

import httpx2
import pytest
from msgspec import Struct

from edge.http.openapi import METHODS
from edge.index import index
from schemas.credentials import IMPLIED_SCOPES, Scope
from tests.edge.routes.conftest import edge
from tests.edge.routes.test_api_page import ROW
from tests.support.doc_pages import DOCS
from tests.support.http_server import open_client
from tests.support.served_edge import ServedEdge

__all__ = ["edge"]

TUS = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
KINDS_OF_SCOPE = tuple(scope for scope in Scope if scope is not Scope.ADMIN)
BY_NAME = re.compile(r"\{[^}]*\}")
# What makes something of the caller's own under the name, whatever another owner has under it.
MAKES_ONES_OWN = {("put", "/v1/jobs/{job_id}"), ("put", "/v1/assets/{sha256}")}

OF_NO_OWNER = {"/metrics", "/v1/tokens"}  # the parameter changes no answer
TICKETS = "/v1/session/tickets"


class Operation(Struct, frozen=True):
    """One method of one path, and its scope; None: every key is allowed."""

    method: str
    path: str
    scope: Scope | None

    async def ask(
        self, client: httpx2.AsyncClient, names: dict[str, str] | None = None, **more: Any
    ) -> httpx2.Response:
        """Send the request, with `names` (or x) as path parameters. Must not be used for event streams."""
        path = BY_NAME.sub(lambda found: (names or {}).get(found[0].strip("{}"), "x"), self.path)
        headers = {**TUS, **more.pop("headers", {})} if self.path.startswith("/v1/uploads") else more.pop("headers", {})
        return await client.request(self.method, path, headers=headers, **more)


async def operations(edge: ServedEdge) -> list[Operation]:
    """Return all operations of the document that need a key."""
    document = (await edge.admin.get("/schema/openapi.json")).json()
    scopes = {(method, path): scope for method, path, scope in ROW.findall((DOCS / "api.md").read_text())}
    found = []
    for path, item in document["paths"].items():
        for method in sorted(item.keys() & set(METHODS)):
            if item[method].get("security") != []:
                row = method.upper() if (method.upper(), path) in scopes else "GET"  # a HEAD beside its GET
                scope = scopes[row, path]
                found.append(Operation(method, path, Scope(scope) if scope else None))
    return found


async def test_without_a_key_and_with_a_wrong_one_nothing_answers(edge: ServedEdge):
    key_id, secret = edge.texts["ann"].removeprefix("lamp_").split("_", 1)
    wrong = [
        {},
        {"Authorization": "Bearer lamp_nobody_" + "x" * 43},
        {"Authorization": f"Bearer lamp_{key_id}_{secret.swapcase()}"},
        {"X-API-Key": f"lamp_{key_id}_"},
        {"X-API-Key": "lampt_e30.e30"},
    ]
    asked = await operations(edge)
    assert len(asked) >= 40
    for operation in asked:
        for headers in wrong:
            reply = await operation.ask(edge.anyone, headers=headers)
            assert reply.status_code == 401, (operation, headers)


async def test_an_ordinary_key_names_no_other_owner_anywhere(edge: ServedEdge):
    for operation in await operations(edge):
        reply = await operation.ask(edge.bob, params={"owner": "ann"})
        if operation.path == TICKETS:  # each is another one, and of the key's owner
            session = await edge.bob.post("/v1/session", json={"ticket": reply.json()["ticket"]})
            assert session.json()["owner"] == "bob"
        elif operation.path in OF_NO_OWNER:
            plain = await operation.ask(edge.bob)
            assert (reply.status_code, reply.content) == (plain.status_code, plain.content), operation
        else:
            assert reply.status_code == 403, (operation, reply.text)


@pytest.mark.parametrize("own", KINDS_OF_SCOPE)
async def test_a_key_with_one_scope_is_refused_wherever_another_is_asked_for(
    edge: ServedEdge, own: Scope, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(index, "QUERY_RETRY_DELAYS_S", ())
    made = await edge.keys.create("ann", (own,))
    async with open_client(edge.url, headers={"X-API-Key": made.text}, timeout=20) as client:
        for operation in await operations(edge):
            if operation.scope not in {None, own}:
                reply = await operation.ask(client, {"sha256": "0" * 64})
                assert reply.status_code == 403, operation
                assert operation.method == "head" or reply.json()["code"] == "forbidden", operation


def test_only_admin_stands_for_other_scopes():
    assert set(IMPLIED_SCOPES) == {Scope.ADMIN}
    assert not {Scope.RUNNER, Scope.RELAY} & IMPLIED_SCOPES[Scope.ADMIN]


async def test_what_another_owner_has_is_not_there_under_its_id(edge: ServedEdge):
    job = (await edge.ann.put("/v1/jobs/mine", json={"endpoint": "echo", "input": {"text": "ann's"}})).json()
    sha256 = (await edge.ann.post("/v1/assets", content=b"ann's file")).json()["sha256"]
    tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "10"}
    upload = (await edge.ann.post("/v1/uploads", headers=tus)).headers["location"].rsplit("/", 1)[1]
    names = {"job_id": "mine", "sha256": sha256, "upload_id": upload, "name": "a", "delivery_id": "mine.1.0"}
    asked = [
        operation
        for operation in await operations(edge)
        if {found.strip("{}") for found in BY_NAME.findall(operation.path)} & names.keys() - {"name"}
        and (operation.method, operation.path) not in MAKES_ONES_OWN
        and operation.scope is not Scope.RUNNER  # refused whatever the id: tests/edge/routes/test_secrets.py
    ]
    assert len(asked) >= 12
    for operation in asked:
        override = {"X-HTTP-Method-Override": "DELETE"} if operation.method == "post" else {}
        reply = await operation.ask(edge.bob, names, headers=override)
        assert reply.status_code == 404, (operation, reply.text)
    assert (await edge.ann.get("/v1/jobs/mine")).json()["revision"] == job["revision"]
    assert (await edge.ann.get(f"/v1/assets/{sha256}")).content == b"ann's file"
    assert (await edge.ann.head(f"/v1/uploads/{upload}", headers=TUS)).headers["upload-offset"] == "0"


async def test_below_schema_a_key_is_needed_and_no_page_with_scripts_is_served(edge: ServedEdge):
    assert (await edge.anyone.get("/schema/openapi.json")).status_code == 401
    for page in ("", "/", "/swagger", "/redoc", "/elements", "/rapidoc", "/scalar", "/oauth2-redirect.html"):
        reply = await edge.ann.get(f"/schema{page}")
        assert reply.status_code == 404 or reply.json()["openapi"], page
        assert "<script" not in reply.text.lower(), page
