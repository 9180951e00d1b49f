"""The contract of Records and Link (bus/interface.py), on the fake and on a real broker."""

import anyio
import pytest

from bus.interface import BrokerUnreachable, CaughtUp, MessageTooLarge, RecordChange, RevisionConflict
from bus.nats import wire
from schemas.events import RecordUnreadable
from schemas.job import RECORD_LIMIT_BYTES, Status
from tests.support.bus_pairs import BusPair
from tests.support.bus_samples import make_key, make_record
from tests.support.stream_collector import collect_stream
from tests.support.wait import wait_for


async def test_a_record_is_read_as_written(world: BusPair):
    assert await world.edge.job_store.read(make_key()) is None
    revision = await world.edge.job_store.create(make_key(), make_record())
    entry = await world.runner.job_store.read(make_key())
    assert entry is not None
    assert (entry.revision, entry.record) == (revision, make_record())


async def test_only_one_creates(world: BusPair):
    await world.edge.job_store.create(make_key(), make_record())
    with pytest.raises(RevisionConflict):
        await world.runner.job_store.create(make_key(), make_record(text="other"))


async def test_the_same_id_of_two_owners_is_two_jobs(world: BusPair):
    await world.edge.job_store.create(make_key(owner="me"), make_record(owner="me"))
    await world.edge.job_store.create(make_key(owner="you"), make_record(owner="you"))
    assert await world.edge.job_store.keys() == {make_key(owner="me"), make_key(owner="you")}


async def test_an_update_behind_an_old_revision_conflicts(world: BusPair):
    first = await world.edge.job_store.create(make_key(), make_record())
    second = await world.runner.job_store.update(make_key(), make_record(text="two"), first)
    assert second > first
    with pytest.raises(RevisionConflict):
        await world.edge.job_store.update(make_key(), make_record(text="three"), first)
    entry = await world.edge.job_store.read(make_key())
    assert entry is not None
    assert entry.record == make_record(text="two")


async def test_of_many_writers_behind_one_revision_one_wins(world: BusPair):
    revision = await world.edge.job_store.create(make_key(), make_record())
    won: list[str] = []

    async def write(name: str) -> None:
        try:
            await world.runner.job_store.update(make_key(), make_record(text=name), revision)
        except RevisionConflict:
            return
        won.append(name)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(write, str(number))
    assert len(won) == 1
    entry = await world.edge.job_store.read(make_key())
    assert entry is not None
    assert entry.record == make_record(text=won[0])


async def test_history_is_the_last_64_oldest_first(world: BusPair):
    assert await world.edge.job_store.history(make_key()) == []
    revision = await world.edge.job_store.create(make_key(), make_record(text="0"))
    for number in range(1, 70):
        revision = await world.edge.job_store.update(make_key(), make_record(text=str(number)), revision)
    history = await world.edge.job_store.history(make_key())
    assert [entry.record.job.input["text"] for entry in history] == [str(number) for number in range(6, 70)]
    assert history[-1].revision == revision


async def test_a_deleted_record_is_gone_and_may_be_made_again(world: BusPair):
    revision = await world.edge.job_store.create(make_key(), make_record())
    with pytest.raises(RevisionConflict):
        await world.edge.job_store.delete(make_key(), revision + 1)
    await world.edge.job_store.delete(make_key(), revision)
    assert await world.edge.job_store.read(make_key()) is None
    assert await world.edge.job_store.history(make_key()) == []
    assert await world.edge.job_store.keys() == set()
    again = await world.edge.job_store.create(make_key(), make_record(text="again"))
    entry = await world.runner.job_store.read(make_key())
    assert entry is not None
    assert (entry.revision, entry.record) == (again, make_record(text="again"))


async def test_a_record_of_more_than_512_kib_is_too_large(world: BusPair):
    room = RECORD_LIMIT_BYTES - len(make_record().job.id) - 1000
    revision = await world.edge.job_store.create(make_key(), make_record(text="x" * room))
    with pytest.raises(MessageTooLarge):
        await world.edge.job_store.update(make_key(), make_record(text="x" * RECORD_LIMIT_BYTES), revision)
    with pytest.raises(MessageTooLarge):
        await world.edge.job_store.create(make_key("two"), make_record("two", text="x" * RECORD_LIMIT_BYTES))


async def test_rubbish_raises_when_read_and_is_none_among_changes(world: BusPair):
    await world.corrupt(wire.record_subject(make_key("bad")), b"\x00rubbish")
    await world.edge.job_store.create(make_key("good"), make_record("good"))
    with pytest.raises(RecordUnreadable):
        await world.edge.job_store.read(make_key("bad"))
    async with collect_stream(world.edge.job_store.changes()) as changes:
        bad, good, last = await changes.wait_for_count(3)
    assert isinstance(bad, RecordChange)
    assert (bad.key, bad.record) == (make_key("bad"), None)
    assert isinstance(good, RecordChange)
    assert good.record == make_record("good")
    assert isinstance(last, CaughtUp)


