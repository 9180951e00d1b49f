"""The contract of Queue and Delivery (bus/interface.py), on the fake and on a real broker."""

import anyio
import pytest

from bus.interface import BrokerUnreachable, Lane, QueueMessage
from schemas.job import PRIORITIES, Pointer, Priority
from tests.support.bus_pairs import BusPair
from tests.support.wait import POLL_INTERVAL_S, WAIT_TIMEOUT_S, wait_for


def pointer(
    job_id: str = "one", *, priority: Priority = Priority.NORMAL, pool: str = "echo", round_: int = 1
) -> Pointer:
    return Pointer(pool, priority, "me", job_id, round_)


async def take(world: BusPair, priority: Priority = Priority.NORMAL, pool: str = "echo") -> QueueMessage | None:
    return await world.runner.job_queue.fetch(pool, priority)


async def taken(
    world: BusPair, priority: Priority = Priority.NORMAL, pool: str = "echo", timeout_s: float = WAIT_TIMEOUT_S
) -> QueueMessage:
    """The next delivery, waited for: a fetch right after the confirmed publish may still find the lane empty."""
    found: list[QueueMessage] = []

    async def there() -> bool:
        try:
            delivery = await take(world, priority, pool)
        except BrokerUnreachable:
            return False
        found.extend([delivery] if delivery else [])
        return bool(found)

    await wait_for(there, timeout_s=timeout_s)
    return found[0]


@pytest.fixture(autouse=True)
async def _echo(world: BusPair) -> None:
    await world.edge.job_queue.ensure_consumers(["echo"])


async def test_what_is_published_is_taken_once(world: BusPair):
    await world.edge.job_queue.publish(pointer())
    assert (await taken(world)).pointer == pointer()
    assert await take(world) is None


async def test_nothing_waits_in_an_empty_lane_or_in_one_that_is_not_there(world: BusPair):
    assert await take(world) is None
    assert await take(world, pool="nowhere") is None


async def test_a_taker_may_wait_for_what_is_just_being_published(world: BusPair):
    took: list[QueueMessage | None] = []

    async def wait() -> None:
        took.append(await world.runner.job_queue.fetch("echo", Priority.NORMAL, WAIT_TIMEOUT_S))
        await took[0].ack() if took[0] else None

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await world.edge.job_queue.publish(pointer())
    assert [delivery and delivery.pointer for delivery in took] == [pointer()]
    assert await world.runner.job_queue.fetch("echo", Priority.NORMAL, 0.01) is None
    assert await world.runner.job_queue.fetch("nowhere", Priority.NORMAL, 0.01) is None


