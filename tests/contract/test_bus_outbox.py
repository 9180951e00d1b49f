"""The contract of Outbox (bus/interface.py), on the fake and on a real broker."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import pytest

from bus.interface import BrokerUnreachable, LeasedItem, WebhookDelivery
from schemas import events as e
from tests.support.bus_pairs import BusPair
from tests.support.bus_samples import make_key, make_record
from tests.support.wait import wait_for

T = TypeVar("T")


def letter(job_id: str = "one", revision: int = 7, replay: int = 0, webhook: str = "") -> WebhookDelivery:
    return WebhookDelivery(revision, make_record(job_id), replay, webhook)


async def waited(ask: Callable[[], Awaitable[LeasedItem[T] | None]]) -> LeasedItem[T]:
    """The next one, from a broker that may be away for a moment."""
    found: list[LeasedItem[T]] = []

    async def there() -> bool:
        try:
            held = await ask()
        except BrokerUnreachable:
            return False
        found.extend([held] if held else [])
        return bool(found)

    await wait_for(there)
    return found[0]


async def judged(world: BusPair) -> LeasedItem[WebhookDelivery | None]:
    """The next state."""
    return await waited(world.edge.webhook_outbox.next_state_change)


async def taken(world: BusPair) -> LeasedItem[WebhookDelivery]:
    """The next letter."""
    return await waited(world.edge.webhook_outbox.fetch)


async def test_every_state_is_judged_once_in_its_order(world: BusPair):
    assert await world.edge.webhook_outbox.next_state_change() is None
    first = await world.edge.job_store.create(make_key("one"), make_record("one"))
    second = await world.edge.job_store.create(make_key("two"), make_record("two"))
    for revision, job_id in ((first, "one"), (second, "two")):
        held = await judged(world)
        assert held.value == WebhookDelivery(revision, make_record(job_id))
        assert held.is_last is (job_id == "two")
        await held.ack()
    assert await world.edge.webhook_outbox.next_state_change() is None


async def test_a_deletion_and_rubbish_are_nothing_to_send(world: BusPair):
    revision = await world.edge.job_store.create(make_key("one"), make_record("one"))
    await (await judged(world)).ack()
    await world.edge.job_store.delete(make_key("one"), revision)
    await world.corrupt("$KV.STATE.me.two", b"rubbish")
    assert [(await judged(world)).value, (await judged(world)).value] == [None, None]


async def test_a_state_that_was_put_off_comes_again(world: BusPair):
    await world.edge.job_store.create(make_key("one"), make_record("one"))
    await (await judged(world)).nak(0.2)
    assert await world.edge.webhook_outbox.next_state_change() is None
    again = await judged(world)
    assert again.value is not None
    assert again.value.record.job.id == "one"


async def test_states_written_while_nobody_judges_are_judged_later(world: BusPair):
    await world.restart()

    async def written() -> bool:
        try:
            await world.edge.job_store.create(make_key("one"), make_record("one"))
        except BrokerUnreachable:
            return False
        return True

    await wait_for(written)
    held = await judged(world)
    assert held.value is not None


async def test_two_edges_judge_each_state_once(world: BusPair):
    names = {f"job-{number}" for number in range(20)}
    for name in names:
        await world.edge.job_store.create(make_key(name), make_record(name))
    seen: list[str] = []

    async def edge() -> None:
        while held := await world.edge.webhook_outbox.next_state_change():
            assert held.value is not None
            seen.append(held.value.record.job.id)
            await held.ack()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(edge)
        tasks.start_soon(edge)
    assert sorted(seen) == sorted(names)


async def test_a_delivery_added_twice_is_one_and_a_replay_another(world: BusPair):
    for one in (letter(), letter(), letter(replay=1), letter(revision=8)):
        await world.edge.webhook_outbox.enqueue(one)
    held = [await taken(world) for _ in range(3)]
    assert [one.value for one in held] == [letter(), letter(replay=1), letter(revision=8)]
    assert await world.edge.webhook_outbox.fetch() is None


async def test_a_state_goes_to_each_webhook_once(world: BusPair):
    wanted = [letter(), letter(webhook="w-1"), letter(webhook="w-2"), letter(webhook="w-1", replay=1)]
    for one in (*wanted, *wanted):
        await world.edge.webhook_outbox.enqueue(one)
    held = [await taken(world) for _ in wanted]
    assert [one.value for one in held] == wanted
    assert await world.edge.webhook_outbox.fetch() is None
    assert await world.edge.webhook_outbox.remove(*make_key("one")) == len(wanted)


async def test_a_finished_delivery_is_gone_and_a_postponed_one_survives_a_restart(world: BusPair):
    await world.edge.webhook_outbox.enqueue(letter("one"))
    await world.edge.webhook_outbox.enqueue(letter("two"))
    await (await taken(world)).ack()
    await (await taken(world)).nak(1.0)
    assert await world.edge.webhook_outbox.fetch() is None
    await world.reboot()
    held = await taken(world)
    assert held.value == letter("two")
    await held.ack()


async def test_the_backlog_is_what_no_one_has_acked(world: BusPair):
    empty = await world.edge.health.backlog()
    assert (empty.pointers, empty.deliveries, empty.oldest_delivery_s) == (0, 0, 0.0)
    job = make_record().job
    await world.edge.job_store.create(job.key, make_record())
    await world.edge.job_queue.publish(job.pointer)
    await world.edge.webhook_outbox.enqueue(letter())
    await world.edge.webhook_outbox.enqueue(letter("two"))
    full = await world.edge.health.backlog()
    assert (full.pointers, full.unchecked_states, full.deliveries) == (1, empty.unchecked_states + 1, 2)
    leased = await judged(world)
    assert (await world.edge.health.backlog()).unchecked_states == full.unchecked_states
    await leased.ack()
    await world.edge.job_queue.remove(job.pointer)
    await (await taken(world)).ack()

    async def is_less() -> bool:
        left = await world.edge.health.backlog()
        return (left.pointers, left.unchecked_states, left.deliveries) == (0, empty.unchecked_states, 1)

    await wait_for(is_less)


async def test_the_age_of_the_backlog_is_that_of_its_oldest_delivery(world: BusPair):
    async def age_s() -> float:
        return (await world.edge.health.backlog()).oldest_delivery_s

    async def is_old() -> bool:
        return await age_s() >= 0.1

    assert await age_s() == 0.0
    await world.edge.webhook_outbox.enqueue(letter("one"))
    await wait_for(is_old)
    added_at = time.monotonic()
    await world.edge.webhook_outbox.enqueue(letter("two"))
    assert await age_s() >= 0.1
    await (await taken(world)).ack()
    assert 0 < await age_s() <= time.monotonic() - added_at


async def test_withdrawn_deliveries_of_a_job_are_gone_and_no_others(world: BusPair):
    for one in (letter("one"), letter("one", 8), letter("one", 8, 1), letter("onerous"), letter("two")):
        await world.edge.webhook_outbox.enqueue(one)
    await world.edge.webhook_outbox.remove(*make_key("one"))
    await world.edge.webhook_outbox.remove("me", "never")
    assert [(await taken(world)).value.record.job.id for _ in range(2)] == ["onerous", "two"]
    assert await world.edge.webhook_outbox.fetch() is None


async def test_what_stays_on_the_way_is_the_record_as_it_was(world: BusPair):
    await world.edge.webhook_outbox.enqueue(letter())
    value = (await taken(world)).value
    assert isinstance(value.record.event, e.Submitted)
    assert value.record == make_record("one")


@pytest.mark.parametrize("name", ["next_state_change", "fetch"])
async def test_nobody_gets_anything_while_the_broker_is_away(world: BusPair, name: str):
    await world.edge.webhook_outbox.enqueue(letter())
    await world.edge.job_store.create(make_key("one"), make_record("one"))
    assert await getattr(world.edge.webhook_outbox, name)() is not None
    assert await getattr(world.edge.webhook_outbox, name)() is None
