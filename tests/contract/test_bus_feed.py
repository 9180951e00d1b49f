"""The contract of Feed (bus/interface.py), on the fake and on a real broker."""

import pytest

from bus.interface import BrokerUnreachable, FeedItem
from bus.nats import wire
from schemas.events import FeedMessage
from schemas.job import Status
from tests.support.bus_pairs import BusPair
from tests.support.bus_samples import make_key, make_log_end, make_log_piece, make_progress, make_record
from tests.support.stream_collector import collect_stream
from tests.support.wait import wait_for


def notes(items: list[FeedItem]) -> list[FeedMessage]:
    return [item.message for item in items if item.message]


def statuses(items: list[FeedItem]) -> list[Status]:
    return [item.change.record.job.status for item in items if item.change and item.change.record]


async def create(world: BusPair, job_id: str = "one", owner: str = "me") -> int:
    return await world.edge.job_store.create(make_key(job_id, owner), make_record(job_id, owner=owner))


async def write(world: BusPair, status: Status, revision: int, job_id: str = "one") -> int:
    return await world.runner.job_store.update(make_key(job_id), make_record(job_id, status=status), revision)


async def test_a_follower_sees_states_and_notes(world: BusPair):
    revision = await create(world)
    async with collect_stream(world.edge.feed.follow("me", "one")) as feed:
        (first,) = await feed.wait_for_count(1)
        assert first.change is not None
        assert (first.key, first.change.revision, first.change.record) == (make_key(), revision, make_record())
        for note in (make_progress(10), make_log_piece(20), make_log_end(30)):
            await world.runner.feed.publish(make_key(), note)
        assert notes(await feed.wait_for(lambda items: len(notes(items)) == 3)) == [
            make_progress(10),
            make_log_piece(20),
            make_log_end(30),
        ]
        revision = await write(world, Status.RUNNING, revision)
        await write(world, Status.SUCCEEDED, revision)
        items = await feed.wait_for(lambda items: len(statuses(items)) == 3)
    assert statuses(items) == [Status.QUEUED, Status.RUNNING, Status.SUCCEEDED]
    assert len(items) == 6


async def test_a_late_follower_gets_everything_from_the_start(world: BusPair):
    await write(world, Status.RUNNING, await create(world))
    await world.runner.feed.publish(make_key(), make_progress(10))
    await world.runner.feed.publish(make_key(), make_log_piece(20))
    async with collect_stream(world.edge.feed.follow("me", "one")) as feed:
        items = await feed.wait_for(lambda items: len(notes(items)) == 2 and Status.RUNNING in statuses(items))
    assert notes(items) == [make_progress(10), make_log_piece(20)]


async def test_the_same_place_and_kind_twice_is_once(world: BusPair):
    for note in (
        make_progress(10),
        make_progress(10, 0.9),
        make_log_piece(10),
        make_log_piece(10),
        make_log_end(10),
        make_log_end(10),
    ):
        await world.runner.feed.publish(make_key(), note)
    assert await world.edge.feed.messages(make_key()) == [make_progress(10), make_log_piece(10), make_log_end(10)]


async def test_a_follower_is_given_rising_places_only(world: BusPair):
    """An adopting runner may say again what lies outside the broker's deduplication window."""
    await create(world)
    for note in (make_log_piece(10), make_log_piece(20), make_log_piece(5, attempt=2)):
        await world.runner.feed.publish(make_key(), note)
    await world.corrupt(wire.feed_subject(make_key(), make_log_piece(10)), wire.encode_feed_message(make_log_piece(10)))
    await world.runner.feed.publish(make_key(), make_log_piece(30, attempt=2))
    async with collect_stream(world.edge.feed.follow("me", "one")) as feed:
        items = await feed.wait_for(lambda items: make_log_piece(30, attempt=2) in notes(items))
    assert notes(items) == [
        make_log_piece(10),
        make_log_piece(20),
        make_log_piece(5, attempt=2),
        make_log_piece(30, attempt=2),
    ]


async def test_a_follower_sees_its_owner_and_its_job_only(world: BusPair):
    await create(world, "one")
    await create(world, "two")
    await create(world, "one", owner="you")
    async with (
        collect_stream(world.edge.feed.follow("me", "one")) as job,
        collect_stream(world.edge.feed.follow("me")) as owner,
    ):
        for name, whose in (("one", "you"), ("two", "me"), ("one", "me")):
            await world.runner.feed.publish(make_key(name, whose), make_progress(10))
        assert {item.key for item in await job.wait_for(lambda items: len(notes(items)) == 1)} == {make_key("one")}
        seen = await owner.wait_for(lambda items: len(notes(items)) == 2 and len(statuses(items)) == 2)
    assert {item.key for item in seen} == {make_key("one"), make_key("two")}


async def test_a_follower_resumes_behind_an_id(world: BusPair):
    for offset in range(10, 60, 10):
        await world.runner.feed.publish(make_key(), make_log_piece(offset))
    async with collect_stream(world.edge.feed.follow("me", "one")) as feed:
        third = (await feed.wait_for_count(5))[2]
    async with collect_stream(world.edge.feed.follow("me", "one", after=third.id)) as resumed:
        assert notes(await resumed.wait_for_count(2)) == [make_log_piece(40), make_log_piece(50)]


