"""What an earlier life left: every state of a container and of its record, and what becomes of them."""

from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from runner.adopt import Fate, fate
from runner.engines.memory import Box
from runner.engines.port import NO_JOB, Found, Identity, Limits, Spec, State
from schemas.events import Adopted, Recorded, Released, Started, Submitted
from schemas.feed import LogNote, Note, ProgressNote
from schemas.job import Claim, Job
from schemas.words import Status
from tests.broker import until
from tests.runner.world import World, out, within
from tests.schemas.make import claim, job

HOST = "gpu-1"


def gave_back(code: str) -> Recorded:
    """The attempt was released for that reason, and nobody has claimed the job since."""
    queued = job(Status.QUEUED, attempt=1, claim=claim(1))
    return Recorded(datetime.now(UTC), Released(code, charged=code == "internal"), queued)


ADOPTING = [
    # state, round and attempt of the container, the record, what becomes of it
    ("running", (1, 1), job(Status.RUNNING), Fate.FOLLOW),
    ("exited", (1, 1), job(Status.RUNNING), Fate.FOLLOW),
    ("exited", (1, 1), job(Status.CANCELLING), Fate.FOLLOW),
    ("running", (1, 1), gave_back("host_lost"), Fate.FOLLOW),
    ("exited", (1, 1), gave_back("internal"), Fate.REMOVE),
    ("exited", (1, 1), gave_back("drained"), Fate.REMOVE),
    ("running", (1, 1), gave_back("engine_error"), Fate.REMOVE),
    ("created", (1, 1), job(Status.RUNNING), Fate.FREE),
    ("created", (1, 1), gave_back("host_lost"), Fate.FREE),
    ("running", (1, 1), job(Status.RUNNING, attempt=2, claim=claim(2)), Fate.REMOVE),
    ("running", (1, 3), job(Status.RUNNING, round=2), Fate.REMOVE),
    ("running", (1, 1), job(Status.RUNNING, claim=claim(1, host="other")), Fate.REMOVE),
    ("exited", (1, 1), job(Status.SUCCEEDED), Fate.REMOVE),
    ("exited", (1, 1), None, Fate.REMOVE),
    ("running", (1, 2), job(Status.RUNNING), Fate.LEAVE),
]


def found(state: State, round_: int = 1, attempt: int = 1, name: str = "j1") -> Found:
    mine = Identity(installation="test", host=HOST, owner="ada", job=name, round=round_, attempt=attempt)
    return Found("box", mine, state)


@pytest.mark.parametrize(("state", "place", "record", "becomes"), ADOPTING)
def test_the_fate_of_a_container(
    state: State, place: tuple[int, int], record: Job | Recorded | None, becomes: Fate
) -> None:
    recorded = Recorded(datetime.now(UTC), Started(record.claim), record) if isinstance(record, Job) else record
    assert fate(found(state, *place), recorded, HOST) is becomes


def test_a_warm_container_without_a_job_goes() -> None:
    assert fate(found("running", name=NO_JOB), None, HOST) is Fate.REMOVE


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def left_running(world: World, status: Status = Status.RUNNING) -> Job:
    """A record that the life before, i0, claimed on this host."""
    key = await world.submit("well")
    entry = await world.edge.records.read(key)
    assert entry is not None
    running = replace(entry.recorded.job, status=status, attempt=1, claim=Claim(HOST, "i0", 1))
    now = datetime.now(UTC)
    await world.edge.records.update(key, Recorded(now, Submitted(), running), entry.revision)
    return running


def box_of(world: World, left: Job, state: State) -> Box:
    """Its container, as the engine kept it."""
    folder = world.folder / HOST / f"ada.{left.id}.1.1"
    (folder / "job" / "out").mkdir(parents=True)
    mine = Identity(installation="test", host=HOST, owner="ada", job=left.id, round=1, attempt=1)
    spec = Spec(identity=mine, image="well", job_dir=folder / "job", limits=Limits(1, 1.0))
    box = Box("left-1", spec, lambda: datetime.now(UTC))
    world.boxes[box.handle] = box
    if state != "created":
        box.begin()
        box.write(b"from before\n")
    if state == "exited":
        out(box, {"r.txt": b"r"})
        box.finish(0)
    return box


async def test_an_exited_container_is_collected(world: World) -> None:
    left = await left_running(world)
    box_of(world, left, "exited")
    async with world.life():
        ended = await world.ended(left.key)
        await world.cleared()
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)
    assert await world.said(left.key) == "from before\n"
    assert (await world.facts(left.key))[-2:] == ["Adopted", "Succeeded"]


