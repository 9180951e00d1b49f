"""The line of each request in the edge's log: who asked for what, and nothing that opens anything."""

import logging
from typing import Any

import httpx2
import pytest
import structlog
from structlog.testing import LogCapture
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from edge.http.middleware import CLIENT_CLOSED_STATUS, NO_ROUTE, RequestObserver, ServedRequest
from tests.support.served_edge import ServedEdge
from tests.support.wait import wait_for


@pytest.fixture
def lines() -> Any:
    capture = LogCapture()
    before = structlog.get_config()
    # A test before this one in the same process may have set a level.
    structlog.configure(processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET))
    yield capture.entries
    structlog.configure(**before)


async def line_of(lines: list[Any], route: str) -> dict[str, Any]:
    """The line is written after the client has the answer."""

    async def find() -> dict[str, Any] | None:
        found = [line for line in lines if line["event"] == "request_served" and line["route"] == route]
        return found[-1] if found else None

    return await wait_for(find)


async def test_a_request_is_one_line_with_its_key_its_route_and_its_status(edge: ServedEdge, lines: list[Any]) -> None:
    answer = await edge.ann.get("/v1/jobs/nothing?owner=ann")
    line = await line_of(lines, "/v1/jobs/{job_id}")
    assert answer.status_code == 404
    assert line.pop("ms") > 0
    ann = (await edge.keys.authenticate(edge.texts["ann"])).id
    assert line == {
        "event": "request_served",
        "log_level": "info",
        "method": "GET",
        "route": "/v1/jobs/{job_id}",
        "status": 404,
        "key_id": ann,
        "client": "127.0.0.1",
    }


@pytest.mark.parametrize(
    ("path", "route", "status", "level"),
    [
        ("/v1/nowhere/lamp_a_secret", NO_ROUTE, 404, "info"),
        ("/v1/jobs", "/v1/jobs", 401, "info"),
        ("/livez", "/livez", 200, "debug"),
    ],
)
async def test_a_request_without_a_key_is_a_line_too(
    edge: ServedEdge, lines: list[Any], path: str, route: str, status: int, level: str
) -> None:
    await edge.anyone.get(path)
    line = await line_of(lines, route)
    assert (line["status"], line["log_level"], line["key_id"]) == (status, level, "")
    assert "secret" not in str(lines)


async def test_a_token_in_the_query_is_not_in_the_line(edge: ServedEdge, lines: list[Any]) -> None:
    token = (await edge.ann.post("/v1/tokens", json={})).json()["token"]
    assert (await edge.anyone.get("/v1/jobs", params={"token": token})).status_code == 200
    line = await line_of(lines, "/v1/jobs")
    assert line["key_id"]
    assert token not in str(lines)


async def test_a_websocket_is_a_line_when_it_ends(edge: ServedEdge, lines: list[Any]) -> None:
    url, ann = edge.url.replace("http", "ws", 1), {"Authorization": f"Bearer {edge.texts['ann']}"}
    with pytest.raises(InvalidStatus):
        async with connect(f"{url}/nowhere", additional_headers=ann):
            pass
    assert (await line_of(lines, NO_ROUTE))["status"] == 404
    async with connect(f"{url}/ws", additional_headers=ann):
        pass
    line = await line_of(lines, "/ws")
    assert (line["status"], line["method"]) == (101, "WEBSOCKET")
    assert line["key_id"] == (await edge.keys.authenticate(edge.texts["ann"])).id


async def test_a_client_that_left_and_an_application_that_failed_are_counted() -> None:
    seen: list[ServedRequest] = []
    clock = iter((1.0, 3.5))

    async def fail(*_: object) -> None:
        raise RuntimeError("the application failed")

    observer = RequestObserver(fail, seen.append, lambda: next(clock))
    transport = httpx2.ASGITransport(observer)
    with pytest.raises(RuntimeError, match="the application failed"):
        async with httpx2.AsyncClient(transport=transport, base_url="http://edge") as client:
            await client.get("/")
    assert seen == [ServedRequest("GET", NO_ROUTE, CLIENT_CLOSED_STATUS, 2.5, "", "127.0.0.1")]
