"""What only the fake can do: let time pass, cut one connection, fill the store."""

import pytest

from bus.interface import BrokerFull, BrokerUnreachable
from schemas.host import HEARTBEAT_TTL_S, HostHeartbeat
from schemas.job import Pointer, Priority
from tests.support.bus_samples import NOW, make_key, make_log_piece, make_record
from tests.support.fake_bus.broker import FakeBroker
from tests.support.stream_collector import collect_stream

ONE = Pointer("echo", Priority.NORMAL, "me", "one", 1)


class MemoryClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_delivery_comes_again_after_30_s_unless_extended():
    clock = MemoryClock()
    bus = FakeBroker(clock).connect()
    await bus.job_queue.ensure_consumers(["echo"])
    await bus.job_queue.publish(ONE)
    delivery = await bus.job_queue.fetch("echo", Priority.NORMAL)
    assert delivery is not None
    clock.now = 29.0
    assert await bus.job_queue.fetch("echo", Priority.NORMAL) is None
    await delivery.in_progress()
    clock.now = 58.0
    assert await bus.job_queue.fetch("echo", Priority.NORMAL) is None
    clock.now = 59.0
    again = await bus.job_queue.fetch("echo", Priority.NORMAL)
    assert again is not None
    assert again.sequence == delivery.sequence


async def test_an_id_is_forgotten_after_its_window_and_over_a_restart_once_the_message_is_gone():
    clock = MemoryClock()
    broker = FakeBroker(clock)
    bus = broker.connect()
    await bus.job_queue.ensure_consumers(["echo"])
    await bus.job_queue.publish(ONE)
    broker.restart()
    await bus.job_queue.publish(ONE)
    assert await bus.job_queue.list_pending() == {ONE}
    first = await bus.job_queue.fetch("echo", Priority.NORMAL)
    assert first is not None
    assert await bus.job_queue.fetch("echo", Priority.NORMAL) is None
    await first.ack()
    broker.restart()
    await bus.job_queue.publish(ONE)
    assert await bus.job_queue.fetch("echo", Priority.NORMAL) is not None


async def test_presence_runs_out():
    clock = MemoryClock()
    bus = FakeBroker(clock).connect()
    await bus.heartbeats.put("gpu-1", HostHeartbeat(host="gpu-1", incarnation="a", at=NOW, since=NOW))
    clock.now = HEARTBEAT_TTL_S - 0.1
    assert await bus.heartbeats.get("gpu-1") is not None
    clock.now = HEARTBEAT_TTL_S
    assert await bus.heartbeats.get("gpu-1") is None
    assert await bus.heartbeats.rows() == {}


async def test_a_cut_connection_is_alone_and_catches_up_when_healed():
    clock = MemoryClock()
    broker = FakeBroker(clock)
    edge, runner = broker.connect(), broker.connect()
    revision = await edge.job_store.create(make_key(), make_record())
    async with (
        collect_stream(edge.feed.follow("me", "one")) as feed,
        collect_stream(edge.health.reconnects()) as reconnects,
    ):
        await feed.wait_for_count(1)
        clock.now = 10.0
        assert edge.health.uptime_s() == 10.0
        edge.cut()
        assert not edge.health.is_connected
        assert edge.health.uptime_s() == 0.0
        for asked in (
            edge.job_store.read(make_key()),
            edge.job_queue.list_pending(),
            edge.heartbeats.rows(),
            edge.health.status(),
        ):
            with pytest.raises(BrokerUnreachable):
                await asked
        await runner.job_store.update(make_key(), make_record(text="two"), revision)
        await runner.feed.publish(make_key(), make_log_piece(10))
        assert len(feed.items) == 1
        clock.now = 20.0
        edge.heal()
        assert len(await feed.wait_for_count(3)) == 3
        await reconnects.wait_for_count(1)
        clock.now = 23.0
        assert edge.health.uptime_s() == 3.0
        assert runner.health.uptime_s() == 23.0


async def test_a_full_store_takes_nothing():
    broker = FakeBroker()
    bus = broker.connect()
    await bus.job_queue.ensure_consumers(["echo"])
    broker.fill()
    assert (await bus.health.status()).used_share == 1.0
    with pytest.raises(BrokerFull):
        await bus.job_store.create(make_key(), make_record())
    with pytest.raises(BrokerFull):
        await bus.job_queue.publish(ONE)
    broker.fill(False)
    await bus.job_queue.publish(ONE)
    assert await bus.job_queue.list_pending() == {ONE}