async def test_changes_of_an_empty_bucket_are_caught_up_at_once(world: BusPair):
    async with collect_stream(world.edge.job_store.changes()) as changes:
        assert await changes.wait_for_count(1) == [CaughtUp()]


async def test_changes_give_the_last_of_every_key_then_what_happens(world: BusPair):
    one = await world.edge.job_store.create(make_key("one"), make_record("one"))
    one = await world.edge.job_store.update(make_key("one"), make_record("one", status=Status.RUNNING), one)
    two = await world.edge.job_store.create(make_key("two"), make_record("two"))
    async with collect_stream(world.edge.job_store.changes()) as changes:
        assert [c.revision if isinstance(c, RecordChange) else c for c in await changes.wait_for_count(3)] == [
            one,
            two,
            CaughtUp(),
        ]
        three = await world.runner.job_store.update(make_key("one"), make_record("one", status=Status.SUCCEEDED), one)
        await world.edge.job_store.delete(make_key("two"), two)
        updated, deleted = (await changes.wait_for_count(5))[3:]
    assert updated == RecordChange(three, make_key("one"), make_record("one", status=Status.SUCCEEDED))
    assert isinstance(deleted, RecordChange)
    assert (deleted.key, deleted.record) == (make_key("two"), None)


async def test_changes_behind_a_revision_leave_out_what_was_before(world: BusPair):
    first = await world.edge.job_store.create(make_key("one"), make_record("one"))
    second = await world.edge.job_store.create(make_key("two"), make_record("two"))
    async with collect_stream(world.edge.job_store.changes(after=first)) as changes:
        assert await changes.wait_for_count(2) == [
            RecordChange(second, make_key("two"), make_record("two")),
            CaughtUp(),
        ]


async def test_changes_behind_what_is_not_there_yet_start_over(world: BusPair):
    """STATE was restored from a backup: a reader that is ahead of it would otherwise miss what is written next."""
    revision = await world.edge.job_store.create(make_key(), make_record())
    async with collect_stream(world.edge.job_store.changes(after=revision + 100)) as changes:
        assert (await changes.wait_for_count(2))[0] == RecordChange(revision, make_key(), make_record())


async def test_changes_go_on_over_a_restart_without_a_gap_or_a_double(world: BusPair):
    written = [await world.edge.job_store.create(make_key("job-0"), make_record("job-0"))]
    async with collect_stream(world.edge.job_store.changes()) as changes:
        await changes.wait_for_count(2)
        for number in range(1, 6):
            await world.restart()
            await wait_for(_reached(world))
            name = f"job-{number}"
            written.append(await world.edge.job_store.create(make_key(name), make_record(name)))
        given = await changes.wait_for_count(1 + len(written))
    assert [change.revision for change in given if isinstance(change, RecordChange)] == written


async def test_what_is_asked_while_the_broker_is_back_is_answered(world: BusPair):
    await world.edge.job_store.create(make_key(), make_record())
    await world.restart()
    await wait_for(_reached(world))
    assert await world.edge.job_store.read(make_key()) is not None
    await wait_for(_stood_for(world, 0.0))
    assert world.edge.health.is_connected


async def test_the_link_counts_anew_and_tells_when_the_broker_was_away(world: BusPair):
    await wait_for(_stood_for(world, 0.2))
    async with collect_stream(world.edge.health.reconnects()) as reconnects:
        await wait_for(_listening(world))
        await world.restart()
        await reconnects.wait_for_count(1)
        assert world.edge.health.uptime_s() < 0.2
    await wait_for(_stood_for(world, 0.05))


async def test_health_says_that_writes_are_synced_and_the_store_has_room(world: BusPair):
    health = await world.edge.health.status()
    assert health.is_durable is True
    assert 0 <= health.used_share < 0.8
    assert health.version


def _reached(world: BusPair):
    async def reached() -> bool:
        try:
            await world.edge.job_store.read(make_key("nobody"))
            await world.runner.job_store.read(make_key("nobody"))
        except BrokerUnreachable:
            return False
        return True

    return reached


def _stood_for(world: BusPair, seconds: float):
    async def stood() -> bool:
        return world.edge.health.uptime_s() > seconds

    return stood


def _listening(world: BusPair):
    """One turn of the loop, so that the reader in the background has begun."""
    turns = iter((False, False, True))

    async def listening() -> bool:
        return next(turns)

    return listening
