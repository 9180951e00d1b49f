"""Relays at the gateway: asked, answering, refusing, silent, gone."""

import json

import anyio
import pytest

from edge.power.drivers.port import NoCapacity, SwitchFailed
from edge.power.drivers.relay import RelayAway, RelayDriver
from edge.power.drivers.reply import SwitchReply
from schemas.power import Provider
from tests.edge.facades.gateway.conftest import Door
from tests.edge.facades.gateway.desk import PATIENCE_S, Desk, Said


async def ask(door: Door, kind: str = "gpu.power.state", call_id: str = "") -> SwitchReply:
    with anyio.fail_after(PATIENCE_S):
        return await door.parts.relays.ask(kind, "gpu-1", call_id)


async def entered(*relays: Desk) -> None:
    for made in relays:
        await made.ask("ping")


async def reply(made: Desk, fields: Said, *echoed: str) -> Said:
    """Answer the next question with `fields`, echoing what is named."""
    question = await made.hear("gpu.power.state")
    made.said.clear()
    await made.socket.send(
        json.dumps({"type": question["type"], **{name: question[name] for name in echoed}, **fields})
    )
    return question


async def test_without_a_relay_the_switch_fails_loudly(door: Door):
    with pytest.raises(RelayAway):
        await ask(door)
    with pytest.raises(SwitchFailed, match="lamplighter relay"):
        await RelayDriver(door.parts.relays, "gpu-1").start("call-1")


@pytest.mark.parametrize("echoed", [("request_id",), ("payload",), ()])
async def test_an_answer_finds_its_question_by_what_it_echoes(door: Door, echoed: tuple[str, ...]):
    async with door.desk("relay") as made, anyio.create_task_group() as tasks:
        await entered(made)
        tasks.start_soon(reply, made, {"result": {"state": "on", "no_capacity": False}}, *echoed)
        assert await ask(door) == SwitchReply(Provider.ON)


async def test_orders_carry_host_and_call(door: Door):
    async with door.desk("relay") as made, anyio.create_task_group() as tasks:
        await entered(made)
        tasks.start_soon(RelayDriver(door.parts.relays, "gpu-1").start, "call-1")
        said = await made.hear("gpu.power.start")
        assert said["payload"] == {"host": "gpu-1", "call_id": "call-1"}
        await made.send("gpu.power.start", said["payload"], result={"state": "starting"})


async def test_of_two_relays_the_one_that_knows_the_host_speaks(door: Door):
    async with door.desk("relay") as knowing, door.desk("relay") as other, anyio.create_task_group() as tasks:
        await entered(knowing, other)

        async def in_turn() -> None:
            await reply(other, {"error": True, "error_msg": "not mine"}, "request_id")
            await reply(knowing, {"result": {"state": "off"}}, "request_id")

        tasks.start_soon(in_turn)
        assert (await ask(door)).state is Provider.OFF


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"error": True, "error_msg": "it is unplugged"}, "unplugged"),
        ({"result": {"state": "sleeping"}}, "state"),
    ],
)
async def test_a_refusal_and_rubbish_fail_the_call(door: Door, answer: Said, why: str):
    async with door.desk("relay") as made, anyio.create_task_group() as tasks:
        await entered(made)
        tasks.start_soon(reply, made, answer, "request_id")
        with pytest.raises(SwitchFailed, match=why):
            await ask(door)


async def test_no_capacity_is_said(door: Door):
    async with door.desk("relay") as made, anyio.create_task_group() as tasks:
        await entered(made)
        tasks.start_soon(reply, made, {"result": {"no_capacity": True}}, "request_id")
        with pytest.raises(NoCapacity):
            await RelayDriver(door.parts.relays, "gpu-1").state()


async def test_a_relay_that_leaves_owes_nothing(door: Door):
    async with door.desk("relay") as made, anyio.create_task_group() as tasks:
        await entered(made)

        async def leave() -> None:
            await made.hear("gpu.power.state")
            await made.socket.close()

        tasks.start_soon(leave)
        with pytest.raises(RelayAway):
            await ask(door)


async def test_what_nobody_asked_is_dropped(door: Door):
    async with door.desk("relay") as made:
        await made.send("gpu.power.state", {"host": "gpu-1"}, result={"state": "on"})
        assert (await made.ask("ping"))["type"] == "pong"


async def test_a_relay_whose_key_was_revoked_is_not_believed(door: Door):
    (key,) = await door.keys.list("relay")

    async def answer_too_late(made: Desk) -> None:
        await made.hear("gpu.power.state")
        await door.keys.revoke(key.id)
        await made.send("gpu.power.state", result={"state": "off"})

    async with door.desk("relay") as made, anyio.create_task_group() as tasks:
        await entered(made)
        tasks.start_soon(answer_too_late, made)
        with pytest.raises(RelayAway):
            await ask(door)
