"""C1: whoever has the broker password of a host, or of a reader, tries to write elsewhere by where answers are sent.

The broker checks the subject of a publish, not the subject that it names for the answer. Every right with an answer is
tried with every subject that is worth it, against a real nats-server, and an eavesdropper in the edge's account
tells what arrived there.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
import pytest
from nats.aio.msg import Msg

from bus.connection import open_edge, open_runner
from bus.port import Bus
from bus.topology import STREAMS
from schemas.access import ApiKey, Scope, secret_digest
from schemas.host import Presence
from schemas.power import PowerRecord, PowerState
from schemas.words import Priority
from tests.broker import PATIENCE_S, Broker, broker, until
from tests.bus.raw import Raw, raw
from tests.bus.samples import NOW, key, piece, recorded
from tests.bus.test_rights import ONE

EVIL, GOOD = "runner-evil", "runner-good"
OWN = "$JS.API.DIRECT.GET.KV_HOSTS.$KV.HOSTS.evil"
NO_WAIT = b'{"batch":1,"no_wait":true}'
ROUNDS = 3
TARGETS = (
    "$KV.KEYS.pwn",
    "$KV.JOINED.ghost",
    "$KV.AGREED.secret",
    "$KV.HOSTS.good",
    "$KV.OFFERS.good",
    "$KV.POWER.good",
    "$KV.POWER.evil",
    "$KV.ASSETS.ann.aa",
    "$KV.TOMBSTONES.aa",
    "$KV.HOOKS.ann",
    "ctl.good",
    "wake.echo-high",
    "job.echo.high.ann.pwn.1",
    "delivery.ann.pwn.1.0",
    "usage.job.ann.pwn.1",
    "feed.ann.pwn.state",
    "readers.CONSUMER.DELETE.FEED.kept",
    "_INBOX_edge.x",
    "_INBOX_runner-good.x",
    "$JS.API.STREAM.DELETE.USAGE",
    "$JS.API.STREAM.PURGE.KV_KEYS",
    "$JS.API.STREAM.MSG.GET.KV_KEYS",
    "$JS.API.CONSUMER.CREATE.KV_AGREED",
    "$JS.API.CONSUMER.DELETE.JOBS.echo-normal",
    "$SYS.REQ.ACCOUNT.LAMPLIGHTER.CONNZ",
)
ADMIN = ApiKey(id="pwn", owner="evil", scopes=(Scope.ADMIN,), secret_sha256=secret_digest("s"), created_at=NOW)


class Way(NamedTuple):
    """A right with an answer: what to publish, and with which body."""

    subject: str
    data: bytes


HOST_WAYS = {
    "a record of its own": Way(OWN, b""),
    "no message": Way("$JS.API.CONSUMER.MSG.NEXT.JOBS.echo-high", NO_WAIT),
    "a message": Way("$JS.API.CONSUMER.MSG.NEXT.JOBS.echo-normal", NO_WAIT),
    "a job's record": Way("$JS.API.STREAM.MSG.GET.KV_STATE", b'{"last_by_subj":"$KV.STATE.me.one"}'),
    "a stream's state": Way("$JS.API.STREAM.INFO.KV_HOSTS", b""),
    "an acknowledged write": Way("$KV.HOSTS.evil", ADMIN.id.encode()),
    "an order": Way("$JS.API.DIRECT.GET.KV_POWER.$KV.POWER.evil", b""),
}
READER_WAYS = {
    "a message": Way("$JS.API.CONSUMER.MSG.NEXT.FEED.kept", NO_WAIT),
    "a stream's state": Way("$JS.API.STREAM.INFO.FEED", b""),
    "a consumer's state": Way("$JS.API.CONSUMER.INFO.FEED.kept", b""),
    "a new consumer": Way(
        "$JS.API.CONSUMER.CREATE.FEED.kept",
        b'{"stream_name":"FEED","config":{"durable_name":"kept","ack_policy":"explicit"}}',
    ),
    "no such consumer": Way("$JS.API.CONSUMER.DELETE.FEED.none", b""),
}


@pytest.fixture
async def server(tmp_path) -> AsyncIterator[Broker]:
    async with broker(tmp_path, hosts=("evil", "good")) as made:
        yield made


@pytest.fixture
async def edge(server: Broker) -> AsyncIterator[Bus]:
    """An installation at work: a job that waits, one consumer of a reader."""
    async with open_edge(server.settings("edge")) as bus:
        await bus.queue.ensure(["echo"])
        await bus.records.create(key(), recorded())
        await bus.feed.publish(key(), piece(1))
        async with raw(server) as operator:
            config = {"durable_name": "kept", "ack_policy": "explicit"}
            body = {"stream_name": "FEED", "config": config}
            assert "error" not in await operator.api("CONSUMER.CREATE.FEED.kept", body)

            async def sourced() -> bool:
                return (await operator.api("STREAM.INFO.FEED"))["state"]["messages"] == 2

            await until(sourced)
        yield bus


@asynccontextmanager
async def eavesdropper(server: Broker) -> AsyncIterator[tuple[Raw, list[str]]]:
    """Somebody in the edge's account, and every subject that is said there."""
    async with raw(server) as spy:
        heard: list[str] = []

        async def hear(message: Msg) -> None:
            heard.append(message.subject)

        await spy.client.subscribe(">", cb=hear)
        await spy.client.flush()
        yield spy, heard


