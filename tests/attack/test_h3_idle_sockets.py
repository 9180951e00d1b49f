"""H3: connections that say nothing must end, and must not take the places of those that do."""

import json
from contextlib import AsyncExitStack

import anyio
import pytest
from anyio.abc import ByteStream

from edge.server.connections import ConnectionLimiter, ServerSettings
from schemas.problems import ProblemError
from tests.attack.conftest import GET, AttackTarget, ServeFunction, is_closed, read_response

ELSEWHERE = ("192.0.2.0/24",)  # once a proxy is declared, loopback is an address like any other


async def test_a_connection_that_says_nothing_is_closed(serve: ServeFunction, tls: bool):
    async with serve(tls=tls, head_s=0.5) as target, target.connected() as stream:
        assert await is_closed(stream, within_s=10)


async def test_a_tls_handshake_that_does_not_begin_is_ended(serve: ServeFunction):
    async with serve(tls=True, handshake_s=0.5) as target, await anyio.connect_tcp("127.0.0.1", target.port) as stream:
        assert await is_closed(stream, within_s=10)


async def test_a_body_that_stops_coming_is_given_up(serve: ServeFunction):
    async with serve(stall_s=0.5) as target, target.connected() as stream:
        await stream.send(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc")
        assert await is_closed(stream, within_s=10)


async def _idle(target: AttackTarget, count: int, stack: AsyncExitStack) -> list[ByteStream]:
    return [await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", target.port)) for _ in range(count)]


async def test_idle_connections_give_way_where_all_places_are_taken(serve: ServeFunction, tls: bool):
    async with serve(tls=tls, connections=20) as target, AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(target.connected()) for _ in range(20)]
        assert (await target.ask()).startswith(b"HTTP/1.1 200 ")
        assert await is_closed(idle[0], within_s=10), "the one that waited longest went"


async def test_a_place_is_given_back_when_its_connection_ends(serve: ServeFunction, tls: bool):
    """Slots are freed after served requests, failed TLS handshakes and WebSockets."""
    async with serve(tls=tls, connections=3) as target:
        for _ in range(10):
            assert (await target.ask()).startswith(b"HTTP/1.1 200 ")
            async with await anyio.connect_tcp("127.0.0.1", target.port) as stream:
                await stream.send(b"neither TLS nor HTTP\r\n\r\n")
                assert await is_closed(stream, within_s=10)


async def test_one_address_has_no_more_than_its_share(serve: ServeFunction):
    async with serve(connections_per_address=5, trusted_proxies=ELSEWHERE) as target, AsyncExitStack() as stack:
        first, *_ = await _idle(target, 5, stack)
        said = await target.ask()
        assert said.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 10" in said.lower()
        problem = json.loads(said.partition(b"\r\n\r\n")[2])
        assert problem["code"] == "too_many_connections"
        await first.send(GET)
        assert (await read_response(first)).startswith(b"HTTP/1.1 200 "), "those that are open are served"


async def test_the_share_holds_during_tls_handshakes(serve: ServeFunction):
    bounds = {"connections_per_address": 5, "trusted_proxies": ELSEWHERE}
    async with serve(tls=True, **bounds) as target, AsyncExitStack() as stack:
        await _idle(target, 5, stack)
        (sixth,) = await _idle(target, 1, stack)
        assert await is_closed(sixth, within_s=5), "before the ten seconds of a handshake"


@pytest.mark.parametrize("proxies", [(), ("127.0.0.1",)])
async def test_what_comes_through_a_proxy_is_not_one_client(serve: ServeFunction, proxies: tuple[str, ...]):
    """Loopback may be a proxy that nobody declared."""
    async with serve(connections_per_address=5, trusted_proxies=proxies) as target, AsyncExitStack() as stack:
        await _idle(target, 8, stack)
        assert (await target.ask()).startswith(b"HTTP/1.1 200 ")


def test_an_ipv6_client_is_its_64():
    bounds = ServerSettings(connections_per_address=2)
    connections = ConnectionLimiter(bounds, limit=10)
    for last in (1, 2):
        connections.acquire_slot(f"2001:db8::{last}")
    with pytest.raises(ProblemError) as refused:
        connections.acquire_slot("2001:db8::3")
    assert refused.value.code == "too_many_connections"
    connections.acquire_slot("2001:db8:0:1::1")
    slot = connections.acquire_slot("::ffff:192.0.2.1")
    connections.acquire_slot("192.0.2.1")
    with pytest.raises(ProblemError):
        connections.acquire_slot("192.0.2.1")
    slot.release()
    slot.release()
    connections.acquire_slot("192.0.2.1")
    assert len(connections) == 5
