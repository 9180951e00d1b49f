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

from bus.interface import Bus
from bus.nats.topology import STREAMS
from bus.open import open_edge, open_runner
from schemas.credentials import ApiKey, Scope, hash_secret
from schemas.endpoint_parts import StoredSecret
from schemas.host import HostHeartbeat
from schemas.job import Priority
from schemas.power import PowerRecord, PowerState
from tests.bus.test_rights import ONE
from tests.support.bus_samples import NOW, make_key, make_log_piece, make_record
from tests.support.nats_broker import BrokerProcess, run_broker
from tests.support.raw_nats import RawNats, connect_raw
from tests.support.wait import WAIT_TIMEOUT_S, wait_for

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
    "$KV.SECRETS.owner.ann.HF_TOKEN",
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
ADMIN = ApiKey(id="pwn", owner="evil", scopes=(Scope.ADMIN,), secret_sha256=hash_secret("s"), created_at=NOW)


class HostRoute(NamedTuple):
    """A permission that produces a reply: the subject and the body to publish."""

    subject: str
    data: bytes


HOST_WAYS = {
    "a record of its own": HostRoute(OWN, b""),
    "no message": HostRoute("$JS.API.CONSUMER.MSG.NEXT.JOBS.echo-high", NO_WAIT),
    "a message": HostRoute("$JS.API.CONSUMER.MSG.NEXT.JOBS.echo-normal", NO_WAIT),
    "a job's record": HostRoute("$JS.API.STREAM.MSG.GET.KV_STATE", b'{"last_by_subj":"$KV.STATE.me.one"}'),
    "a stream's state": HostRoute("$JS.API.STREAM.INFO.KV_HOSTS", b""),
    "an acknowledged write": HostRoute("$KV.HOSTS.evil", ADMIN.id.encode()),
    "an order": HostRoute("$JS.API.DIRECT.GET.KV_POWER.$KV.POWER.evil", b""),
}
READER_WAYS = {
    "a message": HostRoute("$JS.API.CONSUMER.MSG.NEXT.FEED.kept", NO_WAIT),
    "a stream's state": HostRoute("$JS.API.STREAM.INFO.FEED", b""),
    "a consumer's state": HostRoute("$JS.API.CONSUMER.INFO.FEED.kept", b""),
    "a new consumer": HostRoute(
        "$JS.API.CONSUMER.CREATE.FEED.kept",
        b'{"stream_name":"FEED","config":{"durable_name":"kept","ack_policy":"explicit"}}',
    ),
    "no such consumer": HostRoute("$JS.API.CONSUMER.DELETE.FEED.none", b""),
}


@pytest.fixture
async def server(tmp_path) -> AsyncIterator[BrokerProcess]:
    async with run_broker(tmp_path, hosts=("evil", "good")) as made:
        yield made


@pytest.fixture
async def edge(server: BrokerProcess) -> AsyncIterator[Bus]:
    """Run an installation with a waiting job and one consumer of a reader."""
    async with open_edge(server.settings("edge")) as bus:
        await bus.job_queue.ensure_consumers(["echo"])
        await bus.job_store.create(make_key(), make_record())
        await bus.feed.publish(make_key(), make_log_piece(1))
        async with connect_raw(server) as operator:
            config = {"durable_name": "kept", "ack_policy": "explicit"}
            body = {"stream_name": "FEED", "config": config}
            assert "error" not in await operator.api("CONSUMER.CREATE.FEED.kept", body)

            async def sourced() -> bool:
                return (await operator.api("STREAM.INFO.FEED"))["state"]["messages"] == 2

            await wait_for(sourced)
        yield bus


@asynccontextmanager
async def eavesdropper(server: BrokerProcess) -> AsyncIterator[tuple[RawNats, list[str]]]:
    """Subscribe in the edge's account and collect every subject."""
    async with connect_raw(server) as spy:
        heard: list[str] = []

        async def hear(message: Msg) -> None:
            heard.append(message.subject)

        await spy.client.subscribe(">", cb=hear)
        await spy.client.flush()
        yield spy, heard


async def everything(spy: RawNats) -> dict[str, tuple[int, int, int]]:
    """Return messages, last sequence and consumers of every stream, without the presence of hosts."""
    found = {}
    for stream in STREAMS:
        if stream.name != "KV_HOSTS":
            info = await spy.api(f"STREAM.INFO.{stream.name}")
            assert "error" not in info, f"{stream.name} is gone"
            state = info["state"]
            found[stream.name] = (state["messages"], state["last_seq"], state["consumer_count"])
    return found


