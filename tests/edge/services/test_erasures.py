"""Deleting a whole owner: what goes, what is refused meanwhile, and that it goes on wherever it was cut off."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.outgoing import Letter
from bus.port import Unreachable
from edge.services.books import use_of
from edge.services.erasures import Erasures
from edge.services.keys import Keys
from edge.services.pieces import Piece, Wanted
from schemas import events as e
from schemas.access import CLIENT_SCOPES, Scope
from schemas.asset import reference_key
from schemas.erasure import Erased, Erasure, ErasureState
from schemas.errors import Refused
from schemas.feed import LogNote, Place
from schemas.job import File, Job, JobKey, Output
from schemas.words import Status
from tests.broker import until
from tests.edge.services.world import Dice, FakeWorld, World, fake_world

SAID_OF_ANN = 6  # three changes and a line of the job that ended, and that the two others were submitted


def keys_of(edge: World) -> Keys:
    return Keys(edge.bus.keys, edge.time, Dice(), edge.time.seconds)


async def swept(edge: World, erasures: Erasures, owner: str = "ann") -> Erasure:
    """One sweep, the index having seen what it did."""
    await erasures.sweep()
    await edge.settled()
    return await erasures.report(owner)


async def gone(edge: World, erasures: Erasures, owner: str = "ann") -> Erasure:
    """Swept until it is done: a sweep waits for the index, which follows by itself."""

    async def done() -> bool:
        report = await swept(edge, erasures, owner)
        if report.state is ErasureState.SETTLING:
            edge.time.pass_by(seconds=71)
        return report.state is ErasureState.DONE

    await until(done)
    return await erasures.report(owner)


async def piece() -> AsyncIterator[bytes]:
    yield b"half"


async def peopled(edge: World, keys: Keys, owner: str) -> Job:
    """An owner with one of everything; the job that has ended."""
    await keys.create(owner, CLIENT_SCOPES, name="phone")
    asset = await edge.put(owner, f"the film of {owner}".encode(), "film.mp4")
    given = {"endpoint": "echo", "input": {"text": "hi", "file": f"sha256:{asset}"}}
    job = (await edge.intake.submit(owner, given | {"webhook": {"url": "https://files.test/h"}})).entry.recorded.job
    result = await edge.put(owner, f"the result of {owner}".encode())
    await edge.start(job)
    note = LogNote(Place(1, 1, 1), edge.time(), "stdout", "said")
    await edge.runner_bus.feed.publish(job.key, note)
    done = await edge.apply(job.key, e.Succeeded(Output((File("a", result, 1, "x/y"),))))
    await edge.bus.queue.withdraw(job.pointer)
    await edge.bus.usage.put(use_of(done, 7))
    await edge.bus.outbox.post(Letter(7, e.Recorded(edge.time(), e.Succeeded(Output()), done)))
    await edge.webhooks.secrets.of(owner)
    upload = await edge.uploads.create(owner, Wanted(name="part.mp4", media_type="video/mp4", length=9))
    await edge.uploads.append(owner, upload.id, Piece(offset=0, chunks=piece()))
    return done


async def everything(edge: World, owner: str) -> list[object]:
    """What there is of an owner, wherever the services keep it."""
    bus = edge.bus
    places = (bus.assets, bus.delivered)
    rows = [name for table in places for name in await table.rows(f"{owner}.")]
    held = [item async for item in bus.feed.held(owner)]
    jobs = [key for key in await bus.records.keys() if key.owner == owner]
    used = [use for use in await bus.usage.jobs(edge.time.now.replace(year=2000)) if use.owner == owner]
    keys = [row.value for row in (await bus.keys.rows()).values() if row.value.owner == owner]
    uploads = edge.partials.keys(owner)
    hooks = [await bus.hooks.get(owner)] if await bus.hooks.get(owner) else []
    waiting = list(await bus.queue.waiting(owner))
    return [*rows, *held, *jobs, *used, *keys, *uploads, *hooks, *waiting]


async def test_everything_of_the_owner_goes_and_nothing_of_another(edge: World) -> None:
    keys = keys_of(edge)
    erasures = edge.erasures(keys)
    await edge.offer()
    await peopled(edge, keys, "ann")
    await peopled(edge, keys, "bob")
    bobs = await everything(edge, "bob")
    waiting = await edge.submit("ann", "waits")
    scheduled = await edge.submit("ann", "later", not_before="2027-01-01T00:00:00Z")

    async def all_said() -> bool:  # FEED follows the records by itself
        return len([item async for item in edge.bus.feed.held("ann")]) >= SAID_OF_ANN

    await until(all_said)
    assert (await erasures.begin("ann", by="k")).state is ErasureState.RUNNING
    report = await gone(edge, erasures)
    assert await everything(edge, "ann") == []
    assert {await edge.bus.records.read(job.key) for job in (waiting, scheduled)} == {None}
    told = report.erased
    assert (told.jobs, told.cancelled, told.assets, told.uploads, told.keys) == (3, 2, 2, 1, 1)
    assert (told.bytes, told.usage_rows) == (len("the film of ann" + "the result of ann"), 1)
    assert told.feed >= SAID_OF_ANN
    assert told.deliveries >= 1
    assert (report.by, report.hosts_pending, report.finished_at is not None) == ("k", ("gpu-1",), True)
    assert (await edge.store.survey()).trashed == ()
    there = await everything(edge, "bob")
    assert [one for one in bobs if one not in there] == []


async def test_asked_again_it_is_the_same_deletion(fake: FakeWorld) -> None:
    erasures = fake.erasures(keys_of(fake))
    await fake.put("ann", b"x")
    first = await erasures.begin("ann", by="one")
    assert await erasures.begin("ann", by="two") == first
    done = await gone(fake, erasures)
    assert await erasures.begin("ann") == done
    await fake.put("ann", b"y")
    again = await erasures.begin("ann")
    assert (again.state, again.erased) == (ErasureState.RUNNING, Erased())
    assert (await gone(fake, erasures)).erased.assets == 1


async def test_nothing_new_is_taken_until_it_is_done(fake: FakeWorld) -> None:
    erasures = fake.erasures(keys_of(fake))
    job = await fake.submit(job_id="mine")
    await fake.intake.cancel(job.key)
    await erasures.begin("ann")
    upload = fake.uploads.create("ann", Wanted(name="x", media_type="x/y", length=3))
    for attempt in (fake.submit(), fake.put("ann", b"x"), upload, fake.intake.retry(job.key)):
        with pytest.raises(Refused) as caught:
            await attempt
        assert (caught.value.code, caught.value.problem.status) == ("owner_deleting", 409)
    await fake.submit("bob")
    await gone(fake, erasures)
    await fake.submit()


async def test_another_edge_refuses_too_and_what_it_took_before_goes(fake: FakeWorld, tmp_path: Path) -> None:
    erasures = fake.erasures(keys_of(fake))
    await fake.put("ann", b"x")
    async with fake_world(tmp_path / "second", fake.broker, fake.time) as second:
        other = second.erasures(keys_of(second))
        await erasures.begin("ann")
        assert (await swept(fake, erasures)).erased.assets == 1
        await second.submit("ann", "late")
        await second.uploads.create("ann", Wanted(name="x", media_type="x/y", length=3))
        await other.sweep()
        with pytest.raises(Refused):
            await second.submit("ann", "too late")
        await second.settled()
        await fake.settled()
        report = await gone(fake, erasures)
        assert (report.erased.jobs, report.erased.uploads) == (1, 1)
        await other.sweep()
        await second.submit("ann", "anew")


async def test_a_running_job_is_stopped_first(edge: World) -> None:
    erasures = edge.erasures(keys_of(edge))
    job = await edge.start(await edge.submit())
    await erasures.begin("ann")
    for _ in range(2):
        report = await swept(edge, erasures)
        assert (report.state, report.waiting_for, report.erased.jobs) == (ErasureState.RUNNING, 1, 0)
    assert (await edge.read(job)).status is Status.CANCELLING
    await edge.apply(job.key, e.Cancelled())
    report = await gone(edge, erasures)
    assert (report.waiting_for, report.erased.jobs) == (0, 1)


async def test_it_goes_on_after_a_crash_at_any_step(fake: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of what is removed fails once; a new life, with what was stored and nothing else, goes on."""
    keys = keys_of(fake)
    await peopled(fake, keys, "ann")
    await fake.erasures(keys).begin("ann")
    bus = fake.bus
    for place, verb in (
        (bus.keys, "delete"),
        (bus.records, "delete"),
        (bus.feed, "erase"),
        (bus.outbox, "withdraw"),
        (bus.hooks, "delete"),
        (bus.usage, "erase"),
        (bus.assets, "delete"),
        (bus.tombstones, "put"),
        (bus.erasures, "update"),
    ):

        async def away(*_: object, **__: object) -> None:
            raise Unreachable("away")

        async def fails() -> bool:  # not before the index is where the step before has left it
            try:
                await fake.erasures(keys).sweep()
            except (Unreachable, Refused):
                return True
            return False

        with monkeypatch.context() as patch:
            patch.setattr(place, verb, away)
            await until(fails)
        await fake.settled()
    report = await gone(fake, fake.erasures(keys))
    assert await everything(fake, "ann") == []
    assert report.erased.jobs == 1
    assert (await fake.store.survey()).trashed == ()


