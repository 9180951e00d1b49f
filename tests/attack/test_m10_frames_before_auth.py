"""M10: `/ws` takes small frames until it knows the client: 30 strangers with 15 MiB each were 450 MiB."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ByteStream

from edge.server.protocol import UNAUTHENTICATED_FRAME_LIMIT_BYTES
from tests.attack.conftest import AttackTarget
from tests.edge.facades.gateway.conftest import GatewayEdge, gateway, limits
from tests.support.gateway_client import connect_gateway

__all__ = ["gateway", "limits"]

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
CLIENT = 0x80  # the bit of a masked payload


def head(size: int, first: int = 0x81) -> bytes:
    """Return the head of a text frame of `size` bytes, masked with zeros."""
    return bytes([first, CLIENT | 127]) + size.to_bytes(8, "big") + bytes(4)


@asynccontextmanager
async def stranger(gateway: GatewayEdge) -> AsyncIterator[ByteStream]:
    target = AttackTarget(int(gateway.url.rsplit(":", 1)[1]), tls=False)
    async with target.connected() as stream:
        await stream.send(HANDSHAKE)
        with anyio.fail_after(10):
            said = b""
            while b"\r\n\r\n" not in said:
                said += await stream.receive()
        assert said.startswith(b"HTTP/1.1 101 ")
        yield stream


async def code(stream: ByteStream) -> int:
    """Return the code of the next close frame."""
    said = b""
    with anyio.fail_after(10):
        while len(said) < 4:
            said += await stream.receive()
    assert said[0] == 0x88
    return int.from_bytes(said[2:4], "big")


async def test_a_large_frame_of_a_stranger_is_refused_by_its_head(gateway: GatewayEdge):
    async with stranger(gateway) as stream:
        await stream.send(head(15 * 1024 * 1024))
        assert await code(stream) == 1009


async def test_fragments_do_not_add_up_to_more(gateway: GatewayEdge):
    async with stranger(gateway) as stream:
        half = UNAUTHENTICATED_FRAME_LIMIT_BYTES // 2
        await stream.send(head(half, 0x01) + b"a" * half)
        await stream.send(head(half, 0x00) + b"a" * half)
        await stream.send(head(1, 0x00) + b"a")
        assert await code(stream) == 1009


async def test_whoever_is_known_may_send_large_frames_at_once(gateway: GatewayEdge):
    """The first frame after the handshake may be large too: the reply is an error, and the connection stays open."""
    for _ in range(5):
        async with connect_gateway(gateway.url, gateway.texts["ann"]) as made:
            await made.socket.send("x" * (3 * 1024 * 1024))
            assert (await made.next())["result"]["error"]["code"] == "body_too_large"


async def test_whoever_becomes_known_may_send_large_frames_then(gateway: GatewayEdge):
    async with connect_gateway(gateway.url, None) as made:
        await made.send("auth", {"license_key": gateway.texts["ann"]})
        assert (await made.ask("ping", request_id="p"))["type"] == "pong"
        await made.socket.send(os.urandom(1024 * 1024 * 3).hex())
        assert (await made.next())["result"]["error"]["code"] == "body_too_large"