async def attack(raider: RawNats, way: HostRoute, honest: str) -> None:
    """Request replies to every target, then wait for the reply to a legitimate request."""
    for _ in range(ROUNDS):
        for target in TARGETS:
            await raider.client.publish(way.subject, way.data, reply=target)
    inbox = await raider.client.subscribe(honest)
    await raider.client.publish(way.subject, way.data, reply=honest)
    await inbox.next_msg(timeout=WAIT_TIMEOUT_S)
    await raider.client.flush()


async def fruitless(server: BrokerProcess, user: str, ways: Mapping[str, HostRoute], way: str) -> None:
    """Check that nothing arrives at any target and that no stream changes."""
    async with (
        eavesdropper(server) as (spy, heard),
        connect_raw(server, GOOD) as neighbour,
        connect_raw(server, user) as raider,
    ):
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
async def test_a_host_cannot_have_an_answer_sent_elsewhere(server: BrokerProcess, edge: Bus, way: str):
    await edge.job_queue.publish(ONE)
    async with connect_raw(server, EVIL) as host:
        await host.publish("$KV.HOSTS.evil", json.dumps({"id": "pwn"}).encode())
    await fruitless(server, EVIL, HOST_WAYS, way)


@pytest.mark.parametrize("way", READER_WAYS)
async def test_a_reader_cannot_have_an_answer_sent_elsewhere(server: BrokerProcess, edge: Bus, way: str):
    await fruitless(server, "reader", READER_WAYS, way)


async def planted(host: RawNats, body: bytes, target: str) -> None:
    """Write `body` as the presence of a host, and request it with the reply subject `target`."""
    await host.publish("$KV.HOSTS.evil", body)
    await host.client.publish(OWN, b"", reply=target)
    inbox = await host.client.subscribe("_INBOX_runner-evil.honest")
    await host.client.publish(OWN, b"", reply="_INBOX_runner-evil.honest")
    assert (await inbox.next_msg(timeout=WAIT_TIMEOUT_S)).data == body
    await inbox.unsubscribe()


async def test_a_host_cannot_plant_a_key(server: BrokerProcess, edge: Bus):
    async with connect_raw(server, EVIL) as host:
        await planted(host, msgspec.json.encode(ADMIN), "$KV.KEYS.pwn")
    assert await edge.api_keys.keys() == set()


async def test_a_host_cannot_speak_for_another(server: BrokerProcess, edge: Bus):
    forged = HostHeartbeat(host="good", incarnation="forged", at=NOW, since=NOW)
    async with connect_raw(server, EVIL) as host:
        await planted(host, msgspec.json.encode(forged), "$KV.HOSTS.good")
        await planted(host, msgspec.json.encode(PowerRecord(state=PowerState.DRAINING, since=NOW)), "$KV.POWER.good")
    assert await edge.heartbeats.keys() == {"evil"}
    assert await edge.power_records.keys() == set()


@pytest.mark.parametrize("stream", ["KV_KEYS", "KV_AGREED", "KV_JOINED", "KV_SECRETS"])
async def test_a_host_cannot_read_secrets_by_a_consumer_of_its_own_making(
    server: BrokerProcess, edge: Bus, stream: str
):
    inbox = "_INBOX_runner-evil.stolen"
    body = json.dumps({"stream_name": stream, "config": {"deliver_subject": inbox, "ack_policy": "none"}}).encode()
    async with connect_raw(server, EVIL) as host, connect_raw(server) as operator:
        stolen = await host.client.subscribe(inbox)
        await planted(host, body, f"$JS.API.CONSUMER.CREATE.{stream}")
        control = {"stream_name": stream, "config": {"durable_name": "control", "ack_policy": "explicit"}}
        await operator.api(f"CONSUMER.CREATE.{stream}.control", control)  # the API does one thing after the other
        assert (await operator.api(f"CONSUMER.NAMES.{stream}"))["consumers"] == ["control"]
        assert stolen.pending_msgs == 0