async def everything(spy: Raw) -> dict[str, tuple[int, int, int]]:
    """Of every stream: its messages, its last one, its consumers. A host's own presence does not count."""
    found = {}
    for stream in STREAMS:
        if stream.name != "KV_HOSTS":
            info = await spy.api(f"STREAM.INFO.{stream.name}")
            assert "error" not in info, f"{stream.name} is gone"
            state = info["state"]
            found[stream.name] = (state["messages"], state["last_seq"], state["consumer_count"])
    return found


async def attack(raider: Raw, way: Way, honest: str) -> None:
    """Have the answers sent to every target, then wait for one that was asked for honestly."""
    for _ in range(ROUNDS):
        for target in TARGETS:
            await raider.client.publish(way.subject, way.data, reply=target)
    inbox = await raider.client.subscribe(honest)
    await raider.client.publish(way.subject, way.data, reply=honest)
    await inbox.next_msg(timeout=PATIENCE_S)
    await raider.client.flush()


async def fruitless(server: Broker, user: str, ways: Mapping[str, Way], way: str) -> None:
    """Nothing arrives at any target, in the edge's account or at the other host, and no stream changes."""
    async with eavesdropper(server) as (spy, heard), raw(server, GOOD) as neighbour, raw(server, user) as raider:
        victim = await neighbour.client.subscribe("_INBOX_runner-good.x")
        ordered = await neighbour.client.subscribe("ctl.good")
        await neighbour.client.flush()
        before = await everything(spy)
        await attack(raider, ways[way], f"_INBOX_{user}.honest")
        after = await everything(spy)
        await spy.client.flush()
        await neighbour.client.flush()
        arrived = set(heard) & set(TARGETS)
        assert (arrived, victim.pending_msgs, ordered.pending_msgs) == (set(), 0, 0)
        assert after == before


@pytest.mark.parametrize("way", HOST_WAYS)
async def test_a_host_cannot_have_an_answer_sent_elsewhere(server: Broker, edge: Bus, way: str):
    await edge.queue.publish(ONE)
    async with raw(server, EVIL) as host:
        await host.publish("$KV.HOSTS.evil", json.dumps({"id": "pwn"}).encode())
    await fruitless(server, EVIL, HOST_WAYS, way)


@pytest.mark.parametrize("way", READER_WAYS)
async def test_a_reader_cannot_have_an_answer_sent_elsewhere(server: Broker, edge: Bus, way: str):
    await fruitless(server, "reader", READER_WAYS, way)


async def planted(host: Raw, body: bytes, target: str) -> None:
    """A host writes `body` as its own presence, and has that read to `target`."""
    await host.publish("$KV.HOSTS.evil", body)
    await host.client.publish(OWN, b"", reply=target)
    inbox = await host.client.subscribe("_INBOX_runner-evil.honest")
    await host.client.publish(OWN, b"", reply="_INBOX_runner-evil.honest")
    assert (await inbox.next_msg(timeout=PATIENCE_S)).data == body
    await inbox.unsubscribe()


async def test_a_host_cannot_plant_a_key(server: Broker, edge: Bus):
    async with raw(server, EVIL) as host:
        await planted(host, msgspec.json.encode(ADMIN), "$KV.KEYS.pwn")
    assert await edge.keys.keys() == set()