async def test_a_record_that_cannot_be_read_goes_too(fake: FakeWorld) -> None:
    erasures = fake.erasures(keys_of(fake))
    fake.broker.vandalise("$KV.STATE.ann.odd", b"{rubbish")
    await erasures.begin("ann")
    await gone(fake, erasures)
    assert JobKey("ann", "odd") not in await fake.bus.records.keys()


async def test_what_another_owner_has_too_stays_his(fake: FakeWorld) -> None:
    erasures = fake.erasures(keys_of(fake))
    sha256 = await fake.put("ann", b"shared")
    await fake.put("bob", b"shared")
    await erasures.begin("ann")
    await gone(fake, erasures)
    assert await fake.store.stat(sha256)
    assert list(await fake.bus.assets.rows()) == [reference_key("bob", sha256)]


async def test_whoever_a_host_goes_by_is_no_owner_to_delete(fake: FakeWorld) -> None:
    keys = keys_of(fake)
    await keys.create("gpu-1", [Scope.RUNNER])
    with pytest.raises(Refused) as caught:
        await fake.erasures(keys).begin("gpu-1")
    assert caught.value.code == "conflict"
    with pytest.raises(Refused) as caught:
        await fake.erasures(keys).report("gpu-1")
    assert caught.value.code == "not_found"


