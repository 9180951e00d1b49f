"""The contract of Records and Link (bus/port.py), on the fake and on a real broker."""

import anyio
import pytest

from bus import subjects
from bus.port import CaughtUp, Change, Conflict, TooLarge, Unreachable
from schemas.events import RecordUnreadable
from schemas.job import RECORD_BYTES
from schemas.words import Status
from tests.broker import until
from tests.bus.gathering import gathering
from tests.bus.samples import key, recorded
from tests.contract.bus_worlds import World


async def test_a_record_is_read_as_written(world: World):
    assert await world.edge.records.read(key()) is None
    revision = await world.edge.records.create(key(), recorded())
    entry = await world.runner.records.read(key())
    assert entry is not None
    assert (entry.revision, entry.recorded) == (revision, recorded())


async def test_only_one_creates(world: World):
    await world.edge.records.create(key(), recorded())
    with pytest.raises(Conflict):
        await world.runner.records.create(key(), recorded(text="other"))


async def test_the_same_id_of_two_owners_is_two_jobs(world: World):
    await world.edge.records.create(key(owner="me"), recorded(owner="me"))
    await world.edge.records.create(key(owner="you"), recorded(owner="you"))
    assert await world.edge.records.keys() == {key(owner="me"), key(owner="you")}


async def test_an_update_behind_an_old_revision_conflicts(world: World):
    first = await world.edge.records.create(key(), recorded())
    second = await world.runner.records.update(key(), recorded(text="two"), first)
    assert second > first
    with pytest.raises(Conflict):
        await world.edge.records.update(key(), recorded(text="three"), first)
    entry = await world.edge.records.read(key())
    assert entry is not None
    assert entry.recorded == recorded(text="two")


async def test_of_many_writers_behind_one_revision_one_wins(world: World):
    revision = await world.edge.records.create(key(), recorded())
    won: list[str] = []

    async def write(name: str) -> None:
        try:
            await world.runner.records.update(key(), recorded(text=name), revision)
        except Conflict:
            return
        won.append(name)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(write, str(number))
    assert len(won) == 1
    entry = await world.edge.records.read(key())
    assert entry is not None
    assert entry.recorded == recorded(text=won[0])


async def test_history_is_the_last_64_oldest_first(world: World):
    assert await world.edge.records.history(key()) == []
    revision = await world.edge.records.create(key(), recorded(text="0"))
    for number in range(1, 70):
        revision = await world.edge.records.update(key(), recorded(text=str(number)), revision)
    history = await world.edge.records.history(key())
    assert [entry.recorded.job.input["text"] for entry in history] == [str(number) for number in range(6, 70)]
    assert history[-1].revision == revision


async def test_a_deleted_record_is_gone_and_may_be_made_again(world: World):
    revision = await world.edge.records.create(key(), recorded())
    with pytest.raises(Conflict):
        await world.edge.records.delete(key(), revision + 1)
    await world.edge.records.delete(key(), revision)
    assert await world.edge.records.read(key()) is None
    assert await world.edge.records.history(key()) == []
    assert await world.edge.records.keys() == set()
    again = await world.edge.records.create(key(), recorded(text="again"))
    entry = await world.runner.records.read(key())
    assert entry is not None
    assert (entry.revision, entry.recorded) == (again, recorded(text="again"))


async def test_a_record_of_more_than_512_kib_is_too_large(world: World):
    room = RECORD_BYTES - len(recorded().job.id) - 1000
    revision = await world.edge.records.create(key(), recorded(text="x" * room))
    with pytest.raises(TooLarge):
        await world.edge.records.update(key(), recorded(text="x" * RECORD_BYTES), revision)
    with pytest.raises(TooLarge):
        await world.edge.records.create(key("two"), recorded("two", text="x" * RECORD_BYTES))


async def test_rubbish_raises_when_read_and_is_none_among_changes(world: World):
    await world.vandalise(subjects.record(key("bad")), b"\x00rubbish")
    await world.edge.records.create(key("good"), recorded("good"))
    with pytest.raises(RecordUnreadable):
        await world.edge.records.read(key("bad"))
    async with gathering(world.edge.records.changes()) as changes:
        bad, good, last = await changes.count(3)
    assert isinstance(bad, Change)
    assert (bad.key, bad.recorded) == (key("bad"), None)
    assert isinstance(good, Change)
    assert good.recorded == recorded("good")
    assert isinstance(last, CaughtUp)


