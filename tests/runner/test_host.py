"""The host beside its jobs: presence and offers, priorities and pools, cards."""

import time
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from bus.port import Delivery
from runner.agent import Agent
from runner.cards import Cards
from runner.catalogue import Kind
from runner.engines.memory import Box
from runner.engines.port import EngineError, StartFailed
from runner.gpu.memory import MemoryGpus
from runner.gpu.placement import Placed, Refused
from runner.settings import GpuSettings
from schemas.container import ExitCode
from schemas.endpoint import Endpoint, Resources
from schemas.events import Released
from schemas.gpu import GpuSample
from schemas.reasons import Reason
from schemas.words import Priority, Status
from tests.broker import until
from tests.runner.warmed import kind
from tests.runner.world import DEADLINE_S, World, out


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_host_says_that_it_is_there_and_what_it_runs(world: World) -> None:
    key = await world.submit("waits")
    async with world.life():
        await world.boxed()

        async def told() -> bool:
            row = await world.edge.hosts.get("gpu-1")
            return row is not None and len(row.value.running) == 1

        await until(told)
        row = await world.edge.hosts.get("gpu-1")
        offer = await world.edge.offers.get("gpu-1")
    assert row is not None
    assert (row.value.incarnation, row.value.gpu_state, row.value.slots) == ("i1", "none", 1)
    assert (row.value.running[0].owner, row.value.running[0].id) == key
    assert offer is not None
    assert {endpoint.name for endpoint in offer.value.endpoints} == {"well", "waits"}


async def test_a_container_that_cannot_be_removed_stops_nobody_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker says "device or resource busy" of one container for as long as something on the host holds its files."""
    first, second = await world.submit("well", "j1"), await world.submit("well", "j2")
    async with world.life() as running:
        remove, tried = running.engine.remove, list[str]()

        async def busy(handle: str) -> None:
            tried.append(handle)
            if handle == tried[0]:
                raise EngineError("device or resource busy")
            await remove(handle)

        monkeypatch.setattr(running.engine, "remove", busy)
        assert (await world.ended(first)).status is Status.SUCCEEDED
        assert (await world.ended(second)).status is Status.SUCCEEDED

        async def tried_again() -> bool:
            return tried.count(tried[0]) > 1

        await until(tried_again)


async def test_what_comes_with_the_word_to_stop_is_given_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody would be offered it for the half minute in which it is thought to be in our hands."""
    next_one, stopped = Agent._next, list[Agent]()

    async def with_the_word(agent: Agent) -> Delivery | None:
        delivery = await next_one(agent)
        if delivery is not None and not stopped:
            stopped.append(agent)
            agent.stop()
        return delivery

    monkeypatch.setattr(Agent, "_next", with_the_word)
    key = await world.submit("well")
    async with world.life("i1"), world.life("i2", host="gpu-2"):
        assert (await world.ended(key)).status is Status.SUCCEEDED
    assert len(stopped) == 1


async def test_an_offer_is_written_once_while_it_says_the_same(world: World) -> None:
    async with world.life():

        async def offered() -> bool:
            return await world.edge.offers.get("gpu-1") is not None

        await until(offered)
        first = await world.edge.offers.get("gpu-1")
        seen = await world.edge.hosts.get("gpu-1")

        async def beaten() -> bool:
            return await world.edge.hosts.get("gpu-1") != seen

        await until(beaten)
        assert await world.edge.offers.get("gpu-1") == first


async def test_high_before_normal_before_low(world: World) -> None:
    ran: list[str] = []

    async def notes_itself(box: Box) -> int:
        ran.append(box.spec.identity.job)
        out(box)
        return 0

    world.programs["order"] = notes_itself
    world.pace = replace(world.pace, ahead_s=DEADLINE_S)  # what is looked at ahead is given back for a moment
    keys = [
        await world.submit("order", name, priority=priority)
        for name, priority in [("low", Priority.LOW), ("normal", Priority.NORMAL), ("high", Priority.HIGH)]
    ]
    async with world.life():
        for key in keys:
            await world.ended(key)
    assert ran == ["high", "normal", "low"]


