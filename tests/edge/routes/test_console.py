"""The console's files and sessions: sign in and out, what a page of another site cannot do, what ends a session."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

import edge.console as console_files
from edge.console import ConsoleSettings
from edge.http.auth import CONSOLE_HEADER, SESSION_COOKIE
from schemas.credentials import CLIENT_SCOPES, Scope
from schemas.installation import AuditAction
from tests.support.http_server import open_client
from tests.support.served_edge import ServedEdge, serve_edge

HEADER = {CONSOLE_HEADER: "1"}


@asynccontextmanager
async def signed_in(edge: ServedEdge, owner: str = "ann") -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a browser that has signed in with the owner's key."""
    async with open_client(edge.url, timeout=20) as browser:
        reply = await browser.post("/v1/session", json={"key": edge.texts[owner]})
        assert reply.status_code == 201, reply.text
        yield browser


def test_the_page_of_keys_knows_every_scope_and_every_action_of_the_audit_log() -> None:
    page = (Path(console_files.__file__).parent / "pages" / "access.js").read_text()
    lists = {
        name: json.loads(text) for name, text in re.findall(r"^const (SCOPES|ACTIONS) = (\[.*\]);$", page, re.MULTILINE)
    }
    assert lists["SCOPES"] == [scope for scope in Scope if scope is not Scope.RUNNER]  # a host's key is made by a token
    assert tuple(lists["SCOPES"][:5]) == CLIENT_SCOPES
    assert set(lists["ACTIONS"]) == set(AuditAction)


