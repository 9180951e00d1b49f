"""SIGKILL for the broker while everything is under way: nothing lost, nothing twice, nobody silent."""

from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from bus.interface import BrokerUnreachable, Bus, CaughtUp, RecordChange, RevisionConflict
from bus.nats.topology import FEED
from bus.open import open_runner
from schemas.events import LogMessage
from schemas.job import JobKey, Pointer, Priority, Status
from tests.support.bus_samples import make_key, make_log_end, make_log_piece, make_progress, make_record
from tests.support.nats_broker import BrokerProcess
from tests.support.raw_nats import connect_raw
from tests.support.stream_collector import collect_stream
from tests.support.wait import wait_for

JOBS = [f"job-{number}" for number in range(40)]
CRASHES = 4


async def insist(write: Callable[[], Awaitable[object]]) -> None:
    """Write until the broker has answered; a Conflict says that an unanswered try had been done."""
    while True:
        try:
            await write()
        except BrokerUnreachable:
            await anyio.sleep(0.01)
        except RevisionConflict:
            return
        else:
            return


async def advance(bus: Bus, job: JobKey, start: Status, to: Status) -> None:
    """One compare-and-set from `start`, over any number of crashes."""

    async def write() -> None:
        entry = await bus.job_store.read(job)
        assert entry is not None
        if entry.record.job.status is start:
            await bus.job_store.update(job, make_record(job.id, status=to), entry.revision)

    await insist(write)


async def submit(edge: Bus) -> None:
    for name in JOBS:
        await insist(partial(edge.job_store.create, make_key(name), make_record(name)))
        await insist(partial(edge.job_queue.publish, Pointer("echo", Priority.NORMAL, "me", name, 1)))


async def run(runner: Bus, ended: set[str]) -> None:
    """Take, claim, speak, end, acknowledge, as a runner does, until it is cancelled."""
    while True:
        try:
            delivery = await runner.job_queue.fetch("echo", Priority.NORMAL)
        except BrokerUnreachable:
            delivery = None
        if delivery is None:
            await anyio.sleep(0.01)
            continue
        job = delivery.pointer.key
        await advance(runner, job, Status.QUEUED, Status.RUNNING)
        for note in (make_log_piece(10), make_log_piece(20), make_log_end(20)):
            await insist(partial(runner.feed.publish, job, note))
        await advance(runner, job, Status.RUNNING, Status.SUCCEEDED)
        await insist(delivery.ack)
        ended.add(job.id)


async def crash(server: BrokerProcess, ended: set[str]) -> None:
    """Each time a share of the jobs has ended."""
    for turn in range(1, CRASHES + 1):
        share = len(JOBS) * turn // (CRASHES + 1)

        async def reached(share: int = share) -> bool:
            return len(ended) >= share

        await wait_for(reached)
        await server.kill()
        await server.start()


async def test_every_job_ends_once_and_every_follower_sees_all_of_it(server: BrokerProcess, edge: Bus):
    await edge.job_queue.ensure_consumers(["echo"])
    ended: set[str] = set()

    async def nothing_waits() -> bool:
        try:
            return len(ended) == len(JOBS) and not await edge.job_queue.list_pending()
        except BrokerUnreachable:
            return False

    async with (
        open_runner(server.settings("runner-gpu-1")) as runner,
        collect_stream(edge.job_store.changes()) as changes,
        collect_stream(edge.feed.follow("me")) as feed,
    ):
        await changes.wait_for_count(1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit, edge)
            tasks.start_soon(run, runner, ended)
            tasks.start_soon(run, runner, ended)
            await crash(server, ended)
            await wait_for(nothing_waits, timeout_s=60)
            tasks.cancel_scope.cancel()
        for name in JOBS:
            statuses = [entry.record.job.status for entry in await edge.job_store.history(make_key(name))]
            assert statuses == [Status.QUEUED, Status.RUNNING, Status.SUCCEEDED], name
        steps = await changes.wait_for(lambda items: len(items) >= 3 * len(JOBS) + 1)
        revisions = [step.revision for step in steps if isinstance(step, RecordChange)]
        assert revisions == list(range(1, 3 * len(JOBS) + 1))
        assert sum(isinstance(step, CaughtUp) for step in steps) == 1
        items = await feed.wait_for(lambda items: len(items) >= 6 * len(JOBS))
    for name in JOBS:
        said = [item.message for item in items if item.key.id == name and item.message]
        states = [item.change.revision for item in items if item.key.id == name and item.change]
        assert said == [make_log_piece(10), make_log_piece(20), make_log_end(20)], name
        assert len(states) == 3, name
        assert states == sorted(states), name