async def test_a_kind_without_its_image_is_not_asked_for_again_at_once(world: World) -> None:
    key = await world.submit("well")
    async with world.life() as life:
        life.engine.refuse = StartFailed("image_missing", "no such image: build it")

        async def told() -> bool:
            row = await world.edge.hosts.get("gpu-1")
            return row is not None and row.value.cannot == {"well": "image_missing"}

        await until(told)
        other = await world.submit("waits", "j2")
        await world.running(other)
    job = await world.job(key)
    assert (job.status, job.releases) == (Status.QUEUED, {"image_missing": 1})


async def test_an_endpoint_of_a_shared_pool_that_is_not_here_is_left(world: World) -> None:
    own = Kind(Endpoint(name="well", image="well", pool="shared", resources=Resources(disk_mb=0)), world.folder)
    world.kinds = {"well": own}
    there = await world.submit("elsewhere", "j1", pool="shared")
    here = await world.submit("well", "j2", pool="shared")
    async with world.life():
        assert (await world.ended(here)).status is Status.SUCCEEDED
    assert (await world.job(there)).status is Status.QUEUED
    assert (await world.facts(there)) == ["Submitted"]


CARD = "GPU-1"
SAMPLE = GpuSample(index=0, uuid=CARD, name="card", memory_total_mb=24_000, memory_used_mb=0, memory_free_mb=24_000)
NEEDS = Endpoint(name="n", image="n", resources=Resources(gpus=1, vram_mb=8000))
PLENTY = 10**6


async def test_a_card_that_was_struck_is_not_given_out_again() -> None:
    cards = Cards(MemoryGpus(SAMPLE), GpuSettings(), time.monotonic)
    gpus = cards._gpus
    assert isinstance(gpus, MemoryGpus)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cards.watch)

        async def judged() -> bool:
            return cards.place(NEEDS, PLENTY) == Placed((CARD,))

        await until(judged)
        holding = cards.hold((CARD,), NEEDS)
        await holding.started("box", time.monotonic())
        assert isinstance(cards.place(NEEDS, PLENTY), Refused)
        gpus.strike(CARD, 79)

        async def told() -> bool:
            return holding.xid == 79

        await until(told)
        holding.release()
        refused = cards.place(NEEDS, PLENTY)
        tasks.cancel_scope.cancel()
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.GPU_UNHEALTHY
    assert cards.reports()[0].fitness == "unhealthy"


def test_on_a_host_without_cards_what_can_do_without_runs() -> None:
    cards = Cards(MemoryGpus(), GpuSettings(), time.monotonic)
    optional = replace(NEEDS, resources=Resources(gpus=1, gpu_optional=True))
    assert cards.place(optional, PLENTY) == Placed()
    assert isinstance(cards.place(NEEDS, PLENTY), Refused)
    assert cards.reports() == ()
    short = cards.place(optional, 0)
    assert isinstance(short, Refused)
    assert short.reason is Reason.DISK_SHORT


@pytest.mark.parametrize(("code", "fitness"), [("gpu_unsupported", "fit"), ("gpu_unhealthy", "unhealthy")])
async def test_an_image_that_is_not_made_for_the_card_tells_nothing_against_it(
    world: World, code: str, fitness: str
) -> None:
    """Exit 69 either way: the job goes back at no cost. Only a card that erred has to prove itself."""

    async def fails(box: Box) -> int:
        box.write(b'{"type":"error","code":"%s","message":"no kernel image"}\n' % code.encode())
        return ExitCode.GPU_UNUSABLE

    world.gpus = MemoryGpus(SAMPLE)
    world.kinds = {"gpu": kind("gpu", world.folder, gpus=1)}
    world.warm = replace(world.warm, on=False)
    world.programs = {"gpu": fails}
    async with world.life() as life:
        job = await world.heard(await world.submit("gpu"), Released)
        assert (job.charged, job.releases) == (0, {code: 1})
        assert life.means.cards.reports()[0].fitness == fitness