async def test_the_page_comes_with_a_strict_policy_and_is_revalidated(edge: ServedEdge):
    page = await edge.anyone.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    script = await edge.anyone.get("/console/app.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    again = await edge.anyone.get("/console/app.js", headers={"If-None-Match": script.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["no.js", "../app.py", "%2e%2e/http/auth.py", "__init__.py", "..%5capp.js", ""])
async def test_nothing_but_the_pages_own_files_is_served(edge: ServedEdge, name: str):
    assert (await edge.anyone.get(f"/console/{name}")).status_code == 404


async def test_a_key_signs_in_and_the_cookie_is_out_of_reach_of_scripts(edge: ServedEdge):
    reply = await edge.anyone.post("/v1/session", json={"key": edge.texts["ann"]})
    assert reply.status_code == 201
    cookie = reply.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert edge.texts["ann"] not in cookie
    assert reply.json()["owner"] == "ann"
    assert reply.json()["scopes"] == ["jobs:read", "jobs:write", "assets:read", "assets:write", "hosts:read"]


async def test_a_session_reads_and_with_its_header_changes(edge: ServedEdge):
    async with signed_in(edge) as browser:
        assert (await browser.get("/v1/session")).json()["owner"] == "ann"
        body = {"endpoint": "echo", "input": {}}
        refused = await browser.post("/v1/jobs", json=body)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert (await browser.get("/v1/jobs")).json()["jobs"] == []
        assert (await browser.post("/v1/jobs", json=body, headers=HEADER)).status_code == 202
        assert (await browser.delete("/v1/session")).status_code == 204
        assert SESSION_COOKIE not in browser.cookies
        assert (await browser.get("/v1/session")).json() is None


async def test_no_other_sites_page_may_send_the_header(edge: ServedEdge):
    ask = {
        "Origin": "https://app.example.com",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": CONSOLE_HEADER,
    }
    reply = await edge.anyone.options("/v1/jobs", headers=ask)
    assert CONSOLE_HEADER not in reply.headers.get("access-control-allow-headers", "").lower()
    assert reply.headers.get("access-control-allow-credentials") != "true"


async def test_a_session_ends_with_its_key(edge: ServedEdge):
    created = (await edge.admin.post("/v1/keys", json={"owner": "ann", "scopes": ["jobs:read"]})).json()
    async with open_client(edge.url, timeout=20) as browser:
        await browser.post("/v1/session", json={"key": created["key"]})
        assert (await browser.get("/v1/jobs")).status_code == 200
        assert (await browser.get("/v1/hosts")).status_code == 403
        await edge.admin.delete(f"/v1/keys/{created['id']}")
        assert (await browser.get("/v1/jobs")).status_code == 401


async def test_a_session_ends_when_its_secret_is_rotated_away(edge: ServedEdge):
    created = (await edge.admin.post("/v1/keys", json={"owner": "ann"})).json()
    async with open_client(edge.url, timeout=20) as browser:
        await browser.post("/v1/session", json={"key": created["key"]})
        await edge.admin.post(f"/v1/keys/{created['id']}/rotate", json={"grace_s": 3600})
        assert (await browser.get("/v1/session")).status_code == 200
        await edge.admin.post(f"/v1/keys/{created['id']}/rotate", json={"grace_s": 0})
        assert (await browser.get("/v1/session")).json() is None


async def test_a_session_ends_after_two_weeks(edge: ServedEdge):
    async with signed_in(edge) as browser:
        edge.world.time.advance(seconds=14 * 86_400 + 1)
        assert (await browser.get("/v1/session")).json() is None


async def test_a_changed_cookie_is_no_session(edge: ServedEdge):
    async with signed_in(edge) as browser:
        text = browser.cookies[SESSION_COOKIE]
    for wrong in (text[:-2] + "AA", text + "x", "lamps_", "lamps_e30.x", edge.texts["admin"] + "x"):
        reply = await edge.anyone.get("/v1/session", headers={"Cookie": f"{SESSION_COOKIE}={wrong}"})
        assert (reply.status_code, reply.json()) == (200, None), wrong
        refused = await edge.anyone.get("/v1/jobs", headers={"Cookie": f"{SESSION_COOKIE}={wrong}"})
        assert refused.status_code == 401, wrong


async def test_a_ticket_signs_one_browser_in_with_the_rights_of_its_maker(edge: ServedEdge):
    token = (await edge.ann.post("/v1/tokens", json={"scopes": ["jobs:read"]})).json()["token"]
    made = await edge.anyone.post("/v1/session/tickets", params={"token": token})
    ticket = made.json()["ticket"]
    assert made.json()["path"] == f"/#ticket={ticket}"
    async with open_client(edge.url, timeout=20) as browser:
        reply = await browser.post("/v1/session", json={"ticket": ticket})
        assert (reply.status_code, reply.json()["scopes"]) == (201, ["jobs:read"])
    assert (await edge.anyone.post("/v1/session", json={"ticket": ticket})).status_code == 401


async def test_a_ticket_is_not_accepted_with_another_text(edge: ServedEdge):
    ticket = (await edge.ann.post("/v1/session/tickets")).json()["ticket"]
    body, _, signature = ticket.partition(".")
    for wrong in ("", ".", body, f"{body}.", f"{body}x.{signature}", f"{body}.{signature}x", f".{signature}"):
        assert (await edge.anyone.post("/v1/session", json={"ticket": wrong})).status_code == 401, wrong
    assert (await edge.anyone.post("/v1/session", json={"ticket": ticket})).status_code == 201


async def test_rows_of_used_tickets_are_deleted_when_the_tickets_have_expired(edge: ServedEdge):
    for _ in range(2):
        ticket = (await edge.ann.post("/v1/session/tickets")).json()["ticket"]
        assert (await edge.anyone.post("/v1/session", json={"ticket": ticket})).status_code == 201
        edge.world.time.advance(seconds=901)
    assert len(await edge.world.bus.installation_constants.rows("ticket.")) == 1


async def test_a_ticket_is_too_old_after_a_quarter_of_an_hour(edge: ServedEdge):
    ticket = (await edge.ann.post("/v1/session/tickets")).json()["ticket"]
    edge.world.time.advance(seconds=901)
    assert (await edge.anyone.post("/v1/session", json={"ticket": ticket})).status_code == 401


@pytest.mark.parametrize("body", [{}, {"key": "x", "ticket": "y"}, {"key": "lampt_x"}, {"password": "x"}, {"key": ""}])
async def test_a_sign_in_without_a_valid_key_is_refused(edge: ServedEdge, body: dict[str, str]):
    reply = await edge.anyone.post("/v1/session", json=body)
    assert reply.status_code in {400, 401, 422}
    assert "set-cookie" not in reply.headers


async def test_admin_scopes_are_written_out(edge: ServedEdge):
    async with signed_in(edge, "admin") as browser:
        scopes = (await browser.get("/v1/session")).json()["scopes"]
    assert {Scope.ADMIN, Scope.POWER, Scope.JOBS_WRITE} <= set(scopes)


async def test_while_the_broker_is_away_a_session_is_neither_lost_nor_believed(edge: ServedEdge):
    async with signed_in(edge) as browser:
        edge.world.broker.stop()
        edge.world.time.advance(seconds=6)  # past the cache of keys
        assert (await browser.get("/v1/session")).status_code == 503
        assert SESSION_COOKIE in browser.cookies
        edge.world.broker.start()
        assert (await browser.get("/v1/session")).json()["owner"] == "ann"


async def test_the_page_is_where_the_settings_say(tmp_path: Path):
    async with serve_edge(tmp_path, console=ConsoleSettings(path="/ui")) as edge:
        assert (await edge.anyone.get("/")).status_code == 404
        assert "/console/app.js" in (await edge.anyone.get("/ui")).text
        made = (await edge.ann.post("/v1/session/tickets")).json()
        assert made["path"] == f"/ui#ticket={made['ticket']}"


async def test_a_console_that_is_switched_off_is_not_served_and_gives_no_links(tmp_path: Path):
    async with serve_edge(tmp_path, console=ConsoleSettings(enabled=False)) as edge:
        for path in ("/", "/console/app.js"):
            assert (await edge.anyone.get(path)).status_code == 404
        refused = await edge.ann.post("/v1/session/tickets")
        assert (refused.status_code, refused.json()["code"]) == (501, "not_set_up")
        assert "console.enabled" in refused.json()["detail"]


@pytest.mark.parametrize("path", ["", "ui", "/a/b", "/{name}", "/ui?x", "/ui "])
def test_a_path_that_cannot_be_served_is_refused_by_the_settings(path: str):
    with pytest.raises(ValueError, match="`path` must be"):
        ConsoleSettings(path=path)
