"""M7: one key's event streams are counted: 1,000 of them made another tenant's jobs wait 24 s."""

import json
from contextlib import AsyncExitStack

import httpx2
import pytest
import websockets

from edge.facades.gateway.gateway import CLOSE_TRY_AGAIN_LATER
from schemas.credentials import CLIENT_SCOPES
from tests.edge.routes.conftest import edge
from tests.support.gateway_client import connect_gateway
from tests.support.served_edge import STREAMS_PER_KEY, STREAMS_PER_OWNER, ServedEdge
from tests.support.wait import wait_for

__all__ = ["edge"]


async def _opened(client: httpx2.AsyncClient, count: int, stack: AsyncExitStack) -> list[httpx2.Response]:
    return [await stack.enter_async_context(client.stream("GET", "/v1/events")) for _ in range(count)]


async def test_a_key_has_no_more_streams_than_its_share_and_gets_them_back(edge: ServedEdge):
    async with AsyncExitStack() as stack:
        opened = await _opened(edge.ann, STREAMS_PER_KEY, stack)
        assert {reply.status_code for reply in opened} == {200}
        refused = await edge.ann.get("/v1/events")
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_connections")
        assert refused.headers["retry-after"] == "10"
        with pytest.raises(websockets.InvalidStatus) as handshake:
            await websockets.connect(
                f"{edge.url.replace('http', 'ws')}/v1/events?token={edge.texts['ann']}", open_timeout=10
            )
        assert handshake.value.response.status_code == 429
        assert json.loads(handshake.value.response.body or b"")["code"] == "too_many_connections"
        (other,) = await _opened(edge.bob, 1, stack)
        assert other.status_code == 200, "another owner notices nothing"
        assert (await edge.ann.get("/v1/jobs")).status_code == 200

    async def free() -> bool:
        async with edge.ann.stream("GET", "/v1/events") as again:
            return again.status_code == 200

    await wait_for(free)


async def test_many_keys_of_one_owner_share_a_limit(edge: ServedEdge):
    more = [(await edge.keys.create("ann", CLIENT_SCOPES)).text for _ in range(2)]
    async with AsyncExitStack() as stack:
        codes = []
        for text in more:
            client = await stack.enter_async_context(
                httpx2.AsyncClient(base_url=edge.url, headers={"Authorization": f"Bearer {text}"}, timeout=20)
            )
            codes += [reply.status_code for reply in await _opened(client, STREAMS_PER_OWNER // 2 + 1, stack)]
    assert codes.count(200) == STREAMS_PER_OWNER
    assert set(codes) == {200, 429}


async def test_the_gateway_s_sockets_are_counted_too(edge: ServedEdge):
    async with AsyncExitStack() as stack:
        for _ in range(STREAMS_PER_KEY):
            made = await stack.enter_async_context(connect_gateway(edge.url, edge.texts["ann"]))
            assert (await made.ask("ping", request_id="p"))["type"] == "pong"
        async with connect_gateway(edge.url, edge.texts["ann"]) as one_more:
            assert await one_more.wait_until_closed() == CLOSE_TRY_AGAIN_LATER
            assert "gateway sockets" in one_more.close_reason
