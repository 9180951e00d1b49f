"""Relays of the gateway: requests, replies, errors, timeouts and disconnects."""

import json

import anyio
import pytest

from edge.power.drivers.generic import RelayDriver, RelayUnavailable
from schemas.power import NoCapacity, PowerCallFailed, PowerDriverReply, ReportedPower
from tests.edge.facades.gateway.conftest import GatewayEdge
from tests.support.gateway_client import MESSAGE_TIMEOUT_S, GatewayClient, GatewayMessage


async def ask(gateway: GatewayEdge, kind: str = "gpu.power.state", call_id: str = "") -> PowerDriverReply:
    with anyio.fail_after(MESSAGE_TIMEOUT_S):
        return await gateway.services.relay_hub.request(kind, "gpu-1", call_id)


async def entered(*relays: GatewayClient) -> None:
    for made in relays:
        await made.ask("ping")


async def reply(made: GatewayClient, fields: GatewayMessage, *echoed: str) -> GatewayMessage:
    """Reply to the next request with `fields`, and echo the named fields of the request."""
    question = await made.wait_for_type("gpu.power.state")
    made.messages.clear()
    await made.socket.send(
        json.dumps({"type": question["type"], **{name: question[name] for name in echoed}, **fields})
    )
    return question


async def test_without_a_relay_the_switch_fails_loudly(gateway: GatewayEdge):
    with pytest.raises(RelayUnavailable):
        await ask(gateway)
    with pytest.raises(PowerCallFailed, match="lamplighter relay"):
        await RelayDriver(gateway.services.relay_hub, "gpu-1").start("call-1")


@pytest.mark.parametrize("echoed", [("request_id",), ("payload",), ()])
async def test_an_answer_finds_its_question_by_what_it_echoes(gateway: GatewayEdge, echoed: tuple[str, ...]):
    async with gateway.connect("relay") as made, anyio.create_task_group() as tasks:
        await entered(made)
        tasks.start_soon(reply, made, {"result": {"state": "on", "no_capacity": False}}, *echoed)
        assert await ask(gateway) == PowerDriverReply(ReportedPower.ON)


async def test_orders_carry_host_and_call(gateway: GatewayEdge):
    async with gateway.connect("relay") as made, anyio.create_task_group() as tasks:
        await entered(made)
        tasks.start_soon(RelayDriver(gateway.services.relay_hub, "gpu-1").start, "call-1")
        said = await made.wait_for_type("gpu.power.start")
        assert said["payload"] == {"host": "gpu-1", "call_id": "call-1"}
        await made.send("gpu.power.start", said["payload"], result={"state": "starting"})


async def test_of_two_relays_the_one_that_knows_the_host_speaks(gateway: GatewayEdge):
    async with (
        gateway.connect("relay") as knowing,
        gateway.connect("relay") as other,
        anyio.create_task_group() as tasks,
    ):
        await entered(knowing, other)

        async def in_turn() -> None:
            await reply(other, {"error": True, "error_msg": "not mine"}, "request_id")
            await reply(knowing, {"result": {"state": "off"}}, "request_id")

        tasks.start_soon(in_turn)
        assert (await ask(gateway)).state is ReportedPower.OFF


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"error": True, "error_msg": "it is unplugged"}, "unplugged"),
        ({"result": {"state": "sleeping"}}, "state"),
    ],
)
async def test_a_refusal_and_rubbish_fail_the_call(gateway: GatewayEdge, answer: GatewayMessage, why: str):
    async with gateway.connect("relay") as made, anyio.create_task_group() as tasks:
        await entered(made)
        tasks.start_soon(reply, made, answer, "request_id")
        with pytest.raises(PowerCallFailed, match=why):
            await ask(gateway)


async def test_no_capacity_is_said(gateway: GatewayEdge):
    async with gateway.connect("relay") as made, anyio.create_task_group() as tasks:
        await entered(made)
        tasks.start_soon(reply, made, {"result": {"no_capacity": True}}, "request_id")
        with pytest.raises(NoCapacity):
            await RelayDriver(gateway.services.relay_hub, "gpu-1").state()


async def test_a_relay_that_leaves_owes_nothing(gateway: GatewayEdge):
    async with gateway.connect("relay") as made, anyio.create_task_group() as tasks:
        await entered(made)

        async def leave() -> None:
            await made.wait_for_type("gpu.power.state")
            await made.socket.close()

        tasks.start_soon(leave)
        with pytest.raises(RelayUnavailable):
            await ask(gateway)


async def test_what_nobody_asked_is_dropped(gateway: GatewayEdge):
    async with gateway.connect("relay") as made:
        await made.send("gpu.power.state", {"host": "gpu-1"}, result={"state": "on"})
        assert (await made.ask("ping"))["type"] == "pong"


async def test_a_relay_whose_key_was_revoked_is_not_believed(gateway: GatewayEdge):
    (key,) = await gateway.keys.list("relay")

    async def answer_too_late(made: GatewayClient) -> None:
        await made.wait_for_type("gpu.power.state")
        await gateway.keys.revoke(key.id)
        await made.send("gpu.power.state", result={"state": "off"})

    async with gateway.connect("relay") as made, anyio.create_task_group() as tasks:
        await entered(made)
        tasks.start_soon(answer_too_late, made)
        with pytest.raises(RelayUnavailable):
            await ask(gateway)