async def test_two_edges_do_it_once(fake: FakeWorld, tmp_path: Path) -> None:
    async with fake_world(tmp_path / "second", fake.broker, fake.time) as second:
        erasures = fake.erasures(keys_of(fake))
        other = second.erasures(keys_of(second))
        for number in range(30):
            await fake.submit(text=str(number))
        await second.settled()
        await erasures.begin("ann")
        for _ in range(3):
            await erasures.sweep()
            await other.sweep()
            await fake.settled()
        assert (await gone(fake, erasures)).erased.jobs == 30


async def test_a_deleted_job_leaves_no_letter_no_log_and_no_message(edge: World) -> None:
    keys = keys_of(edge)
    job = await peopled(edge, keys, "ann")
    await edge.intake.delete(job.key)
    assert [item async for item in edge.bus.feed.held("ann")] == []
    assert await edge.bus.delivered.rows("ann.") == {}
    assert await edge.bus.outbox.withdraw("ann") == 0
    kept = [f"sha256:{row.sha256}" for row in (await edge.assets.list("ann")).assets]
    assert kept == [job.input["file"]], "the result went, the input was its owner's own"
    used = await edge.bus.usage.jobs(edge.time.now.replace(year=2000))
    assert [use.id for use in used] == [job.id], "what was used is billed, whatever becomes of the job"
