"""CORS: preflight requests, and the headers that pages of other origins may read."""

import httpx2
import pytest

from edge.http.middleware import CORS_EXPOSED_HEADERS, CORS_REQUEST_HEADERS
from tests.support.served_edge import ALLOWED_ORIGIN, ServedEdge

TUS = {"Tus-Resumable": "1.0.0"}


def preflight(method: str, *headers: str, origin: str = ALLOWED_ORIGIN) -> dict[str, str]:
    asked = ", ".join(headers).lower()
    return {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": asked}


def listed(reply: httpx2.Response, name: str) -> set[str]:
    return {word.strip().lower() for word in reply.headers[name].split(",")}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/jobs"),
        ("PUT", f"/v1/assets/{'a' * 64}"),
        ("POST", "/v1/uploads"),
        ("PATCH", "/v1/uploads/abc"),
        ("HEAD", "/v1/uploads/abc"),
        ("DELETE", "/v1/uploads/abc"),
        ("GET", "/v1/jobs/mine/files/a.mp4"),
    ],
)
async def test_a_page_of_a_named_origin_may_call_with_every_header(edge: ServedEdge, method: str, path: str):
    reply = await edge.anyone.options(path, headers=preflight(method, *CORS_REQUEST_HEADERS))
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (204, ALLOWED_ORIGIN)
    assert method.lower() in listed(reply, "access-control-allow-methods")
    assert {name.lower() for name in CORS_REQUEST_HEADERS} <= listed(reply, "access-control-allow-headers")
    assert {"authorization", "upload-offset", "idempotency-key", "last-event-id"} <= {
        name.lower() for name in CORS_REQUEST_HEADERS
    }


async def test_another_origin_is_refused(edge: ServedEdge):
    for origin in ("https://evil.example", f"{ALLOWED_ORIGIN}.evil.example", "null"):
        reply = await edge.anyone.options("/v1/jobs", headers=preflight("POST", origin=origin))
        assert reply.status_code == 400
        answer = await edge.ann.get("/v1/jobs", headers={"Origin": origin})
        assert "access-control-allow-origin" not in answer.headers


async def test_what_is_answered_may_be_seen_refusals_too(edge: ServedEdge):
    origin = {"Origin": ALLOWED_ORIGIN}
    made = await edge.ann.post("/v1/uploads", headers=origin | TUS | {"Upload-Length": "0"})
    assert made.headers["lamplighter-asset"].startswith("sha256:")
    missing = await edge.ann.get("/v1/jobs/none", headers=origin)
    stranger = await edge.anyone.get("/v1/jobs", headers=origin)
    assert [missing.status_code, stranger.status_code] == [404, 401]
    for reply in (made, missing, stranger):
        assert reply.headers["access-control-allow-origin"] == ALLOWED_ORIGIN
        assert listed(reply, "access-control-expose-headers") == {name.lower() for name in CORS_EXPOSED_HEADERS}
    promised = (
        "Upload-Offset Location Tus-Resumable Lamplighter-Asset ETag Content-Range Idempotent-Replayed Retry-After"
    )
    assert set(promised.split()) <= set(CORS_EXPOSED_HEADERS)


async def test_without_an_origin_nothing_is_said_of_it(edge: ServedEdge):
    reply = await edge.ann.get("/v1/jobs")
    assert not [name for name in reply.headers if name.startswith("access-control")]