@pytest.mark.parametrize("strange", ["", "nonsense", "ffff-1", "1-99999999999", "{epoch}-99999", "{epoch}-x", "-"])
async def test_an_id_that_is_not_held_means_from_the_start(world: BusPair, strange: str):
    await world.runner.feed.publish(make_key(), make_log_piece(10))
    epoch = (await world.edge.feed.last_id()).split("-", maxsplit=1)[0]
    async with collect_stream(world.edge.feed.follow("me", "one", after=strange.format(epoch=epoch))) as feed:
        assert notes(await feed.wait_for_count(1)) == [make_log_piece(10)]


async def test_a_follower_who_resumes_at_the_end_receives_the_state(world: BusPair):
    """A client that lost its connection right at the end must learn that it is the end."""
    await write(world, Status.SUCCEEDED, await create(world))
    async with collect_stream(world.edge.feed.follow("me", "one")) as feed:
        last = (await feed.wait_for(lambda items: Status.SUCCEEDED in statuses(items)))[-1]
    async with collect_stream(world.edge.feed.follow("me", "one", after=last.id)) as resumed:
        items = await resumed.wait_for(lambda items: Status.SUCCEEDED in statuses(items))
    assert statuses(items)[-1] is Status.SUCCEEDED


async def test_the_position_is_behind_everything_so_far(world: BusPair):
    await world.runner.feed.publish(make_key(), make_log_piece(10))
    position = await world.edge.feed.last_id()
    await world.runner.feed.publish(make_key(), make_log_piece(20))
    async with collect_stream(world.edge.feed.follow("me", after=position)) as feed:
        assert notes(await feed.wait_for_count(1)) == [make_log_piece(20)]


async def test_ids_rise(world: BusPair):
    for offset in range(10):
        await world.runner.feed.publish(make_key(), make_log_piece(offset))
    async with collect_stream(world.edge.feed.follow("me", "one")) as feed:
        ids = [item.id for item in await feed.wait_for_count(10)]
    sequences = [int(name.split("-")[1]) for name in ids]
    assert sequences == sorted(set(sequences))


async def test_last_progress_and_notes(world: BusPair):
    assert await world.edge.feed.last_progress(make_key()) is None
    assert await world.edge.feed.messages(make_key()) == []
    for note in (make_progress(10, 0.1), make_log_piece(15), make_progress(20, 0.2), make_log_end(30)):
        await world.runner.feed.publish(make_key(), note)
    assert await world.edge.feed.last_progress(make_key()) == make_progress(20, 0.2)
    assert await world.edge.feed.messages(make_key()) == [
        make_progress(10, 0.1),
        make_log_piece(15),
        make_progress(20, 0.2),
        make_log_end(30),
    ]


async def test_rubbish_is_skipped(world: BusPair):
    await world.corrupt("feed.me.one.log", b"rubbish")
    await world.corrupt("feed.me.one.progress", b"\xff")
    await world.runner.feed.publish(make_key(), make_log_piece(20))
    async with collect_stream(world.edge.feed.follow("me", "one")) as feed:
        assert notes(await feed.wait_for_count(1)) == [make_log_piece(20)]
    assert await world.edge.feed.last_progress(make_key()) is None


async def test_a_deleted_job_leaves_nothing(world: BusPair):
    revision = await create(world)
    await create(world, "two")
    for note in (make_progress(10), make_log_piece(20), make_log_end(30)):
        await world.runner.feed.publish(make_key(), note)
        await world.runner.feed.publish(make_key("two"), note)
    await world.edge.job_store.delete(make_key(), revision)
    await world.edge.feed.delete(*make_key())
    assert await world.edge.feed.messages(make_key()) == []
    assert await world.edge.feed.messages(make_key("two")) == [make_progress(10), make_log_piece(20), make_log_end(30)]
    async with collect_stream(world.edge.feed.follow("me")) as feed:
        items = await feed.wait_for(lambda items: len(notes(items)) == 3 and len(statuses(items)) == 1)
    assert {item.key for item in items} == {make_key("two")}


async def test_a_follower_goes_on_over_restarts_without_a_gap_or_a_double(world: BusPair):
    revision = await create(world)
    said: list[FeedMessage] = []
    async with collect_stream(world.edge.feed.follow("me", "one")) as feed:
        await feed.wait_for_count(1)
        for turn in range(1, 6):
            note = make_log_piece(10 * turn)
            await world.runner.feed.publish(make_key(), note)
            said.append(note)
            await world.restart()
            await wait_for(_reached(world))
        await write(world, Status.RUNNING, revision)
        items = await feed.wait_for(lambda items: len(notes(items)) == 5 and Status.RUNNING in statuses(items))
    assert notes(items) == said
    assert statuses(items) == [Status.QUEUED, Status.RUNNING]


def _reached(world: BusPair):
    async def reached() -> bool:
        try:
            await world.runner.job_store.read(make_key("nobody"))
            await world.edge.feed.last_id()
        except BrokerUnreachable:
            return False
        return True

    return reached


async def test_what_is_held_is_given_and_then_it_ends(world: BusPair):
    await create(world, "two", owner="you")
    await world.runner.feed.publish(make_key(), make_progress(10))
    await create(world)
    async with collect_stream(world.edge.feed.follow("me")) as feed:
        followed = await feed.wait_for_count(2)
    assert [item async for item in world.edge.feed.replay("me")] == followed
    assert [item async for item in world.edge.feed.replay("me", followed[0].id)] == followed[1:]
    assert [item async for item in world.edge.feed.replay("me", followed[1].id)] == []