async def test_a_message_that_comes_after_its_fetch_was_given_up_is_returned_at_once(world: BusPair):
    """A runner that was frozen while it fetched gives the fetch up before it reads the message."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.runner.job_queue.fetch, "echo", Priority.NORMAL, WAIT_TIMEOUT_S)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    await world.edge.job_queue.publish(pointer())  # the broker still answers the fetch
    assert (await taken(world, timeout_s=20)).pointer == pointer()  # its lease would end after 30 s


async def test_lanes_do_not_mix(world: BusPair):
    await world.edge.job_queue.ensure_consumers(["echo-high", "other"])
    everything = [pointer(priority=p, pool=pool) for p in PRIORITIES for pool in ("echo", "echo-high", "other")]
    for one in everything:
        await world.edge.job_queue.publish(one)
    for one in everything:
        assert (await taken(world, one.priority, one.pool)).pointer == one
        assert await take(world, one.priority, one.pool) is None


async def test_the_oldest_is_taken_first(world: BusPair):
    names = [f"job-{number}" for number in range(20)]
    for name in names:
        await world.edge.job_queue.publish(pointer(name))
    assert [(await taken(world)).pointer.id for _ in names] == names


async def test_many_takers_share_without_a_double(world: BusPair):
    names = {f"job-{number}" for number in range(30)}
    for name in names:
        await world.edge.job_queue.publish(pointer(name))
    got: list[str] = []

    async def worker() -> None:
        while len(got) < len(names):
            if delivery := await take(world):
                got.append(delivery.pointer.id)
                await delivery.ack()
            await anyio.sleep(POLL_INTERVAL_S)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(worker)
    assert sorted(got) == sorted(names)


async def test_twice_is_once_but_a_repair_publishes_anew(world: BusPair):
    await world.edge.job_queue.publish(pointer())
    await world.edge.job_queue.publish(pointer())
    first = await taken(world)
    assert await take(world) is None
    await first.ack()
    await world.edge.job_queue.publish(pointer())
    assert await take(world) is None
    await world.edge.job_queue.publish(pointer(), repair=True)
    assert (await taken(world)).sequence > first.sequence


async def test_another_round_is_another_message(world: BusPair):
    await world.edge.job_queue.publish(pointer(round_=1))
    await world.edge.job_queue.publish(pointer(round_=2))
    assert await world.edge.job_queue.list_pending() == {pointer(round_=1), pointer(round_=2)}


async def test_what_is_done_waits_no_more(world: BusPair):
    await world.edge.job_queue.publish(pointer())
    delivery = await taken(world)
    assert await world.edge.job_queue.list_pending() == {pointer()}
    await delivery.ack()
    assert await world.edge.job_queue.list_pending() == set()
    await delivery.ack()


async def test_what_is_put_off_comes_again_under_the_same_sequence(world: BusPair):
    await world.edge.job_queue.publish(pointer())
    delivery = await taken(world)
    await delivery.nak(0.3)
    assert await take(world) is None
    again = await taken(world)
    assert (again.pointer, again.sequence) == (delivery.pointer, delivery.sequence)


async def test_what_is_put_off_waits_over_a_restart(world: BusPair):
    await world.edge.job_queue.publish(pointer())
    await (await taken(world)).nak(1.5)
    await world.reboot()
    await wait_for(_answering(world))
    assert await take(world) is None
    assert (await taken(world)).pointer == pointer()


async def test_what_is_extended_stays_with_its_holder(world: BusPair):
    await world.edge.job_queue.publish(pointer())
    delivery = await taken(world)
    await delivery.in_progress()
    assert await take(world) is None
    await delivery.ack()
    await delivery.in_progress()
    assert await world.edge.job_queue.list_pending() == set()


async def test_what_is_withdrawn_is_gone_whoever_holds_it(world: BusPair):
    await world.edge.job_queue.publish(pointer("waits"))
    await world.edge.job_queue.publish(pointer("held"))
    await world.edge.job_queue.publish(pointer("stays"))
    await world.edge.job_queue.remove(pointer("waits"))
    held = await taken(world)
    assert held.pointer == pointer("held")
    await world.edge.job_queue.remove(pointer("held"))
    await world.edge.job_queue.remove(pointer("never"))
    assert await world.edge.job_queue.list_pending() == {pointer("stays")}
    await held.ack()
    assert (await taken(world)).pointer == pointer("stays")


async def test_waiting_may_be_asked_of_one_owner(world: BusPair):
    mine, yours = pointer(), Pointer("echo", Priority.HIGH, "you", "two", 1)
    await world.edge.job_queue.publish(mine)
    await world.edge.job_queue.publish(yours)
    assert await world.edge.job_queue.list_pending("me") == {mine}
    assert await world.edge.job_queue.list_pending("you") == {yours}
    assert await world.edge.job_queue.list_pending("nobody") == set()
    assert await world.edge.job_queue.list_pending() == {mine, yours}


async def test_a_publish_wakes_its_lane_even_before_anybody_waits(world: BusPair):
    await world.edge.job_queue.publish(pointer())
    assert await world.runner.job_queue.wait_for_messages(["echo", "other"], WAIT_TIMEOUT_S) == {
        Lane("echo", Priority.NORMAL)
    }
    assert not await world.runner.job_queue.wait_for_messages(["echo"], 0.01)


async def test_a_wake_names_every_lane_that_was_published_to(world: BusPair):
    await world.edge.job_queue.ensure_consumers(["gpu-low"])
    lanes = {Lane("gpu-low", Priority.HIGH), Lane("echo", Priority.LOW)}
    for pool, priority in lanes:
        await world.edge.job_queue.publish(pointer(pool=pool, priority=priority))
    heard: set[Lane] = set()
    while heard != lanes:
        woken = await world.runner.job_queue.wait_for_messages(["echo", "gpu-low"], WAIT_TIMEOUT_S)
        assert woken
        heard |= woken


async def test_a_publish_wakes_whoever_waits_for_its_pool_only(world: BusPair):
    await world.edge.job_queue.ensure_consumers(["other"])
    woken: list[str] = []

    async def wait(pool: str) -> None:
        if await world.runner.job_queue.wait_for_messages([pool], WAIT_TIMEOUT_S):
            woken.append(pool)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, "other")
        tasks.start_soon(wait, "echo")
        await world.edge.job_queue.publish(pointer())
    assert woken == ["echo"]


async def test_nothing_is_lost_or_doubled_over_restarts_while_taking(world: BusPair):
    names = [f"job-{number}" for number in range(30)]
    for name in names:
        await world.edge.job_queue.publish(pointer(name))
    done: list[str] = []
    for turn in range(3):
        for _ in range(10):
            delivery = await taken(world)
            await delivery.ack()
            done.append(delivery.pointer.id)
        if turn < 2:
            await world.restart()
    assert done == names


def _answering(world: BusPair):
    async def answering() -> bool:
        try:
            await world.runner.job_queue.fetch("echo", Priority.LOW)
            await world.edge.job_queue.list_pending()
        except BrokerUnreachable:
            return False
        return world.runner.health.is_connected and world.edge.health.is_connected

    return answering
