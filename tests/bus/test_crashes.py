"""SIGKILL for the broker while everything is under way: nothing lost, nothing twice, nobody silent."""

from collections.abc import Awaitable, Callable

import anyio

from bus.connection import open_runner
from bus.port import Bus, CaughtUp, Change, Conflict, Unreachable
from bus.topology import FEED
from schemas.feed import LogNote
from schemas.job import JobKey, Pointer
from schemas.words import Priority, Status
from tests.broker import Broker, until
from tests.bus.gathering import gathering
from tests.bus.raw import raw
from tests.bus.samples import end, key, piece, progress, recorded

JOBS = [f"job-{number}" for number in range(40)]
CRASHES = 4


async def insist(write: Callable[[], Awaitable[object]]) -> None:
    """Write until the broker has answered; a Conflict says that an unanswered try had been done."""
    while True:
        try:
            await write()
        except Unreachable:
            await anyio.sleep(0.01)
        except Conflict:
            return
        else:
            return


async def advance(bus: Bus, job: JobKey, start: Status, to: Status) -> None:
    """One compare-and-set from `start`, over any number of crashes."""

    async def write() -> None:
        entry = await bus.records.read(job)
        assert entry is not None
        if entry.recorded.job.status is start:
            await bus.records.update(job, recorded(job.id, status=to), entry.revision)

    await insist(write)


async def submit(edge: Bus) -> None:
    for name in JOBS:
        await insist(lambda name=name: edge.records.create(key(name), recorded(name)))
        await insist(lambda name=name: edge.queue.publish(Pointer("echo", Priority.NORMAL, "me", name, 1)))


async def run(runner: Bus, ended: set[str]) -> None:
    """Take, claim, speak, end, acknowledge, as a runner does, until it is cancelled."""
    while True:
        try:
            delivery = await runner.queue.take("echo", Priority.NORMAL)
        except Unreachable:
            delivery = None
        if delivery is None:
            await anyio.sleep(0.01)
            continue
        job = delivery.pointer.key
        await advance(runner, job, Status.QUEUED, Status.RUNNING)
        for note in (piece(10), piece(20), end(20)):
            await insist(lambda job=job, note=note: runner.feed.publish(job, note))
        await advance(runner, job, Status.RUNNING, Status.SUCCEEDED)
        await insist(delivery.done)
        ended.add(job.id)


async def crash(server: Broker, ended: set[str]) -> None:
    """Each time a share of the jobs has ended."""
    for turn in range(1, CRASHES + 1):
        share = len(JOBS) * turn // (CRASHES + 1)

        async def reached(share: int = share) -> bool:
            return len(ended) >= share

        await until(reached)
        await server.kill()
        await server.start()


async def test_every_job_ends_once_and_every_follower_sees_all_of_it(server: Broker, edge: Bus):
    await edge.queue.ensure(["echo"])
    ended: set[str] = set()

    async def nothing_waits() -> bool:
        try:
            return len(ended) == len(JOBS) and not await edge.queue.waiting()
        except Unreachable:
            return False

    async with (
        open_runner(server.settings("runner-gpu-1")) as runner,
        gathering(edge.records.changes()) as changes,
        gathering(edge.feed.follow("me")) as feed,
    ):
        await changes.count(1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit, edge)
            tasks.start_soon(run, runner, ended)
            tasks.start_soon(run, runner, ended)
            await crash(server, ended)
            await until(nothing_waits, within_s=60)
            tasks.cancel_scope.cancel()
        for name in JOBS:
            statuses = [entry.recorded.job.status for entry in await edge.records.history(key(name))]
            assert statuses == [Status.QUEUED, Status.RUNNING, Status.SUCCEEDED], name
        steps = await changes.until(lambda items: len(items) >= 3 * len(JOBS) + 1)
        revisions = [step.revision for step in steps if isinstance(step, Change)]
        assert revisions == list(range(1, 3 * len(JOBS) + 1))
        assert sum(isinstance(step, CaughtUp) for step in steps) == 1
        items = await feed.until(lambda items: len(items) >= 6 * len(JOBS))
    for name in JOBS:
        said = [item.note for item in items if item.key.id == name and item.note]
        states = [item.change.revision for item in items if item.key.id == name and item.change]
        assert said == [piece(10), piece(20), end(20)], name
        assert len(states) == 3, name
        assert states == sorted(states), name


