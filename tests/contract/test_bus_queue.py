"""The contract of Queue and Delivery (bus/port.py), on the fake and on a real broker."""

import anyio
import pytest

from bus.port import Delivery, Lane, Unreachable
from schemas.job import Pointer
from schemas.words import PRIORITIES, Priority
from tests.broker import PATIENCE_S, until
from tests.contract.bus_worlds import World


def pointer(
    job_id: str = "one", *, priority: Priority = Priority.NORMAL, pool: str = "echo", round_: int = 1
) -> Pointer:
    return Pointer(pool, priority, "me", job_id, round_)


async def take(world: World, priority: Priority = Priority.NORMAL, pool: str = "echo") -> Delivery | None:
    return await world.runner.queue.take(pool, priority)


async def taken(world: World) -> Delivery:
    """The next delivery, waited for."""
    found: list[Delivery] = []

    async def there() -> bool:
        try:
            delivery = await take(world)
        except Unreachable:
            return False
        found.extend([delivery] if delivery else [])
        return bool(found)

    await until(there)
    return found[0]


@pytest.fixture(autouse=True)
async def _echo(world: World) -> None:
    await world.edge.queue.ensure(["echo"])


async def test_what_is_published_is_taken_once(world: World):
    await world.edge.queue.publish(pointer())
    delivery = await take(world)
    assert delivery is not None
    assert delivery.pointer == pointer()
    assert await take(world) is None


async def test_nothing_waits_in_an_empty_lane_or_in_one_that_is_not_there(world: World):
    assert await take(world) is None
    assert await take(world, pool="nowhere") is None


async def test_a_taker_may_wait_for_what_is_just_being_published(world: World):
    took: list[Delivery | None] = []

    async def wait() -> None:
        took.append(await world.runner.queue.take("echo", Priority.NORMAL, PATIENCE_S))
        await took[0].done() if took[0] else None

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await world.edge.queue.publish(pointer())
    assert [delivery and delivery.pointer for delivery in took] == [pointer()]
    assert await world.runner.queue.take("echo", Priority.NORMAL, 0.01) is None
    assert await world.runner.queue.take("nowhere", Priority.NORMAL, 0.01) is None


async def test_lanes_do_not_mix(world: World):
    await world.edge.queue.ensure(["echo-high", "other"])
    everything = [pointer(priority=p, pool=pool) for p in PRIORITIES for pool in ("echo", "echo-high", "other")]
    for one in everything:
        await world.edge.queue.publish(one)
    for one in everything:
        delivery = await take(world, one.priority, one.pool)
        assert delivery is not None
        assert delivery.pointer == one
        assert await take(world, one.priority, one.pool) is None


async def test_the_oldest_is_taken_first(world: World):
    names = [f"job-{number}" for number in range(20)]
    for name in names:
        await world.edge.queue.publish(pointer(name))
    deliveries = [await take(world) for _ in names]
    assert [delivery.pointer.id for delivery in deliveries if delivery] == names


async def test_many_takers_share_without_a_double(world: World):
    names = {f"job-{number}" for number in range(30)}
    for name in names:
        await world.edge.queue.publish(pointer(name))
    got: list[str] = []

    async def worker() -> None:
        while delivery := await take(world):
            got.append(delivery.pointer.id)
            await delivery.done()

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(worker)
    assert sorted(got) == sorted(names)


async def test_twice_is_once_but_a_repair_publishes_anew(world: World):
    await world.edge.queue.publish(pointer())
    await world.edge.queue.publish(pointer())
    first = await take(world)
    assert first is not None
    assert await take(world) is None
    await first.done()
    await world.edge.queue.publish(pointer())
    assert await take(world) is None
    await world.edge.queue.publish(pointer(), repair=True)
    repaired = await take(world)
    assert repaired is not None
    assert repaired.sequence > first.sequence


async def test_another_round_is_another_message(world: World):
    await world.edge.queue.publish(pointer(round_=1))
    await world.edge.queue.publish(pointer(round_=2))
    assert await world.edge.queue.waiting() == {pointer(round_=1), pointer(round_=2)}


