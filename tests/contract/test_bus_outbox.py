"""The contract of Outbox (bus/outgoing.py), on the fake and on a real broker."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import pytest

from bus.outgoing import Held, Letter
from bus.port import Unreachable
from schemas import events as e
from tests.broker import until
from tests.bus.samples import key, recorded
from tests.contract.bus_worlds import World

T = TypeVar("T")


def letter(job_id: str = "one", revision: int = 7, replay: int = 0) -> Letter:
    return Letter(revision, recorded(job_id), replay)


async def waited(ask: Callable[[], Awaitable[Held[T] | None]]) -> Held[T]:
    """The next one, from a broker that may be away for a moment."""
    found: list[Held[T]] = []

    async def there() -> bool:
        try:
            held = await ask()
        except Unreachable:
            return False
        found.extend([held] if held else [])
        return bool(found)

    await until(there)
    return found[0]


async def judged(world: World) -> Held[Letter | None]:
    """The next state."""
    return await waited(world.edge.outbox.judge)


async def taken(world: World) -> Held[Letter]:
    """The next letter."""
    return await waited(world.edge.outbox.take)


async def test_every_state_is_judged_once_in_its_order(world: World):
    assert await world.edge.outbox.judge() is None
    first = await world.edge.records.create(key("one"), recorded("one"))
    second = await world.edge.records.create(key("two"), recorded("two"))
    for revision, job_id in ((first, "one"), (second, "two")):
        held = await judged(world)
        assert held.value == Letter(revision, recorded(job_id))
        await held.done()
    assert await world.edge.outbox.judge() is None


async def test_a_deletion_and_rubbish_are_nothing_to_send(world: World):
    revision = await world.edge.records.create(key("one"), recorded("one"))
    await (await judged(world)).done()
    await world.edge.records.delete(key("one"), revision)
    await world.vandalise("$KV.STATE.me.two", b"rubbish")
    assert [(await judged(world)).value, (await judged(world)).value] == [None, None]


async def test_a_state_that_was_put_off_comes_again(world: World):
    await world.edge.records.create(key("one"), recorded("one"))
    await (await judged(world)).later(0.2)
    assert await world.edge.outbox.judge() is None
    again = await judged(world)
    assert again.value is not None
    assert again.value.recorded.job.id == "one"


async def test_states_written_while_nobody_judges_are_judged_later(world: World):
    await world.restart()

    async def written() -> bool:
        try:
            await world.edge.records.create(key("one"), recorded("one"))
        except Unreachable:
            return False
        return True

    await until(written)
    held = await judged(world)
    assert held.value is not None


async def test_two_edges_judge_each_state_once(world: World):
    names = {f"job-{number}" for number in range(20)}
    for name in names:
        await world.edge.records.create(key(name), recorded(name))
    seen: list[str] = []

    async def edge() -> None:
        while held := await world.edge.outbox.judge():
            assert held.value is not None
            seen.append(held.value.recorded.job.id)
            await held.done()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(edge)
        tasks.start_soon(edge)
    assert sorted(seen) == sorted(names)


async def test_a_letter_posted_twice_is_one_and_a_replay_another(world: World):
    for one in (letter(), letter(), letter(replay=1), letter(revision=8)):
        await world.edge.outbox.post(one)
    held = [await taken(world) for _ in range(3)]
    assert [one.value for one in held] == [letter(), letter(replay=1), letter(revision=8)]
    assert await world.edge.outbox.take() is None


async def test_a_letter_that_is_done_is_gone_and_one_put_off_comes_over_a_restart(world: World):
    await world.edge.outbox.post(letter("one"))
    await world.edge.outbox.post(letter("two"))
    await (await taken(world)).done()
    await (await taken(world)).later(1.0)
    assert await world.edge.outbox.take() is None
    await world.reboot()
    held = await taken(world)
    assert held.value == letter("two")
    await held.done()


async def test_withdrawn_letters_of_a_job_are_gone_and_no_others(world: World):
    for one in (letter("one"), letter("one", 8), letter("one", 8, 1), letter("onerous"), letter("two")):
        await world.edge.outbox.post(one)
    await world.edge.outbox.withdraw(*key("one"))
    await world.edge.outbox.withdraw("me", "never")
    assert [(await taken(world)).value.recorded.job.id for _ in range(2)] == ["onerous", "two"]
    assert await world.edge.outbox.take() is None


async def test_what_stays_on_the_way_is_the_record_as_it_was(world: World):
    await world.edge.outbox.post(letter())
    value = (await taken(world)).value
    assert isinstance(value.recorded.event, e.Submitted)
    assert value.recorded == recorded("one")


@pytest.mark.parametrize("name", ["judge", "take"])
async def test_nobody_gets_anything_while_the_broker_is_away(world: World, name: str):
    await world.edge.outbox.post(letter())
    await world.edge.records.create(key("one"), recorded("one"))
    assert await getattr(world.edge.outbox, name)() is not None
    assert await getattr(world.edge.outbox, name)() is None