async def test_a_running_container_is_followed(world: World) -> None:
    left = await left_running(world)
    box = box_of(world, left, "running")
    async with world.life():
        await world.heard(left.key, Adopted)
        box.write(b"and after\n")
        out(box)
        box.finish(0)
        ended = await world.ended(left.key)
    assert ended.status is Status.SUCCEEDED
    assert world.shop.text(ended.log) == "from before\nand after\n"


async def test_a_container_that_never_ran_costs_nothing(world: World) -> None:
    left = await left_running(world)
    box_of(world, left, "created")
    async with world.life():
        ended = await world.ended(left.key)
        await world.cleared()
    assert (ended.status, ended.attempt, ended.charged) == (Status.SUCCEEDED, 2, 0)
    assert ended.releases == {"host_lost": 1}


async def test_a_container_that_is_gone_costs_nothing(world: World) -> None:
    """Only its folder is there, or not even that: then its message tells."""
    left = await left_running(world)
    async with world.life():
        ended = await world.ended(left.key)
    assert (ended.status, ended.attempt, ended.releases) == (Status.SUCCEEDED, 2, {"host_lost": 1})


async def test_a_folder_without_a_container_goes(world: World) -> None:
    left = await left_running(world)
    (world.folder / HOST / "ada.j1.1.1" / "job").mkdir(parents=True)
    async with world.life():
        ended = await world.ended(left.key)
        await world.cleared()
    assert (ended.status, ended.releases) == (Status.SUCCEEDED, {"host_lost": 1})


async def test_a_cancelled_one_is_stopped_by_the_next_life(world: World) -> None:
    left = await left_running(world, Status.CANCELLING)
    box_of(world, left, "running")
    async with world.life():
        ended = await world.ended(left.key)
        await world.cleared()
    assert ended.status is Status.CANCELLED


async def test_a_container_of_a_final_job_goes(world: World) -> None:
    left = await left_running(world, Status.SUCCEEDED)
    box_of(world, left, "exited")
    async with world.life():
        await world.cleared()
    assert await world.facts(left.key) == ["Submitted", "Submitted"]


async def test_containers_of_another_installation_are_left_alone(world: World) -> None:
    left = await left_running(world)
    box = box_of(world, left, "running")
    box.spec = replace(box.spec, identity=replace(box.spec.identity, installation="other"))
    async with world.life():
        await world.ended(left.key)
    assert box.state == "running"


async def test_killed_again_and_again_its_output_is_said_once(world: World) -> None:
    """Lives end anywhere; what followers see has no gap, nothing twice, offsets that rise, and the last line."""
    left = await left_running(world)
    box = box_of(world, left, "running")
    printed = "from before\n"
    for number in range(6):
        async with world.life(f"i{number + 1}"):
            line = f"line {number}\n"
            printed += line
            box.write(line.encode() + b'{"type":"progress","fraction":0.%d}\n' % number)

            async def said(text: str = line) -> bool:
                return text in await world.said(left.key)

            if number % 2:
                await until(said)
    out(box)
    box.finish(0)
    async with world.life("last"):
        ended = await world.ended(left.key)
        await world.cleared()
    notes = await world.notes(left.key)
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)
    assert await world.said(left.key) == printed
    assert world.shop.text(ended.log) == printed
    assert rising(notes, LogNote)
    assert rising(notes, ProgressNote)


def rising(notes: list[Note], kind: type[Note]) -> bool:
    offsets = [note.place.offset for note in notes if isinstance(note, kind)]
    return len(offsets) > 0 and offsets == sorted(set(offsets))


async def test_a_drain_waits_for_the_grace(world: World) -> None:
    world.grace_s = 5.0
    go = anyio.Event()

    async def soon(box: Box) -> int:
        await go.wait()
        out(box)
        return 0

    world.programs["soon"] = soon
    key = await world.submit("soon")
    async with world.life() as life:
        await world.boxed()
        life.stop.set()
        late = await world.submit("well", "late")
        go.set()
        await within(life.gone.wait)
    assert (await world.job(key)).status is Status.SUCCEEDED
    assert (await world.job(late)).status is Status.QUEUED
    assert await world.edge.hosts.get(HOST) is None


async def test_a_drain_leaves_containers_to_the_next_life(world: World) -> None:
    left = await left_running(world)
    box = box_of(world, left, "running")
    async with world.life("i1") as life:
        await world.heard(left.key, Adopted)
        await life.drained()
    assert (await world.job(left.key)).status is Status.RUNNING
    out(box)
    box.finish(0)
    async with world.life("i2"):
        ended = await world.ended(left.key)
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)


async def test_a_drain_stops_and_releases_what_cannot_be_left(world: World) -> None:
    world.leave = False
    key = await world.submit("waits")
    async with world.life() as life:
        await world.boxed()
        await life.drained()
        drained = await world.job(key)
    assert (drained.status, drained.charged, drained.releases) == (Status.QUEUED, 0, {"drained": 1})
    assert not world.boxes
