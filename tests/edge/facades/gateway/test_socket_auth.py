"""Authentication of sockets, and frames that are not messages."""

import json
from contextlib import suppress

import anyio
import pytest
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.facades.gateway.gateway import GatewayLimits
from edge.http.auth import KEY_REVOKED_REASON
from schemas.credentials import Scope
from schemas.gateway_protocol import FRAME_LIMIT_BYTES
from tests.edge.facades.gateway.conftest import GatewayEdge
from tests.support.gateway_client import GatewayClient, connect_gateway

SOON = pytest.mark.parametrize("limits", [GatewayLimits(auth_timeout_s=0.2, waiting_interval_s=0.2)])


async def works(made: GatewayClient) -> bool:
    return (await made.ask("ping", request_id="p"))["type"] == "pong"


@pytest.mark.parametrize("path", ["/ws", "/dsp"])
async def test_a_key_comes_with_the_handshake(gateway: GatewayEdge, path: str):
    key = gateway.texts["ann"]
    token = gateway.services.tokens.issue((await gateway.keys.list("ann"))[0], (Scope.JOBS_READ,), 60).text
    for query in (f"?key={key}", f"?token={token}"):
        async with connect_gateway(gateway.url, None, path=path + query) as made:
            assert await works(made)
    async with connect_gateway(gateway.url, key, path=path) as made:
        assert await works(made)
    async with connect_gateway(gateway.url, None, path=path, X_API_Key=key) as made:
        assert await works(made)


async def test_a_key_comes_in_the_first_message(gateway: GatewayEdge):
    async with connect_gateway(gateway.url, None) as made:
        await made.send("auth", {"license_key": gateway.texts["ann"]})
        assert await works(made)
        await made.send("auth", {"license_key": gateway.texts["ann"]})
        assert await works(made)


@pytest.mark.parametrize(
    "first",
    [
        '{"type":"auth","payload":{"license_key":"lamp_x_0123456789abcdef"}}',
        '{"type":"auth","payload":{"license_key":7}}',
        '{"type":"auth"}',
        '{"type":"ping"}',
        "no json",
    ],
)
async def test_a_first_message_that_is_no_key_closes_4401(gateway: GatewayEdge, first: str):
    async with connect_gateway(gateway.url, None) as made:
        await made.socket.send(first)
        assert await made.wait_until_closed() == 4401
        assert made.messages == []


async def test_a_wrong_key_closes_4401(gateway: GatewayEdge):
    async with connect_gateway(gateway.url, "lamp_x_0123456789abcdef") as made:
        assert await made.wait_until_closed() == 4401
    async with connect_gateway(gateway.url, gateway.texts["ann"], path="/ws?owner=bob") as made:
        assert await made.wait_until_closed() == 4401


@SOON
async def test_no_key_in_time_closes_4401(gateway: GatewayEdge):
    async with connect_gateway(gateway.url, None) as made:
        assert await made.wait_until_closed() == 4401


@SOON
async def test_a_revoked_key_closes_4401(gateway: GatewayEdge):
    (key,) = await gateway.keys.list("bob")
    async with gateway.connect("bob") as made:
        assert await works(made)
        await gateway.keys.revoke(key.id)
        assert await made.wait_until_closed() == 4401
        assert made.close_reason == KEY_REVOKED_REASON


async def test_a_broker_that_is_away_says_try_again_later(gateway: GatewayEdge):
    gateway.world.broker.stop()
    async with connect_gateway(gateway.url, gateway.texts["ann"]) as made:
        assert await made.wait_until_closed() == 1013
    gateway.world.broker.start()


async def test_an_admin_may_speak_for_an_owner(gateway: GatewayEdge):
    async with gateway.connect("admin", path="/ws?owner=ann") as made:
        said = await made.ask("gpu.job.submit", {"text": "a"}, task_type="echo")
        assert said["result"]["owner"] == "ann"


