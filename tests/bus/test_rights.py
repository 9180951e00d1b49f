"""A runner over the bus with exactly the rights of its user: all it must do works, the rest is denied aloud."""

import pytest

from bus.interface import BrokerDenied, BrokerUnreachable, Bus
from bus.open import open_edge, open_runner
from bus.settings import BrokerSettings
from schemas.asset import AssetReference
from schemas.host import AssetTombstone, HostCapabilities, HostHeartbeat
from schemas.job import Pointer, Priority, Status
from tests.support.bus_samples import NOW, make_key, make_log_end, make_log_piece, make_progress, make_record
from tests.support.nats_broker import BrokerProcess
from tests.support.raw_nats import connect_raw
from tests.support.stream_collector import collect_stream
from tests.support.wait import WAIT_TIMEOUT_S, wait_for

ONE = Pointer("echo", Priority.NORMAL, "me", "one", 1)


def presence(host: str) -> HostHeartbeat:
    return HostHeartbeat(host=host, incarnation="a", at=NOW, since=NOW)


async def test_a_runner_may_do_all_its_work(server: BrokerProcess, edge: Bus):
    await edge.job_queue.ensure_consumers(["echo"])
    await edge.tombstones.put("ab", AssetTombstone("ab", NOW))
    await edge.job_store.create(make_key(), make_record())
    async with open_runner(server.settings("runner-gpu-1")) as runner:
        await edge.job_queue.publish(ONE)
        assert await runner.job_queue.wait_for_messages(["echo"], WAIT_TIMEOUT_S)
        delivery = await runner.job_queue.fetch("echo", Priority.NORMAL, WAIT_TIMEOUT_S)
        assert delivery is not None
        entry = await runner.job_store.read(make_key())
        assert entry is not None
        revision = await runner.job_store.update(make_key(), make_record(status=Status.RUNNING), entry.revision)
        await delivery.in_progress()
        for note in (make_progress(1), make_log_piece(2), make_log_end(3)):
            await runner.feed.publish(make_key(), note)
        await runner.heartbeats.put("gpu-1", presence("gpu-1"))
        await runner.capabilities.put("gpu-1", HostCapabilities(host="gpu-1", incarnation="a", at=NOW))
        assert await runner.heartbeats.get("gpu-1") is not None
        assert set(await runner.heartbeats.rows()) == {"gpu-1"}
        assert set(await runner.tombstones.rows()) == {"ab"}
        await runner.job_store.update(make_key(), make_record(status=Status.SUCCEEDED), revision)
        await delivery.ack()
        await runner.heartbeats.delete("gpu-1")
        assert await edge.job_queue.list_pending() == set()
        async with collect_stream(runner.host_nudges.subscribe("gpu-1")) as nudges:

            async def nudged() -> bool:
                await edge.host_nudges.nudge("gpu-1", make_key())
                return bool(nudges.items)

            await wait_for(nudged)
            assert nudges.items[0] == make_key()


async def test_a_runner_is_denied_the_rest_at_once(server: BrokerProcess, edge: Bus):
    reference = AssetReference("a", 1, "video/mp4", NOW, NOW)
    async with open_runner(server.settings("runner-gpu-1")) as runner:
        denied = {
            "another host's presence": lambda: runner.heartbeats.put("gpu-2", presence("gpu-2")),
            "another host's offer": lambda: runner.capabilities.put(
                "gpu-2", HostCapabilities(host="gpu-2", incarnation="a", at=NOW)
            ),
            "a consumer": lambda: runner.job_queue.ensure_consumers(["echo"]),
            "a job": lambda: runner.job_queue.publish(ONE),
            "a job's end in the queue": lambda: runner.job_queue.remove(ONE),
            "the list of jobs": runner.job_queue.list_pending,
            "a tombstone": lambda: runner.tombstones.put("ab", AssetTombstone("ab", NOW)),
            "an asset": lambda: runner.asset_references.put("me.ab", reference),
            "the keys": lambda: runner.api_keys.get("k"),
            "reading FEED": runner.feed.last_id,
            "erasing FEED": lambda: runner.feed.delete(*make_key()),
        }
        for what, ask in denied.items():
            with pytest.raises(BrokerDenied) as caught:
                await ask()
            assert "runner-gpu-1" in str(caught.value), what
        assert runner.health.is_connected


async def test_a_runner_may_not_listen_for_another_host(server: BrokerProcess, edge: Bus):
    async with open_runner(server.settings("runner-gpu-1")) as runner:
        with pytest.raises(BrokerDenied, match=r"subscribe to ctl\.gpu-2"):
            await anext(aiter(runner.host_nudges.subscribe("gpu-2")))


async def test_a_runner_may_not_make_or_change_streams(server: BrokerProcess, edge: Bus):
    with pytest.raises(BrokerDenied):
        async with open_edge(server.settings("runner-gpu-1")):
            raise AssertionError("a runner opened as the edge")


async def test_the_runner_of_any_host_may_speak_for_each(server: BrokerProcess, edge: Bus):
    async with open_runner(server.settings("runner")) as runner:
        for host in ("gpu-1", "gpu-2", "local"):
            await runner.heartbeats.put(host, presence(host))
    assert set(await edge.heartbeats.rows()) == {"gpu-1", "gpu-2", "local"}


async def test_a_reader_follows_feed_with_a_consumer_of_its_own(server: BrokerProcess, edge: Bus):
    await edge.feed.publish(make_key(), make_log_piece(1))
    async with connect_raw(server, "reader") as reader:
        config = {"name": "mine", "durable_name": "mine", "ack_policy": "explicit", "filter_subject": "feed.me.>"}
        made = await reader.api("CONSUMER.CREATE.FEED.mine.feed.me.>", {"stream_name": "FEED", "config": config})
        assert "error" not in made
        inbox = await reader.client.subscribe("_INBOX_reader.mine")
        await reader.client.publish("$JS.API.CONSUMER.MSG.NEXT.FEED.mine", b"1", reply="_INBOX_reader.mine")
        message = await inbox.next_msg(timeout=WAIT_TIMEOUT_S)
        assert message.subject == "feed.me.one.log"
        await message.ack_sync()


@pytest.mark.parametrize("open_bus", [open_edge, open_runner])
async def test_a_wrong_password_is_denied_at_once(server: BrokerProcess, open_bus):
    settings = BrokerSettings(server.url, "edge", "wrong", server.monitor_url)
    with pytest.raises(BrokerDenied, match="user or password"):
        async with open_bus(settings):
            raise AssertionError("it was let in")


@pytest.mark.parametrize("open_bus", [open_edge, open_runner])
async def test_no_broker_is_unreachable(server: BrokerProcess, open_bus):
    settings = server.settings("edge")
    await server.stop()
    with pytest.raises(BrokerUnreachable, match=settings.url):
        async with open_bus(settings):
            raise AssertionError("there is nobody")


async def test_an_error_of_the_body_leaves_as_itself(server: BrokerProcess):
    with pytest.raises(KeyError, match="mine"):
        async with open_edge(server.settings("edge")):
            raise KeyError("mine")
