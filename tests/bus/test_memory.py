"""What only the fake can do: let time pass, cut one connection, fill the store."""

import pytest

from bus.memory import MemoryBroker
from bus.port import StoreFull, Unreachable
from schemas.host import PRESENCE_TTL_S, Presence
from schemas.job import Pointer
from schemas.words import Priority
from tests.bus.gathering import gathering
from tests.bus.samples import NOW, key, piece, recorded

ONE = Pointer("echo", Priority.NORMAL, "me", "one", 1)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_delivery_comes_again_after_30_s_unless_extended():
    clock = Clock()
    bus = MemoryBroker(clock).connect()
    await bus.queue.ensure(["echo"])
    await bus.queue.publish(ONE)
    delivery = await bus.queue.take("echo", Priority.NORMAL)
    assert delivery is not None
    clock.now = 29.0
    assert await bus.queue.take("echo", Priority.NORMAL) is None
    await delivery.extend()
    clock.now = 58.0
    assert await bus.queue.take("echo", Priority.NORMAL) is None
    clock.now = 59.0
    again = await bus.queue.take("echo", Priority.NORMAL)
    assert again is not None
    assert again.sequence == delivery.sequence


async def test_an_id_is_forgotten_after_its_window_and_over_a_restart_once_the_message_is_gone():
    clock = Clock()
    broker = MemoryBroker(clock)
    bus = broker.connect()
    await bus.queue.ensure(["echo"])
    await bus.queue.publish(ONE)
    broker.restart()
    await bus.queue.publish(ONE)
    assert await bus.queue.waiting() == {ONE}
    first = await bus.queue.take("echo", Priority.NORMAL)
    assert first is not None
    assert await bus.queue.take("echo", Priority.NORMAL) is None
    await first.done()
    broker.restart()
    await bus.queue.publish(ONE)
    assert await bus.queue.take("echo", Priority.NORMAL) is not None


async def test_presence_runs_out():
    clock = Clock()
    bus = MemoryBroker(clock).connect()
    await bus.hosts.put("gpu-1", Presence(host="gpu-1", incarnation="a", at=NOW, since=NOW))
    clock.now = PRESENCE_TTL_S - 0.1
    assert await bus.hosts.get("gpu-1") is not None
    clock.now = PRESENCE_TTL_S
    assert await bus.hosts.get("gpu-1") is None
    assert await bus.hosts.rows() == {}


async def test_a_cut_connection_is_alone_and_catches_up_when_healed():
    clock = Clock()
    broker = MemoryBroker(clock)
    edge, runner = broker.connect(), broker.connect()
    revision = await edge.records.create(key(), recorded())
    async with gathering(edge.feed.follow("me", "one")) as feed, gathering(edge.link.reconnects()) as reconnects:
        await feed.count(1)
        clock.now = 10.0
        assert edge.link.unbroken_s() == 10.0
        edge.cut()
        assert not edge.link.connected
        assert edge.link.unbroken_s() == 0.0
        for asked in (edge.records.read(key()), edge.queue.waiting(), edge.hosts.rows(), edge.link.health()):
            with pytest.raises(Unreachable):
                await asked
        await runner.records.update(key(), recorded(text="two"), revision)
        await runner.feed.publish(key(), piece(10))
        assert len(feed.items) == 1
        clock.now = 20.0
        edge.heal()
        assert len(await feed.count(3)) == 3
        await reconnects.count(1)
        clock.now = 23.0
        assert edge.link.unbroken_s() == 3.0
        assert runner.link.unbroken_s() == 23.0


async def test_a_full_store_takes_nothing():
    broker = MemoryBroker()
    bus = broker.connect()
    await bus.queue.ensure(["echo"])
    broker.fill()
    assert (await bus.link.health()).used == 1.0
    with pytest.raises(StoreFull):
        await bus.records.create(key(), recorded())
    with pytest.raises(StoreFull):
        await bus.queue.publish(ONE)
    broker.fill(False)
    await bus.queue.publish(ONE)
    assert await bus.queue.waiting() == {ONE}