async def test_a_fetch_in_flight_ends_with_the_connection(server: BrokerProcess, edge: Bus):
    """nats-py's own fetch sits out its whole timeout."""
    await edge.job_queue.ensure_consumers(["echo"])
    outcomes: list[object] = []

    async def fetch() -> None:
        while not outcomes:
            try:
                await edge.job_queue.fetch("echo", Priority.NORMAL, wait_s=100)
            except BrokerUnreachable as error:
                outcomes.append(error)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fetch)
            await server.kill()
    await server.start()
    assert isinstance(outcomes[0], BrokerUnreachable)


async def test_a_cancelled_fetch_does_not_swallow_a_job(server: BrokerProcess, edge: Bus):
    await edge.job_queue.ensure_consumers(["echo"])
    for name in JOBS[:5]:
        await edge.job_queue.publish(Pointer("echo", Priority.NORMAL, "me", name, 1))
    for _ in range(20):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await edge.job_queue.fetch("echo", Priority.NORMAL)
        with anyio.move_on_after(0.0002):
            await edge.job_queue.fetch("echo", Priority.LOW)
    got: set[str] = set()

    async def all_taken() -> bool:
        delivery = await edge.job_queue.fetch("echo", Priority.NORMAL)
        got.update({delivery.pointer.id} if delivery else set())
        return len(got) == 5

    await wait_for(all_taken, timeout_s=20)  # less than the 30 s after which a swallowed one comes again


async def test_a_feed_that_was_made_anew_is_followed_from_its_start(server: BrokerProcess, edge: Bus):
    """The broker lost FEED, not STATE: states come again from their source, and are not given again."""
    revision = await edge.job_store.create(make_key(), make_record())
    async with collect_stream(edge.feed.follow("me", "one")) as feed:
        first = (await feed.wait_for_count(1))[0]
        async with connect_raw(server) as broker:
            await broker.api(f"STREAM.DELETE.{FEED.name}")
        await server.kill()
        await server.start()

        async def said() -> bool:
            try:
                await edge.feed.publish(make_key(), make_log_piece(10))
            except BrokerUnreachable:
                return False
            return True

        await wait_for(said)
        second = (await feed.wait_for_count(2))[1]
        await edge.job_store.update(make_key(), make_record(status=Status.RUNNING), revision)
        third = (await feed.wait_for_count(3))[2]
    assert second.message == make_log_piece(10)
    assert second.id.split("-")[0] != first.id.split("-")[0]
    assert third.change is not None
    assert third.change.revision > revision
    async with collect_stream(edge.feed.follow("me", "one", after=first.id)) as resumed:
        assert len(await resumed.wait_for(lambda items: any(item.message == make_log_piece(10) for item in items))) >= 1


async def test_an_id_that_was_trimmed_away_means_from_the_start(server: BrokerProcess, edge: Bus):
    for offset in range(1, 11):
        await edge.feed.publish(make_key(), make_log_piece(offset))
    async with collect_stream(edge.feed.follow("me", "one")) as feed:
        second = (await feed.wait_for_count(10))[1]
    async with connect_raw(server) as broker:
        assert "error" not in await broker.update(FEED.name, max_msgs_per_subject=3)
    async with collect_stream(edge.feed.follow("me", "one", after=second.id)) as resumed:
        assert [item.message for item in await resumed.wait_for_count(3)] == [
            make_log_piece(8),
            make_log_piece(9),
            make_log_piece(10),
        ]


async def test_200_followers_see_the_same_over_a_crash(server: BrokerProcess, edge: Bus):
    followers = 200
    seen: list[list[int]] = [[] for _ in range(followers)]
    wanted = [10, 20, 30, 40]
    finished = anyio.Event()

    async def follow(mine: list[int]) -> None:
        async for item in edge.feed.follow("me", "one"):
            if isinstance(item.message, LogMessage):
                mine.append(item.message.position.offset)
            if all(len(other) >= len(wanted) for other in seen):
                finished.set()

    async with anyio.create_task_group() as tasks:
        for mine in seen:
            tasks.start_soon(follow, mine)
        await edge.feed.publish(make_key(), make_log_piece(10))
        await edge.feed.publish(make_key(), make_log_piece(20))
        await server.kill()
        await server.start()
        for offset in wanted[2:]:
            await insist(partial(edge.feed.publish, make_key(), make_log_piece(offset)))
        with anyio.fail_after(30):
            await finished.wait()
        tasks.cancel_scope.cancel()
    assert seen == [wanted] * followers


async def test_a_follower_that_does_not_read_holds_nobody_up(server: BrokerProcess, edge: Bus):
    lazy = edge.feed.follow("me", "one")
    await edge.feed.publish(make_key(), make_progress(1))
    assert (await anext(lazy)).message == make_progress(1)
    for offset in range(2, 400):
        await edge.feed.publish(make_key(), make_log_piece(offset, "x" * 4096))
    async with collect_stream(edge.feed.follow("me", "one")) as quick:
        await quick.wait_for_count(399)
    rest = [(await anext(lazy)).message for _ in range(398)]
    assert [note.position.offset for note in rest if note] == list(range(2, 400))
    await lazy.aclose()  # type: ignore[attr-defined]