async def test_a_fetch_in_flight_ends_with_the_connection(server: Broker, edge: Bus):
    """nats-py's own fetch sits out its whole timeout."""
    await edge.queue.ensure(["echo"])
    outcomes: list[object] = []

    async def fetch() -> None:
        while not outcomes:
            try:
                await edge.queue.take("echo", Priority.NORMAL, wait_s=100)
            except Unreachable as error:
                outcomes.append(error)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fetch)
            await server.kill()
    await server.start()
    assert isinstance(outcomes[0], Unreachable)


async def test_a_cancelled_fetch_does_not_swallow_a_job(server: Broker, edge: Bus):
    await edge.queue.ensure(["echo"])
    for name in JOBS[:5]:
        await edge.queue.publish(Pointer("echo", Priority.NORMAL, "me", name, 1))
    for _ in range(20):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await edge.queue.take("echo", Priority.NORMAL)
        with anyio.move_on_after(0.0002):
            await edge.queue.take("echo", Priority.LOW)
    got: set[str] = set()

    async def all_taken() -> bool:
        delivery = await edge.queue.take("echo", Priority.NORMAL)
        got.update({delivery.pointer.id} if delivery else set())
        return len(got) == 5

    await until(all_taken, within_s=8)


async def test_a_feed_that_was_made_anew_is_followed_from_its_start(server: Broker, edge: Bus):
    """The broker lost FEED, not STATE: states come again from their source, and are not given again."""
    revision = await edge.records.create(key(), recorded())
    async with gathering(edge.feed.follow("me", "one")) as feed:
        first = (await feed.count(1))[0]
        async with raw(server) as broker:
            await broker.api(f"STREAM.DELETE.{FEED.name}")
        await server.kill()
        await server.start()

        async def said() -> bool:
            try:
                await edge.feed.publish(key(), piece(10))
            except Unreachable:
                return False
            return True

        await until(said)
        second = (await feed.count(2))[1]
        await edge.records.update(key(), recorded(status=Status.RUNNING), revision)
        third = (await feed.count(3))[2]
    assert second.note == piece(10)
    assert second.id.split("-")[0] != first.id.split("-")[0]
    assert third.change is not None
    assert third.change.revision > revision
    async with gathering(edge.feed.follow("me", "one", after=first.id)) as resumed:
        assert len(await resumed.until(lambda items: any(item.note == piece(10) for item in items))) >= 1


async def test_an_id_that_was_trimmed_away_means_from_the_start(server: Broker, edge: Bus):
    for offset in range(1, 11):
        await edge.feed.publish(key(), piece(offset))
    async with gathering(edge.feed.follow("me", "one")) as feed:
        second = (await feed.count(10))[1]
    async with raw(server) as broker:
        assert "error" not in await broker.update(FEED.name, max_msgs_per_subject=3)
    async with gathering(edge.feed.follow("me", "one", after=second.id)) as resumed:
        assert [item.note for item in await resumed.count(3)] == [piece(8), piece(9), piece(10)]


async def test_200_followers_see_the_same_over_a_crash(server: Broker, edge: Bus):
    followers = 200
    seen: list[list[int]] = [[] for _ in range(followers)]
    wanted = [10, 20, 30, 40]
    finished = anyio.Event()

    async def follow(mine: list[int]) -> None:
        async for item in edge.feed.follow("me", "one"):
            if isinstance(item.note, LogNote):
                mine.append(item.note.place.offset)
            if all(len(other) >= len(wanted) for other in seen):
                finished.set()

    async with anyio.create_task_group() as tasks:
        for mine in seen:
            tasks.start_soon(follow, mine)
        await edge.feed.publish(key(), piece(10))
        await edge.feed.publish(key(), piece(20))
        await server.kill()
        await server.start()
        for offset in wanted[2:]:
            await insist(lambda offset=offset: edge.feed.publish(key(), piece(offset)))
        with anyio.fail_after(30):
            await finished.wait()
        tasks.cancel_scope.cancel()
    assert seen == [wanted] * followers


async def test_a_follower_that_does_not_read_holds_nobody_up(server: Broker, edge: Bus):
    lazy = edge.feed.follow("me", "one")
    await edge.feed.publish(key(), progress(1))
    assert (await anext(lazy)).note == progress(1)
    for offset in range(2, 400):
        await edge.feed.publish(key(), piece(offset, "x" * 4096))
    async with gathering(edge.feed.follow("me", "one")) as quick:
        await quick.count(399)
    rest = [(await anext(lazy)).note for _ in range(398)]
    assert [note.place.offset for note in rest if note] == list(range(2, 400))
    await lazy.aclose()