async def test_what_is_done_waits_no_more(world: World):
    await world.edge.queue.publish(pointer())
    delivery = await taken(world)
    assert await world.edge.queue.waiting() == {pointer()}
    await delivery.done()
    assert await world.edge.queue.waiting() == set()
    await delivery.done()


async def test_what_is_put_off_comes_again_under_the_same_sequence(world: World):
    await world.edge.queue.publish(pointer())
    delivery = await taken(world)
    await delivery.later(0.3)
    assert await take(world) is None
    again = await taken(world)
    assert (again.pointer, again.sequence) == (delivery.pointer, delivery.sequence)


async def test_what_is_put_off_waits_over_a_restart(world: World):
    await world.edge.queue.publish(pointer())
    await (await taken(world)).later(1.5)
    await world.reboot()
    await until(_answering(world))
    assert await take(world) is None
    assert (await taken(world)).pointer == pointer()


async def test_what_is_extended_stays_with_its_holder(world: World):
    await world.edge.queue.publish(pointer())
    delivery = await taken(world)
    await delivery.extend()
    assert await take(world) is None
    await delivery.done()
    await delivery.extend()
    assert await world.edge.queue.waiting() == set()


async def test_what_is_withdrawn_is_gone_whoever_holds_it(world: World):
    await world.edge.queue.publish(pointer("waits"))
    await world.edge.queue.publish(pointer("held"))
    await world.edge.queue.publish(pointer("stays"))
    await world.edge.queue.withdraw(pointer("waits"))
    held = await taken(world)
    assert held.pointer == pointer("held")
    await world.edge.queue.withdraw(pointer("held"))
    await world.edge.queue.withdraw(pointer("never"))
    assert await world.edge.queue.waiting() == {pointer("stays")}
    await held.done()
    assert (await taken(world)).pointer == pointer("stays")


async def test_waiting_may_be_asked_of_one_owner(world: World):
    mine, yours = pointer(), Pointer("echo", Priority.HIGH, "you", "two", 1)
    await world.edge.queue.publish(mine)
    await world.edge.queue.publish(yours)
    assert await world.edge.queue.waiting("me") == {mine}
    assert await world.edge.queue.waiting("you") == {yours}
    assert await world.edge.queue.waiting("nobody") == set()
    assert await world.edge.queue.waiting() == {mine, yours}


async def test_a_publish_wakes_its_lane_even_before_anybody_waits(world: World):
    await world.edge.queue.publish(pointer())
    assert await world.runner.queue.woken(["echo", "other"], PATIENCE_S) == {Lane("echo", Priority.NORMAL)}
    assert not await world.runner.queue.woken(["echo"], 0.01)


async def test_a_wake_names_every_lane_that_was_published_to(world: World):
    await world.edge.queue.ensure(["gpu-low"])
    lanes = {Lane("gpu-low", Priority.HIGH), Lane("echo", Priority.LOW)}
    for pool, priority in lanes:
        await world.edge.queue.publish(pointer(pool=pool, priority=priority))
    heard: set[Lane] = set()
    while heard != lanes:
        woken = await world.runner.queue.woken(["echo", "gpu-low"], PATIENCE_S)
        assert woken
        heard |= woken


async def test_a_publish_wakes_whoever_waits_for_its_pool_only(world: World):
    await world.edge.queue.ensure(["other"])
    woken: list[str] = []

    async def wait(pool: str) -> None:
        if await world.runner.queue.woken([pool], PATIENCE_S):
            woken.append(pool)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, "other")
        tasks.start_soon(wait, "echo")
        await world.edge.queue.publish(pointer())
    assert woken == ["echo"]


async def test_nothing_is_lost_or_doubled_over_restarts_while_taking(world: World):
    names = [f"job-{number}" for number in range(30)]
    for name in names:
        await world.edge.queue.publish(pointer(name))
    done: list[str] = []
    for turn in range(3):
        for _ in range(10):
            delivery = await taken(world)
            await delivery.done()
            done.append(delivery.pointer.id)
        if turn < 2:
            await world.restart()
    assert done == names


def _answering(world: World):
    async def answering() -> bool:
        try:
            await world.runner.queue.take("echo", Priority.LOW)
            await world.edge.queue.waiting()
        except Unreachable:
            return False
        return world.runner.link.connected and world.edge.link.connected

    return answering