async def test_a_host_cannot_speak_for_another(server: Broker, edge: Bus):
    forged = Presence(host="good", incarnation="forged", at=NOW, since=NOW)
    async with raw(server, EVIL) as host:
        await planted(host, msgspec.json.encode(forged), "$KV.HOSTS.good")
        await planted(host, msgspec.json.encode(PowerRecord(state=PowerState.DRAINING, since=NOW)), "$KV.POWER.good")
    assert await edge.hosts.keys() == {"evil"}
    assert await edge.power.keys() == set()


@pytest.mark.parametrize("stream", ["KV_KEYS", "KV_AGREED", "KV_JOINED"])
async def test_a_host_cannot_read_secrets_by_a_consumer_of_its_own_making(server: Broker, edge: Bus, stream: str):
    inbox = "_INBOX_runner-evil.stolen"
    body = json.dumps({"stream_name": stream, "config": {"deliver_subject": inbox, "ack_policy": "none"}}).encode()
    async with raw(server, EVIL) as host, raw(server) as operator:
        stolen = await host.client.subscribe(inbox)
        await planted(host, body, f"$JS.API.CONSUMER.CREATE.{stream}")
        control = {"stream_name": stream, "config": {"durable_name": "control", "ack_policy": "explicit"}}
        await operator.api(f"CONSUMER.CREATE.{stream}.control", control)  # the API does one thing after the other
        assert (await operator.api(f"CONSUMER.NAMES.{stream}"))["consumers"] == ["control"]
        assert stolen.pending_msgs == 0


async def test_a_host_cannot_delete_a_stream_by_an_empty_answer(server: Broker, edge: Bus):
    async with raw(server, EVIL) as host, raw(server) as operator:
        for stream in ("USAGE", "DELIVERIES"):
            await host.client.publish(
                "$JS.API.CONSUMER.MSG.NEXT.JOBS.echo-high", NO_WAIT, reply=f"$JS.API.STREAM.DELETE.{stream}"
            )
        inbox = await host.client.subscribe("_INBOX_runner-evil.honest")
        await host.client.publish(
            "$JS.API.CONSUMER.MSG.NEXT.JOBS.echo-high", NO_WAIT, reply="_INBOX_runner-evil.honest"
        )
        assert (await inbox.next_msg(timeout=PATIENCE_S)).headers
        for stream in ("USAGE", "DELIVERIES"):
            assert "error" not in await operator.api(f"STREAM.INFO.{stream}")


async def test_a_host_cannot_pass_for_the_edge_by_a_header(server: Broker, edge: Bus):
    """The broker itself says in this header who asks its JetStream API."""
    forged = {"Nats-Request-Info": '{"acc":"LAMPLIGHTER","svc":"LAMPLIGHTER"}'}
    async with raw(server, EVIL) as host, raw(server) as operator:
        said = await host.publish("$JS.API.STREAM.INFO.KV_STATE", b"", forged)
        assert said["config"]["name"] == "KV_STATE"
        await host.publish("$KV.HOSTS.evil", b"{}", forged)
        got = (await operator.api("STREAM.MSG.GET.KV_HOSTS", {"last_by_subj": "$KV.HOSTS.evil"}))["message"]
        assert "hdrs" not in got


async def test_a_reader_cannot_have_messages_delivered_elsewhere(server: Broker, edge: Bus):
    async with eavesdropper(server) as (spy, heard), raw(server, "reader") as reader:
        for number, target in enumerate(TARGETS):
            config = {"name": f"c{number}", "deliver_subject": target, "ack_policy": "none", "headers_only": True}
            body = {"stream_name": "FEED", "config": config}
            assert "error" in await reader.api(f"CONSUMER.CREATE.FEED.c{number}", body)
        assert (await spy.api("CONSUMER.NAMES.FEED"))["consumers"] == ["kept"]
        assert not set(heard) & set(TARGETS)


async def test_a_host_still_does_its_work_after_all_that(server: Broker, edge: Bus):
    async with open_runner(server.settings(EVIL)) as runner:
        await edge.queue.publish(ONE)
        delivery = await runner.queue.take("echo", Priority.NORMAL, PATIENCE_S)
        assert delivery is not None
        await delivery.done()
        assert await edge.queue.waiting() == set()