@pytest.mark.parametrize(
    ("frame", "code", "echoed"),
    [
        ("no json", "body_malformed", ""),
        ("[]", "input_invalid", ""),
        ("{}", "input_invalid", ""),
        ('{"type":"ping","version":"2.0","request_id":"r"}', "input_invalid", "r"),
        ('{"type":7,"request_id":"r"}', "input_invalid", "r"),
        ('{"type":"ping","payload":[],"request_id":"r"}', "input_invalid", "r"),
        ('{"type":"ping","request_id":7}', "input_invalid", ""),
        ('{"type":"what","request_id":"r"}', "input_invalid", "r"),
        (json.dumps({"type": "ping", "request_id": "r" * 300}), "input_invalid", "r" * 300),
        (
            json.dumps({"type": "ping", "request_id": "r", "payload": {"x": "y" * FRAME_LIMIT_BYTES}}),
            "body_too_large",
            "r",
        ),
        ("x" * (3 * FRAME_LIMIT_BYTES), "body_too_large", ""),
        ('{"type":"ping","payload":{"a":' + "[" * 100_000, "body_malformed", ""),
        (b"\xff\xfe", "body_malformed", ""),
    ],
)
async def test_a_frame_that_is_no_message_is_an_error_and_the_connection_stays(
    gateway: GatewayEdge, frame, code, echoed
):
    async with gateway.connect() as made:
        await made.socket.send(frame)
        said = await made.next()
        assert (said["type"], said["error"], said["result"]["error"]["code"]) == ("error", True, code)
        assert said["request_id"] == echoed
        assert await works(made)


async def test_nulls_unknown_fields_and_bytes_are_taken(gateway: GatewayEdge):
    sent = {
        "type": "ping",
        "version": "1.0",
        "ts": "now",
        "request_id": "r",
        "payload": None,
        "result": None,
        "more": 1,
    }
    async with gateway.connect() as made:
        await made.socket.send(json.dumps(sent).encode())
        said = await made.next()
    assert (said["type"], said["request_id"]) == ("pong", "r")


def messages() -> st.SearchStrategy[str]:
    """Arbitrary bytes, and messages with arbitrary values."""
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    )
    kinds = st.sampled_from(
        ["gpu.job.submit", "gpu.job.query", "gpu.job.cancel", "gpu.status", "ping", "resume", "auth", "gpu.power.state"]
    )
    payload = st.dictionaries(st.sampled_from(["text", "code", "jobs", "job_id", "after", "input", "tags"]), anything)
    shaped = st.fixed_dictionaries(
        {"type": kinds | anything},
        optional={
            "payload": payload | anything,
            "task_type": st.sampled_from(["echo", "delete_asset", "heygem_submit"]) | anything,
            "request_id": st.text(max_size=10) | anything,
            "version": st.just("1.0") | anything,
            "result": anything,
        },
    )
    return st.text(max_size=50) | shaped.map(json.dumps)


async def test_garbage_never_ends_the_connection(gateway: GatewayEdge):
    """Send all frames over one connection. The test fails if it hangs or closes."""
    frames: list[str] = []

    @settings(max_examples=300, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(messages())
    def gather(frame: str) -> None:
        frames.append(frame)

    gather()
    assert len(frames) >= 300
    async with gateway.connect("admin") as made, anyio.create_task_group() as tasks:

        async def pour() -> None:
            for frame in frames:
                await made.socket.send(frame)
            await made.send("ping", request_id="the last")

        tasks.start_soon(pour)
        last = await made.wait_for(lambda said: said["request_id"] == "the last")
    assert last["type"] == "pong"
    internal = [said for said in made.messages if said["error"] and said["result"]["error"]["code"] == "internal"]
    assert internal == []


async def test_a_frame_beyond_all_bounds_closes_1009(gateway: GatewayEdge):
    async with gateway.connect() as made:
        with suppress(websockets.ConnectionClosed):
            await made.socket.send("x" * (17 * 1024 * 1024))
        assert await made.wait_until_closed() == 1009
