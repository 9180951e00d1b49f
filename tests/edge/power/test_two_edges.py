"""Controllers of two edges over a real broker: the compare-and-set in POWER makes each call happen once."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from bus.open import open_edge, open_runner
from schemas.power import PowerState as S
from schemas.power import ReportedPower
from tests.edge.power.power_rig import HOST, PowerRigEdge, PowerRigRunner
from tests.support.edge_services import EdgeServicesRig, ManualClock, run_services
from tests.support.fake_power_driver import FakePowerDriver
from tests.support.nats_broker import run_broker

ROUNDS = 5


class Crossing:
    """Two edges that tick at the same moment. The edge whose write succeeds makes the call."""

    def __init__(
        self, edges: list[PowerRigEdge], driver: FakePowerDriver, runner: PowerRigRunner, time: ManualClock
    ) -> None:
        self.edges = edges
        self.driver = driver
        self.runner = runner
        self.time = time

    @property
    def calls(self) -> list[str]:
        return [verb for verb, _ in self.driver.calls]

    async def look(self, times: int = 5) -> None:
        """Tick both edges at the same time, so that their writes conflict."""
        for _ in range(times):
            self.time.advance(seconds=1)
            async with anyio.create_task_group() as tasks:
                for edge in self.edges:
                    tasks.start_soon(edge.tick)

    async def state(self) -> S:
        row = await self.edges[0].world.bus.power_records.get("gpu-1")
        assert row is not None
        return row.value.state

    async def until(self, state: S) -> None:
        with anyio.fail_after(20):
            while await self.state() is not state:
                await self.runner.beat()
                await self.look(1)
                self.driver.finish_transition()


@asynccontextmanager
async def crossing(folder: Path) -> AsyncIterator[Crossing]:
    time, driver = ManualClock(), FakePowerDriver(slow=True)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(run_broker(folder))
        edges = []
        for number in range(2):
            bus = await stack.enter_async_context(open_edge(server.settings("edge")))
            runner_bus = await stack.enter_async_context(open_runner(server.settings("runner")))
            made = EdgeServicesRig(folder / f"{number}", bus, runner_bus, time)
            await stack.enter_async_context(run_services(made))
            edges.append(PowerRigEdge(made, {"gpu-1": HOST}, {"gpu-1": driver}))
        yield Crossing(edges, driver, PowerRigRunner("gpu-1", edges[0].world.runner_bus, driver, time), time)


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


async def test_every_override_is_one_call_however_the_writes_cross(both: Crossing) -> None:
    """Overrides "on" and "off", each sent to another edge while both tick."""
    await both.look(1)
    for number in range(ROUNDS):
        one, other = both.edges[number % 2].power, both.edges[(number + 1) % 2].power
        await one.set_override("gpu-1", "on")
        await both.until(S.ONLINE)
        await other.set_override("gpu-1", "auto")
        both.driver.power = ReportedPower.OFF  # the machine loses power, so the next round begins with it off
        await both.edges[0].world.bus.heartbeats.delete("gpu-1")
        await both.until(S.OFF)
    assert both.calls == ["start"] * ROUNDS


async def test_the_call_of_an_edge_that_died_is_made_by_the_other_once(both: Crossing) -> None:
    await both.look(1)
    dead, alive = both.edges
    await dead.world.submit()
    await alive.world.wait_until_indexed()
    await dead.tick(calling=False)
    both.edges = [alive]
    await both.look(3)
    assert both.calls == []
    both.time.advance(seconds=120)
    await both.until(S.ONLINE)
    assert both.calls == ["start"]
