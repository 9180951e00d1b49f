"""A real broker holds exactly the streams and consumers of `bus.nats.topology`, whatever was there before."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bus.interface import BrokerFull, BrokerUnreachable, Bus, BusError, MessageTooLarge
from bus.nats import topology
from bus.nats.topology import STREAMS
from bus.open import open_edge
from bus.server.process import run_server
from schemas.job import Pointer, Priority
from tests.support.bus_samples import make_key, make_log_piece, make_record
from tests.support.nats_broker import BrokerProcess
from tests.support.raw_nats import connect_raw
from tests.support.stream_collector import collect_stream
from tests.support.wait import wait_for

SECOND = 10**9
DAY = 86_400 * SECOND
WRITTEN_OUT: dict[str, dict[str, Any]] = {
    "KV_STATE": {"max_msgs_per_subject": 128, "discard": "new", "max_age": 0, "retention": "limits"},
    "JOBS": {"retention": "workqueue", "discard": "new", "max_age": 0},
    "FEED": {"retention": "limits", "discard": "old", "max_age": 7 * DAY, "max_msgs_per_subject": 2000},
    "KV_HOSTS": {"max_age": 15 * SECOND, "max_msgs_per_subject": 1},
    "KV_OFFERS": {"max_age": 0, "max_msgs_per_subject": 1},
    "KV_POWER": {"max_age": 0, "max_msgs_per_subject": 64},
    "KV_KEYS": {"max_age": 0, "max_msgs_per_subject": 4},
    "KV_ASSETS": {"max_age": 0, "max_msgs_per_subject": 4},
    "KV_TOMBSTONES": {"max_age": 0, "max_msgs_per_subject": 1},
    "KV_HOOKS": {"max_age": 0, "max_msgs_per_subject": 4},
    "KV_DELIVERED": {"max_age": 30 * DAY, "max_msgs_per_subject": 4},
    "KV_LEASES": {"max_age": 15 * SECOND, "max_msgs_per_subject": 1},
    "KV_AGREED": {"max_age": 0, "max_msgs_per_subject": 1},
    "KV_JOINED": {"max_age": 0, "max_msgs_per_subject": 4},
    "KV_HOST_TOKENS": {"max_age": 0, "max_msgs_per_subject": 4},
    "KV_ERASURES": {"max_age": 30 * DAY, "max_msgs_per_subject": 1},
    "KV_OWNER_HOOKS": {"max_age": 0, "max_msgs_per_subject": 4},
    "KV_SECRETS": {"max_age": 0, "max_msgs_per_subject": 4},
    "KV_NOTICES": {"max_age": 30 * DAY, "max_msgs_per_subject": 4},
    "KV_AUDIT": {"max_age": 400 * DAY, "max_msgs_per_subject": 1},
    "KV_ACTIONS": {"max_age": 30 * DAY, "max_msgs_per_subject": 4},
    "DELIVERIES": {"retention": "workqueue", "discard": "new"},
    "USAGE": {"retention": "limits", "max_age": 400 * DAY},
}
ONE = Pointer("echo", Priority.NORMAL, "me", "one", 1)


async def test_the_streams_are_those_of_the_design(server: BrokerProcess, edge: Bus):
    assert {stream.name for stream in STREAMS} == set(WRITTEN_OUT)
    async with connect_raw(server) as broker:
        names = (await broker.api("STREAM.NAMES"))["streams"]
        configs = {name: (await broker.api(f"STREAM.INFO.{name}"))["config"] for name in names}
    assert set(configs) == set(WRITTEN_OUT)
    for name, written in WRITTEN_OUT.items():
        made = configs[name]
        assert {field: made[field] for field in written} == written, name
        assert made["storage"] == "file", name
        assert made["allow_rollup_hdrs"] is False, name
    assert all(configs[name]["max_bytes"] > 0 for name in ("JOBS", "FEED", "DELIVERIES"))


async def test_a_lane_never_gives_up_and_never_wedges(server: BrokerProcess, edge: Bus):
    await edge.job_queue.ensure_consumers(["echo"])
    async with connect_raw(server) as broker:
        config = (await broker.api("CONSUMER.INFO.JOBS.echo-low"))["config"]
    wanted = {"ack_policy": "explicit", "ack_wait": 30 * SECOND, "max_deliver": -1, "max_ack_pending": -1}
    assert {field: config[field] for field in wanted} == wanted
    assert "backoff" not in config


async def test_what_edges_share_never_gives_up_and_reads_state_from_now_on(server: BrokerProcess, edge: Bus):
    async with connect_raw(server) as broker:
        configs = [
            (await broker.api(f"CONSUMER.INFO.{name}"))["config"]
            for name in ("KV_STATE.judging", "DELIVERIES.delivering")
        ]
    assert [config["deliver_policy"] for config in configs] == ["new", "all"]
    wanted = {"ack_policy": "explicit", "ack_wait": 60 * SECOND, "max_deliver": -1, "max_ack_pending": -1}
    assert all({field: config[field] for field in wanted} == wanted for config in configs)


async def test_another_configuration_is_put_right_and_nothing_lost(server: BrokerProcess, edge: Bus):
    await edge.job_store.create(make_key(), make_record())
    async with connect_raw(server) as broker:
        assert "error" not in await broker.update("KV_STATE", allow_rollup_hdrs=True, max_msgs_per_subject=3)
        async with open_edge(server.settings("edge")) as other:
            config = (await broker.api("STREAM.INFO.KV_STATE"))["config"]
            assert (config["allow_rollup_hdrs"], config["max_msgs_per_subject"]) == (False, 128)
            assert await other.job_store.read(make_key()) is not None


async def test_more_replicas_than_servers_is_said_with_what_to_do(server: BrokerProcess, edge: Bus):
    with pytest.raises(BusError, match=r"lower \[broker\] replicas"):
        async with open_edge(replace(server.settings("edge"), replicas=3)):
            """It does not come so far."""


async def test_a_lane_that_was_deleted_is_back_after_a_reconnect(server: BrokerProcess, edge: Bus):
    await edge.job_queue.ensure_consumers(["echo"])
    await edge.job_queue.publish(ONE)
    async with connect_raw(server) as broker:
        await broker.api("CONSUMER.DELETE.JOBS.echo-normal")
    assert await edge.job_queue.fetch("echo", Priority.NORMAL) is None
    async with collect_stream(edge.health.reconnects()) as reconnects:
        await wait_for(_stands(edge))
        await server.kill()
        await server.start()
        await reconnects.wait_for_count(1)
    delivery = await edge.job_queue.fetch("echo", Priority.NORMAL)
    assert delivery is not None
    assert delivery.pointer == ONE


async def test_no_header_can_roll_up_a_bucket(server: BrokerProcess, edge: Bus):
    """One such header wiped every record."""
    await edge.job_store.create(make_key("one"), make_record("one"))
    await edge.job_store.create(make_key("two"), make_record("two"))
    async with connect_raw(server) as broker:
        answer = await broker.publish("$KV.STATE.me.one", b"{}", {"Nats-Rollup": "all"})
    assert answer["error"]["err_code"] == 10111
    assert await edge.job_store.keys() == {make_key("one"), make_key("two")}


async def test_the_broker_itself_refuses_a_record_that_is_too_large(server: BrokerProcess, edge: Bus):
    async with connect_raw(server) as broker:
        answer = await broker.publish("$KV.STATE.me.one", b"x" * 600 * 1024)
    assert answer["error"]["err_code"] == 10054


async def test_a_note_beyond_what_the_broker_takes_is_too_large(edge: Bus):
    with pytest.raises(MessageTooLarge):
        await edge.feed.publish(make_key(), make_log_piece(1, "x" * 3 * 1024 * 1024))


async def test_a_full_queue_refuses_and_keeps_what_it_has(server: BrokerProcess, edge: Bus):
    await edge.job_queue.ensure_consumers(["echo"])
    await edge.job_queue.publish(ONE)
    async with connect_raw(server) as broker:
        assert "error" not in await broker.update("JOBS", max_bytes=300)
    refused = 0
    for number in range(2, 10):
        try:
            await edge.job_queue.publish(ONE._replace(id=f"job-{number}"))
        except BrokerFull:
            refused += 1
    assert refused
    assert len(await edge.job_queue.list_pending()) == 9 - refused
    assert ONE in await edge.job_queue.list_pending()


async def test_what_no_stream_takes_is_unreachable(server: BrokerProcess, edge: Bus):
    async with connect_raw(server) as broker:
        await broker.api("STREAM.DELETE.JOBS")
    with pytest.raises(BrokerUnreachable):
        await edge.job_queue.publish(ONE)


async def test_a_message_that_names_no_job_is_removed_not_delivered_for_ever(server: BrokerProcess, edge: Bus):
    await edge.job_queue.ensure_consumers(["echo"])
    async with connect_raw(server) as broker:
        await broker.publish("job.echo.normal.me.one.first")
    await edge.job_queue.publish(ONE)
    delivery = await edge.job_queue.fetch("echo", Priority.NORMAL)
    assert delivery is not None
    assert delivery.pointer == ONE
    async with connect_raw(server) as broker:
        assert (await broker.api("STREAM.INFO.JOBS"))["state"]["messages"] == 1


def _stands(edge: Bus):
    async def stands() -> bool:
        return edge.health.is_connected

    return stands


async def test_a_store_that_is_too_small_is_said_with_what_to_do(tmp_path: Path):
    async with run_server(BrokerProcess(tmp_path / "broker", store_bytes=1 << 30)) as server:
        with pytest.raises(BusError, match=r"reserve 1408 MB .* set max_file_store in nats\.conf to 2GB or more"):
            async with open_edge(server.settings("edge")):
                """It does not come so far."""


async def test_what_two_gigabytes_must_hold_they_hold(tmp_path: Path):
    server = BrokerProcess(tmp_path / "broker", store_bytes=2 * 10**9)
    async with run_server(server), open_edge(server.settings("edge")) as edge:
        await edge.job_store.create(make_key(), make_record())
        assert await edge.job_store.read(make_key()) is not None


async def test_a_broker_that_comes_back_too_small_is_named_until_it_is_not(
    server: BrokerProcess, edge: Bus, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as grown:
        grown.setattr(topology, "STREAMS", tuple(replace(one, max_bytes=8 << 30) for one in STREAMS))
        await server.kill()
        await server.start()

        async def said() -> bool:
            return not edge.health.is_connected and "max_file_store" in edge.health.fault

        await wait_for(said)
    await wait_for(_stands(edge))
    assert edge.health.fault == ""