SECRET_ROW = "$KV.SECRETS.owner.ann.HF_TOKEN"
READS = {
    f"$JS.API.DIRECT.GET.KV_SECRETS.{SECRET_ROW}": b"",
    "$JS.API.DIRECT.GET.KV_SECRETS": b'{"last_by_subj":"$KV.SECRETS.owner.ann.HF_TOKEN"}',
    "$JS.API.STREAM.MSG.GET.KV_SECRETS": b'{"last_by_subj":"$KV.SECRETS.owner.ann.HF_TOKEN"}',
    "$JS.API.STREAM.INFO.KV_SECRETS": b'{"subjects_filter":">"}',
    "$JS.API.CONSUMER.CREATE.KV_SECRETS": b'{"stream_name":"KV_SECRETS","config":{"ack_policy":"none"}}',
    "$JS.API.STREAM.SNAPSHOT.KV_SECRETS": b'{"deliver_subject":"_INBOX_runner-evil.stolen"}',
}


async def test_a_host_cannot_read_the_bucket_of_secrets(server: BrokerProcess, edge: Bus):
    secret = StoredSecret(key_id="k", nonce=b"n", sealed=b"sealed", set_at=NOW, set_by="k1")
    await edge.secrets.put("owner.ann.HF_TOKEN", secret)
    async with connect_raw(server, EVIL) as host, connect_raw(server) as operator:
        stolen = await host.client.subscribe("_INBOX_runner-evil.stolen")
        for subject, data in READS.items():
            await host.client.publish(subject, data, reply="_INBOX_runner-evil.stolen")
        denied = await host.client.subscribe("$KV.SECRETS.>")
        await host.client.flush()
        await edge.secrets.put("owner.ann.HF_TOKEN", secret)
        await planted(host, b"{}", "$KV.SECRETS.owner.ann.OTHER")
        assert (stolen.pending_msgs, denied.pending_msgs) == (0, 0)
        assert await edge.secrets.keys() == {"owner.ann.HF_TOKEN"}
        assert (await operator.api("CONSUMER.NAMES.KV_SECRETS"))["consumers"] in ([], None)


async def test_a_host_cannot_delete_a_stream_by_an_empty_answer(server: BrokerProcess, edge: Bus):
    async with connect_raw(server, EVIL) as host, connect_raw(server) as operator:
        for stream in ("USAGE", "DELIVERIES"):
            await host.client.publish(
                "$JS.API.CONSUMER.MSG.NEXT.JOBS.echo-high", NO_WAIT, reply=f"$JS.API.STREAM.DELETE.{stream}"
            )
        inbox = await host.client.subscribe("_INBOX_runner-evil.honest")
        await host.client.publish(
            "$JS.API.CONSUMER.MSG.NEXT.JOBS.echo-high", NO_WAIT, reply="_INBOX_runner-evil.honest"
        )
        assert (await inbox.next_msg(timeout=WAIT_TIMEOUT_S)).headers
        for stream in ("USAGE", "DELIVERIES"):
            assert "error" not in await operator.api(f"STREAM.INFO.{stream}")


async def test_a_host_cannot_pass_for_the_edge_by_a_header(server: BrokerProcess, edge: Bus):
    """The broker names the requester of its JetStream API in this header."""
    forged = {"Nats-Request-Info": '{"acc":"LAMPLIGHTER","svc":"LAMPLIGHTER"}'}
    async with connect_raw(server, EVIL) as host, connect_raw(server) as operator:
        said = await host.publish("$JS.API.STREAM.INFO.KV_STATE", b"", forged)
        assert said["config"]["name"] == "KV_STATE"
        await host.publish("$KV.HOSTS.evil", b"{}", forged)
        got = (await operator.api("STREAM.MSG.GET.KV_HOSTS", {"last_by_subj": "$KV.HOSTS.evil"}))["message"]
        assert "hdrs" not in got


async def test_a_reader_cannot_have_messages_delivered_elsewhere(server: BrokerProcess, edge: Bus):
    async with eavesdropper(server) as (spy, heard), connect_raw(server, "reader") as reader:
        for number, target in enumerate(TARGETS):
            config = {"name": f"c{number}", "deliver_subject": target, "ack_policy": "none", "headers_only": True}
            body = {"stream_name": "FEED", "config": config}
            assert "error" in await reader.api(f"CONSUMER.CREATE.FEED.c{number}", body)
        assert (await spy.api("CONSUMER.NAMES.FEED"))["consumers"] == ["kept"]
        assert not set(heard) & set(TARGETS)


async def test_a_host_still_does_its_work_after_all_that(server: BrokerProcess, edge: Bus):
    async with open_runner(server.settings(EVIL)) as runner:
        await edge.job_queue.publish(ONE)
        delivery = await runner.job_queue.fetch("echo", Priority.NORMAL, WAIT_TIMEOUT_S)
        assert delivery is not None
        await delivery.ack()
        assert await edge.job_queue.list_pending() == set()
