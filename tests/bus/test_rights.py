"""A runner over the bus with exactly the rights of its user: all it must do works, the rest is denied aloud."""

import pytest

from bus.connection import open_edge, open_runner
from bus.port import Bus, Denied, Unreachable
from bus.settings import BrokerSettings
from schemas.asset import Reference
from schemas.host import Offer, Presence, Tombstone
from schemas.job import Pointer
from schemas.words import Priority, Status
from tests.broker import PATIENCE_S, Broker, until
from tests.bus.gathering import gathering
from tests.bus.raw import raw
from tests.bus.samples import NOW, end, key, piece, progress, recorded

ONE = Pointer("echo", Priority.NORMAL, "me", "one", 1)


def presence(host: str) -> Presence:
    return Presence(host=host, incarnation="a", at=NOW, since=NOW)


async def test_a_runner_may_do_all_its_work(server: Broker, edge: Bus):
    await edge.queue.ensure(["echo"])
    await edge.tombstones.put("ab", Tombstone("ab", NOW))
    await edge.records.create(key(), recorded())
    async with open_runner(server.settings("runner-gpu-1")) as runner:
        await edge.queue.publish(ONE)
        assert await runner.queue.woken(["echo"], PATIENCE_S)
        delivery = await runner.queue.take("echo", Priority.NORMAL)
        assert delivery is not None
        entry = await runner.records.read(key())
        assert entry is not None
        revision = await runner.records.update(key(), recorded(status=Status.RUNNING), entry.revision)
        await delivery.extend()
        for note in (progress(1), piece(2), end(3)):
            await runner.feed.publish(key(), note)
        await runner.hosts.put("gpu-1", presence("gpu-1"))
        await runner.offers.put("gpu-1", Offer(host="gpu-1", incarnation="a", at=NOW))
        assert await runner.hosts.get("gpu-1") is not None
        assert set(await runner.hosts.rows()) == {"gpu-1"}
        assert set(await runner.tombstones.rows()) == {"ab"}
        await runner.records.update(key(), recorded(status=Status.SUCCEEDED), revision)
        await delivery.done()
        await runner.hosts.delete("gpu-1")
        assert await edge.queue.waiting() == set()
        async with gathering(runner.control.nudges("gpu-1")) as nudges:

            async def nudged() -> bool:
                await edge.control.nudge("gpu-1", key())
                return bool(nudges.items)

            await until(nudged)
            assert nudges.items[0] == key()


async def test_a_runner_is_denied_the_rest_at_once(server: Broker, edge: Bus):
    reference = Reference("a", 1, "video/mp4", NOW, NOW)
    async with open_runner(server.settings("runner-gpu-1")) as runner:
        denied = {
            "another host's presence": lambda: runner.hosts.put("gpu-2", presence("gpu-2")),
            "another host's offer": lambda: runner.offers.put("gpu-2", Offer(host="gpu-2", incarnation="a", at=NOW)),
            "a consumer": lambda: runner.queue.ensure(["echo"]),
            "a job": lambda: runner.queue.publish(ONE),
            "a job's end in the queue": lambda: runner.queue.withdraw(ONE),
            "the list of jobs": runner.queue.waiting,
            "a tombstone": lambda: runner.tombstones.put("ab", Tombstone("ab", NOW)),
            "an asset": lambda: runner.assets.put("me.ab", reference),
            "the keys": lambda: runner.keys.get("k"),
            "reading FEED": runner.feed.position,
            "erasing FEED": lambda: runner.feed.erase(*key()),
        }
        for what, ask in denied.items():
            with pytest.raises(Denied) as caught:
                await ask()
            assert "runner-gpu-1" in str(caught.value), what
        assert runner.link.connected


async def test_a_runner_may_not_listen_for_another_host(server: Broker, edge: Bus):
    async with open_runner(server.settings("runner-gpu-1")) as runner:
        with pytest.raises(Denied, match=r"subscribe to ctl\.gpu-2"):
            await anext(aiter(runner.control.nudges("gpu-2")))


async def test_a_runner_may_not_make_or_change_streams(server: Broker, edge: Bus):
    with pytest.raises(Denied):
        async with open_edge(server.settings("runner-gpu-1")):
            raise AssertionError("a runner opened as the edge")


async def test_the_runner_of_any_host_may_speak_for_each(server: Broker, edge: Bus):
    async with open_runner(server.settings("runner")) as runner:
        for host in ("gpu-1", "gpu-2", "local"):
            await runner.hosts.put(host, presence(host))
    assert set(await edge.hosts.rows()) == {"gpu-1", "gpu-2", "local"}


async def test_a_reader_follows_feed_with_a_consumer_of_its_own(server: Broker, edge: Bus):
    await edge.feed.publish(key(), piece(1))
    async with raw(server, "reader") as reader:
        config = {"name": "mine", "durable_name": "mine", "ack_policy": "explicit", "filter_subject": "feed.me.>"}
        made = await reader.api("CONSUMER.CREATE.FEED.mine.feed.me.>", {"stream_name": "FEED", "config": config})
        assert "error" not in made
        inbox = await reader.client.subscribe("_INBOX_reader.mine")
        await reader.client.publish("$JS.API.CONSUMER.MSG.NEXT.FEED.mine", b"1", reply="_INBOX_reader.mine")
        message = await inbox.next_msg(timeout=PATIENCE_S)
        assert message.subject == "feed.me.one.log"
        await message.ack_sync()


@pytest.mark.parametrize("open_bus", [open_edge, open_runner])
async def test_a_wrong_password_is_denied_at_once(server: Broker, open_bus):
    settings = BrokerSettings(server.url, "edge", "wrong", server.monitor)
    with pytest.raises(Denied, match="user or password"):
        async with open_bus(settings):
            raise AssertionError("it was let in")


@pytest.mark.parametrize("open_bus", [open_edge, open_runner])
async def test_no_broker_is_unreachable(server: Broker, open_bus):
    settings = server.settings("edge")
    await server.stop()
    with pytest.raises(Unreachable, match=settings.url):
        async with open_bus(settings):
            raise AssertionError("there is nobody")


async def test_an_error_of_the_body_leaves_as_itself(server: Broker):
    with pytest.raises(KeyError, match="mine"):
        async with open_edge(server.settings("edge")):
            raise KeyError("mine")
