"""The contract of Feed (bus/port.py), on the fake and on a real broker."""

import pytest

from bus import notes as codec
from bus import subjects
from bus.port import FeedItem, Unreachable
from schemas.feed import Note
from schemas.words import Status
from tests.broker import until
from tests.bus.gathering import gathering
from tests.bus.samples import end, key, piece, progress, recorded
from tests.contract.bus_worlds import World


def notes(items: list[FeedItem]) -> list[Note]:
    return [item.note for item in items if item.note]


def statuses(items: list[FeedItem]) -> list[Status]:
    return [item.change.recorded.job.status for item in items if item.change and item.change.recorded]


async def create(world: World, job_id: str = "one", owner: str = "me") -> int:
    return await world.edge.records.create(key(job_id, owner), recorded(job_id, owner=owner))


async def write(world: World, status: Status, revision: int, job_id: str = "one") -> int:
    return await world.runner.records.update(key(job_id), recorded(job_id, status=status), revision)


async def test_a_follower_sees_states_and_notes(world: World):
    revision = await create(world)
    async with gathering(world.edge.feed.follow("me", "one")) as feed:
        (first,) = await feed.count(1)
        assert first.change is not None
        assert (first.key, first.change.revision, first.change.recorded) == (key(), revision, recorded())
        for note in (progress(10), piece(20), end(30)):
            await world.runner.feed.publish(key(), note)
        assert notes(await feed.until(lambda items: len(notes(items)) == 3)) == [progress(10), piece(20), end(30)]
        revision = await write(world, Status.RUNNING, revision)
        await write(world, Status.SUCCEEDED, revision)
        items = await feed.until(lambda items: len(statuses(items)) == 3)
    assert statuses(items) == [Status.QUEUED, Status.RUNNING, Status.SUCCEEDED]
    assert len(items) == 6


async def test_a_late_follower_gets_everything_from_the_start(world: World):
    await write(world, Status.RUNNING, await create(world))
    await world.runner.feed.publish(key(), progress(10))
    await world.runner.feed.publish(key(), piece(20))
    async with gathering(world.edge.feed.follow("me", "one")) as feed:
        items = await feed.until(lambda items: len(notes(items)) == 2 and Status.RUNNING in statuses(items))
    assert notes(items) == [progress(10), piece(20)]


async def test_the_same_place_and_kind_twice_is_once(world: World):
    for note in (progress(10), progress(10, 0.9), piece(10), piece(10), end(10), end(10)):
        await world.runner.feed.publish(key(), note)
    assert await world.edge.feed.notes(key()) == [progress(10), piece(10), end(10)]


async def test_a_follower_is_given_rising_places_only(world: World):
    """An adopting runner may say again what lies outside the broker's deduplication window."""
    await create(world)
    for note in (piece(10), piece(20), piece(5, attempt=2)):
        await world.runner.feed.publish(key(), note)
    await world.vandalise(subjects.note(key(), piece(10)), codec.encode(piece(10)))
    await world.runner.feed.publish(key(), piece(30, attempt=2))
    async with gathering(world.edge.feed.follow("me", "one")) as feed:
        items = await feed.until(lambda items: piece(30, attempt=2) in notes(items))
    assert notes(items) == [piece(10), piece(20), piece(5, attempt=2), piece(30, attempt=2)]


async def test_a_follower_sees_its_owner_and_its_job_only(world: World):
    await create(world, "one")
    await create(world, "two")
    await create(world, "one", owner="you")
    async with (
        gathering(world.edge.feed.follow("me", "one")) as job,
        gathering(world.edge.feed.follow("me")) as owner,
    ):
        for name, whose in (("one", "you"), ("two", "me"), ("one", "me")):
            await world.runner.feed.publish(key(name, whose), progress(10))
        assert {item.key for item in await job.until(lambda items: len(notes(items)) == 1)} == {key("one")}
        seen = await owner.until(lambda items: len(notes(items)) == 2 and len(statuses(items)) == 2)
    assert {item.key for item in seen} == {key("one"), key("two")}


async def test_a_follower_resumes_behind_an_id(world: World):
    for offset in range(10, 60, 10):
        await world.runner.feed.publish(key(), piece(offset))
    async with gathering(world.edge.feed.follow("me", "one")) as feed:
        third = (await feed.count(5))[2]
    async with gathering(world.edge.feed.follow("me", "one", after=third.id)) as resumed:
        assert notes(await resumed.count(2)) == [piece(40), piece(50)]


