"""Two edges' controllers over a real broker: they meet in POWER, and the machine is switched once."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from bus.connection import open_edge, open_runner
from edge.power.drivers.memory import MemoryDriver
from schemas.power import PowerState as S
from schemas.power import Provider
from tests.broker import broker
from tests.edge.power.street import HOST, Edge, Runner
from tests.edge.services.world import Time, World, running

ROUNDS = 5


class Crossing:
    """Both edges look at the same moment, again and again; their calls are made by whoever won them."""

    def __init__(self, edges: list[Edge], driver: MemoryDriver, runner: Runner, time: Time) -> None:
        self.edges = edges
        self.driver = driver
        self.runner = runner
        self.time = time

    @property
    def calls(self) -> list[str]:
        return [verb for verb, _ in self.driver.calls]

    async def look(self, times: int = 5) -> None:
        """Both at once, so that their compare-and-sets cross."""
        for _ in range(times):
            self.time.pass_by(seconds=1)
            async with anyio.create_task_group() as tasks:
                for edge in self.edges:
                    tasks.start_soon(edge.turn)

    async def state(self) -> S:
        row = await self.edges[0].world.bus.power.get("gpu-1")
        assert row is not None
        return row.value.state

    async def until(self, state: S) -> None:
        with anyio.fail_after(20):
            while await self.state() is not state:
                await self.runner.beat()
                await self.look(1)
                self.driver.settle()


@asynccontextmanager
async def crossing(folder: Path) -> AsyncIterator[Crossing]:
    time, driver = Time(), MemoryDriver(slow=True)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(broker(folder))
        edges = []
        for number in range(2):
            bus = await stack.enter_async_context(open_edge(server.settings("edge")))
            runner_bus = await stack.enter_async_context(open_runner(server.settings("runner")))
            made = World(folder / f"{number}", bus, runner_bus, time)
            await stack.enter_async_context(running(made))
            edges.append(Edge(made, {"gpu-1": HOST}, {"gpu-1": driver}))
        yield Crossing(edges, driver, Runner("gpu-1", edges[0].world.runner_bus, driver, time), time)


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Crossing]:
    async with crossing(tmp_path) as made:
        yield made


async def test_ten_jobs_at_two_edges_are_one_start(both: Crossing) -> None:
    await both.look(1)
    for number in range(10):
        await both.edges[number % 2].world.submit(text=str(number))
        await both.look(1)
    assert both.calls == ["start"]
    await both.until(S.ONLINE)
    assert both.calls == ["start"]
    await both.look(1)  # the slower edge reads the row too
    assert [edge.notices for edge in both.edges] == [["host_waking gpu-1"]] * 2


async def test_every_wish_is_one_call_however_the_writes_cross(both: Crossing) -> None:
    """On and off again, each told to another edge while both are looking."""
    await both.look(1)
    for number in range(ROUNDS):
        one, other = both.edges[number % 2].power, both.edges[(number + 1) % 2].power
        await one.hold("gpu-1", "on")
        await both.until(S.ONLINE)
        await other.hold("gpu-1", "auto")
        both.driver.power = Provider.OFF  # the plug is pulled: the next round begins with a dark machine
        await both.edges[0].world.bus.hosts.delete("gpu-1")
        await both.until(S.OFF)
    assert both.calls == ["start"] * ROUNDS


async def test_the_call_of_an_edge_that_died_is_made_by_the_other_once(both: Crossing) -> None:
    await both.look(1)
    dead, alive = both.edges
    await dead.world.submit()
    await alive.world.settled()
    await dead.turn(calling=False)
    both.edges = [alive]
    await both.look(3)
    assert both.calls == []
    both.time.pass_by(seconds=120)
    await both.until(S.ONLINE)
    assert both.calls == ["start"]
