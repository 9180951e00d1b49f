"""Requests of one key a minute: what is left is told, what is over is refused, and nobody else notices."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.gateway_client import connect_gateway
from tests.support.served_edge import NO_PROXY, ServedEdge, serve_edge

PER_MINUTE = 6


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[ServedEdge]:
    async with serve_edge(tmp_path, proxies=NO_PROXY, requests_per_minute=PER_MINUTE) as made:
        yield made


def figures(headers) -> tuple[str | None, ...]:
    return tuple(headers.get(f"ratelimit-{name}") for name in ("limit", "remaining", "reset"))


async def test_a_key_is_told_what_is_left_and_refused_beyond_it(edge: ServedEdge):
    told = [figures((await edge.ann.get("/v1/jobs")).headers) for _ in range(PER_MINUTE)]
    assert told == [("6", str(left), str(10 * (PER_MINUTE - left))) for left in reversed(range(PER_MINUTE))]
    refused = await edge.ann.get("/v1/jobs")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
    assert figures(refused.headers) == ("6", "0", "60")
    problem = refused.json()
    assert problem["code"] == "rate_limited"
    assert "may make 6 requests a minute: try again in 10 s" in problem["detail"]
    assert (await edge.bob.get("/v1/jobs")).status_code == 200, "another key has its own"
    edge.world.time.advance(seconds=10)
    assert (await edge.ann.get("/v1/jobs")).status_code == 200
    assert (await edge.ann.get("/v1/jobs")).status_code == 429


async def test_every_door_of_a_key_counts_as_one(edge: ServedEdge):
    async with connect_gateway(edge.url, edge.texts["ann"]) as socket:
        for _ in range(PER_MINUTE):
            assert (await socket.ask("ping")).get("type") == "pong"
        answer = await socket.ask("ping")
        assert answer["result"]["error"]["code"] == "rate_limited"
        assert answer["result"]["error"]["retry_after_s"] == 10
    assert (await edge.ann.get("/v2/echo/health")).status_code == 429


async def test_a_runner_has_no_limit_and_neither_has_who_needs_no_key(edge: ServedEdge):
    for _ in range(PER_MINUTE + 1):
        assert (await edge.runner.post("/v1/assets/check", json={"digests": []})).status_code != 429
        assert (await edge.anyone.get("/livez")).status_code == 200