async def test_changes_of_an_empty_bucket_are_caught_up_at_once(world: World):
    async with gathering(world.edge.records.changes()) as changes:
        assert await changes.count(1) == [CaughtUp()]


async def test_changes_give_the_last_of_every_key_then_what_happens(world: World):
    one = await world.edge.records.create(key("one"), recorded("one"))
    one = await world.edge.records.update(key("one"), recorded("one", status=Status.RUNNING), one)
    two = await world.edge.records.create(key("two"), recorded("two"))
    async with gathering(world.edge.records.changes()) as changes:
        assert [c.revision if isinstance(c, Change) else c for c in await changes.count(3)] == [one, two, CaughtUp()]
        three = await world.runner.records.update(key("one"), recorded("one", status=Status.SUCCEEDED), one)
        await world.edge.records.delete(key("two"), two)
        updated, deleted = (await changes.count(5))[3:]
    assert updated == Change(three, key("one"), recorded("one", status=Status.SUCCEEDED))
    assert isinstance(deleted, Change)
    assert (deleted.key, deleted.recorded) == (key("two"), None)


async def test_changes_behind_a_revision_leave_out_what_was_before(world: World):
    first = await world.edge.records.create(key("one"), recorded("one"))
    second = await world.edge.records.create(key("two"), recorded("two"))
    async with gathering(world.edge.records.changes(after=first)) as changes:
        assert await changes.count(2) == [Change(second, key("two"), recorded("two")), CaughtUp()]


async def test_changes_behind_what_is_not_there_yet_start_over(world: World):
    """STATE was restored from a backup: a reader that is ahead of it would otherwise miss what is written next."""
    revision = await world.edge.records.create(key(), recorded())
    async with gathering(world.edge.records.changes(after=revision + 100)) as changes:
        assert (await changes.count(2))[0] == Change(revision, key(), recorded())


async def test_changes_go_on_over_a_restart_without_a_gap_or_a_double(world: World):
    written = [await world.edge.records.create(key("job-0"), recorded("job-0"))]
    async with gathering(world.edge.records.changes()) as changes:
        await changes.count(2)
        for number in range(1, 6):
            await world.restart()
            await until(_reached(world))
            name = f"job-{number}"
            written.append(await world.edge.records.create(key(name), recorded(name)))
        given = await changes.count(1 + len(written))
    assert [change.revision for change in given if isinstance(change, Change)] == written


async def test_what_is_asked_while_the_broker_is_back_is_answered(world: World):
    await world.edge.records.create(key(), recorded())
    await world.restart()
    await until(_reached(world))
    assert await world.edge.records.read(key()) is not None
    await until(_stood_for(world, 0.0))
    assert world.edge.link.connected


async def test_the_link_counts_anew_and_tells_when_the_broker_was_away(world: World):
    await until(_stood_for(world, 0.2))
    async with gathering(world.edge.link.reconnects()) as reconnects:
        await until(_listening(world))
        await world.restart()
        await reconnects.count(1)
        assert world.edge.link.unbroken_s() < 0.2
    await until(_stood_for(world, 0.05))


async def test_health_says_that_writes_are_synced_and_the_store_has_room(world: World):
    health = await world.edge.link.health()
    assert health.synced is True
    assert 0 <= health.used < 0.8
    assert health.version


def _reached(world: World):
    async def reached() -> bool:
        try:
            await world.edge.records.read(key("nobody"))
            await world.runner.records.read(key("nobody"))
        except Unreachable:
            return False
        return True

    return reached


def _stood_for(world: World, seconds: float):
    async def stood() -> bool:
        return world.edge.link.unbroken_s() > seconds

    return stood


def _listening(world: World):
    """One turn of the loop, so that the reader in the background has begun."""
    turns = iter((False, False, True))

    async def listening() -> bool:
        return next(turns)

    return listening