@pytest.mark.parametrize("strange", ["", "nonsense", "ffff-1", "1-99999999999", "{epoch}-99999", "{epoch}-x", "-"])
async def test_an_id_that_is_not_held_means_from_the_start(world: World, strange: str):
    await world.runner.feed.publish(key(), piece(10))
    epoch = (await world.edge.feed.position()).split("-", maxsplit=1)[0]
    async with gathering(world.edge.feed.follow("me", "one", after=strange.format(epoch=epoch))) as feed:
        assert notes(await feed.count(1)) == [piece(10)]


async def test_a_follower_who_resumes_at_the_end_is_told_the_state(world: World):
    """A client that lost its connection right at the end must learn that it is the end."""
    await write(world, Status.SUCCEEDED, await create(world))
    async with gathering(world.edge.feed.follow("me", "one")) as feed:
        last = (await feed.until(lambda items: Status.SUCCEEDED in statuses(items)))[-1]
    async with gathering(world.edge.feed.follow("me", "one", after=last.id)) as resumed:
        items = await resumed.until(lambda items: Status.SUCCEEDED in statuses(items))
    assert statuses(items)[-1] is Status.SUCCEEDED


async def test_the_position_is_behind_everything_so_far(world: World):
    await world.runner.feed.publish(key(), piece(10))
    position = await world.edge.feed.position()
    await world.runner.feed.publish(key(), piece(20))
    async with gathering(world.edge.feed.follow("me", after=position)) as feed:
        assert notes(await feed.count(1)) == [piece(20)]


async def test_ids_rise(world: World):
    for offset in range(10):
        await world.runner.feed.publish(key(), piece(offset))
    async with gathering(world.edge.feed.follow("me", "one")) as feed:
        ids = [item.id for item in await feed.count(10)]
    sequences = [int(name.split("-")[1]) for name in ids]
    assert sequences == sorted(set(sequences))


async def test_last_progress_and_notes(world: World):
    assert await world.edge.feed.last_progress(key()) is None
    assert await world.edge.feed.notes(key()) == []
    for note in (progress(10, 0.1), piece(15), progress(20, 0.2), end(30)):
        await world.runner.feed.publish(key(), note)
    assert await world.edge.feed.last_progress(key()) == progress(20, 0.2)
    assert await world.edge.feed.notes(key()) == [progress(10, 0.1), piece(15), progress(20, 0.2), end(30)]


async def test_rubbish_is_skipped(world: World):
    await world.vandalise("feed.me.one.log", b"rubbish")
    await world.vandalise("feed.me.one.progress", b"\xff")
    await world.runner.feed.publish(key(), piece(20))
    async with gathering(world.edge.feed.follow("me", "one")) as feed:
        assert notes(await feed.count(1)) == [piece(20)]
    assert await world.edge.feed.last_progress(key()) is None


async def test_a_deleted_job_leaves_nothing(world: World):
    revision = await create(world)
    await create(world, "two")
    for note in (progress(10), piece(20), end(30)):
        await world.runner.feed.publish(key(), note)
        await world.runner.feed.publish(key("two"), note)
    await world.edge.records.delete(key(), revision)
    await world.edge.feed.erase(*key())
    assert await world.edge.feed.notes(key()) == []
    assert await world.edge.feed.notes(key("two")) == [progress(10), piece(20), end(30)]
    async with gathering(world.edge.feed.follow("me")) as feed:
        items = await feed.until(lambda items: len(notes(items)) == 3 and len(statuses(items)) == 1)
    assert {item.key for item in items} == {key("two")}


async def test_a_follower_goes_on_over_restarts_without_a_gap_or_a_double(world: World):
    revision = await create(world)
    said: list[Note] = []
    async with gathering(world.edge.feed.follow("me", "one")) as feed:
        await feed.count(1)
        for turn in range(1, 6):
            note = piece(10 * turn)
            await world.runner.feed.publish(key(), note)
            said.append(note)
            await world.restart()
            await until(_reached(world))
        await write(world, Status.RUNNING, revision)
        items = await feed.until(lambda items: len(notes(items)) == 5 and Status.RUNNING in statuses(items))
    assert notes(items) == said
    assert statuses(items) == [Status.QUEUED, Status.RUNNING]


def _reached(world: World):
    async def reached() -> bool:
        try:
            await world.runner.records.read(key("nobody"))
            await world.edge.feed.position()
        except Unreachable:
            return False
        return True

    return reached


async def test_what_is_held_is_given_and_then_it_ends(world: World):
    await create(world, "two", owner="you")
    await world.runner.feed.publish(key(), progress(10))
    await create(world)
    async with gathering(world.edge.feed.follow("me")) as feed:
        followed = await feed.count(2)
    assert [item async for item in world.edge.feed.held("me")] == followed
    assert [item async for item in world.edge.feed.held("me", followed[0].id)] == followed[1:]
    assert [item async for item in world.edge.feed.held("me", followed[1].id)] == []
