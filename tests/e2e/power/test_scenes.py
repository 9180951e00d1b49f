"""Scenes of the switch: a host in another namespace, joined over TLS, that its edge starts and stops by itself.

The scenes of a file share one host and follow each other; each begins and ends in the dark.
"""

from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from lamplighter import things
from schemas.events import Released, Started
from schemas.power import PowerRecord
from schemas.power import PowerState as S
from tests.e2e.installation import ready, until
from tests.e2e.looking import events, history, waits_for, working
from tests.e2e.network import Network, network
from tests.e2e.power.boxes import TLS_PORT, Scene, street

pytestmark = [pytest.mark.long(13), pytest.mark.timeout(240)]
ROUND = [S.WAKING, S.ONLINE, S.DRAINING, S.STOPPING, S.OFF]


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture(scope="module")
async def home(net: Network, tmp_path_factory: pytest.TempPathFactory, anyio_backend: object) -> AsyncIterator[Scene]:
    async with street(tmp_path_factory.mktemp("street"), net, [("gpu-1", {})]) as made:
        yield made


@pytest.fixture
async def scene(home: Scene) -> AsyncIterator[Scene]:
    """In the dark, with nothing waiting."""
    await home.dark()
    yield home
    print(home.street.tail())  # noqa: T201 - shown by pytest when the test failed


def since(record: PowerRecord, at: datetime) -> list[S]:
    """The states it has gone through since then."""
    return [change.state for change in record.history if change.at >= at]


async def test_the_first_job_ever_lights_a_host_that_was_never_seen(scene: Scene) -> None:
    assert "gpu-1" not in await scene.lit.bus.offers.rows()
    job = await scene.submit("first")
    await scene.stands(S.WAKING)
    await waits_for(scene.lit, job.id, "host_waking", "host_booting")
    await scene.done(job)
    assert since(await scene.stands(S.OFF), job.created_at) == ROUND
    assert scene.box.pressed == ["on", "off"]


async def test_ten_jobs_while_it_wakes_are_one_start(scene: Scene) -> None:
    scene.box.plan(boot_s=1.0)
    first = await scene.submit("0")
    await scene.stands(S.WAKING)
    others = [await scene.submit(str(number)) for number in range(1, 10)]
    await scene.done(first, *others)
    assert since(await scene.stands(S.OFF), first.created_at) == ROUND
    assert scene.box.pressed == ["on", "off"]


async def test_no_capacity_twice_is_waited_out(scene: Scene) -> None:
    scene.box.plan(no_capacity=2)
    job = await scene.submit()
    blocked = await scene.stands(S.BLOCKED)
    assert "none in stock" in blocked.why
    await scene.done(job)
    assert scene.box.pressed[:3] == ["on", "on", "on"]
    assert since(await scene.stands(S.OFF), job.created_at)[:4] == [S.WAKING, S.BLOCKED, S.WAKING, S.ONLINE]


async def test_a_boot_that_fails_gets_one_power_cycle(scene: Scene) -> None:
    scene.box.plan(boots_that_fail=1)
    job = await scene.submit()
    await scene.done(job)
    assert scene.box.pressed[:3] == ["on", "off", "on"]
    assert since(await scene.record(), job.created_at)[:5] == [S.WAKING, S.STOPPING, S.OFF, S.WAKING, S.ONLINE]


async def test_a_job_that_comes_while_it_drains_keeps_it_on(scene: Scene) -> None:
    """Its runner may take the job before it has read its order, or after the order was taken back: no stop before."""
    first = await scene.submit("first")
    await scene.done(first)
    await scene.stands(S.DRAINING)
    second = await scene.submit("second", seconds=1.0)
    (done,) = await scene.done(second)
    dark = await scene.stands(S.OFF)
    assert since(dark, first.created_at) in (ROUND, [S.WAKING, S.ONLINE, S.DRAINING, *ROUND[1:]])
    assert scene.box.pressed == ["on", "off"]
    assert done.finished_at is not None
    assert scene.box.presses[-1][1] > done.finished_at.timestamp()


async def test_a_job_that_comes_while_it_stops_waits_until_it_is_off(scene: Scene) -> None:
    scene.box.plan(hangs=True)
    first = await scene.submit("first")
    await scene.done(first)
    await scene.ordered("on", "off")
    second = await scene.submit("second")
    assert (await scene.record()).state is S.STOPPING
    await waits_for(scene.lit, second.id, "paused", "host_off")  # its runner says goodbye
    scene.box.plan()
    await scene.done(second)
    assert since(await scene.stands(S.OFF), first.created_at) == ROUND + ROUND
    assert scene.box.pressed == ["on", "off"]


async def test_a_host_that_hangs_while_it_stops_is_a_fault_until_its_owner_looks(scene: Scene) -> None:
    scene.box.plan(hangs=True)
    await scene.done(await scene.submit())
    fault = await scene.stands(S.FAULT)
    assert fault.why == "it does not go off"
    job = await scene.submit("while it is at fault")
    scene.box.plan()
    await waits_for(scene.lit, job.id, "host_fault")
    assert scene.box.pressed == []
    await scene.lit.admin.call(things.power("gpu-1", "auto", None))
    await scene.done(job)
    await scene.stands(S.OFF)


async def test_it_stays_on_over_a_result_that_cannot_be_brought_home(scene: Scene, tmp_path: Path) -> None:
    file = tmp_path / "result.bin"
    file.write_bytes(b"x" * (2 << 20))
    job = await scene.submit(file=file, seconds=1.5)
    await working(scene.lit, job.id)
    scene.street.net.cut(TLS_PORT)
    try:
        before = await scene.record()

        async def uploading() -> bool:
            return (await scene.presence()).busy.uploading > 0

        await until(uploading, within_s=60)
        await scene.beats(3.0)
        assert (await scene.record()).history == before.history
        assert scene.box.pressed == ["on"]
    finally:
        scene.street.net.heal(TLS_PORT)
    await scene.done(job)
    await scene.stands(S.OFF)
    assert scene.box.pressed == ["on", "off"]


async def test_a_broker_that_restarts_means_nothing_for_the_light(scene: Scene) -> None:
    await restart_broker(scene)  # in the dark
    job = await scene.submit(seconds=3)
    await working(scene.lit, job.id)
    await restart_broker(scene)  # while a job runs
    await scene.done(job)
    steps = await history(scene.lit, job.id)
    assert len(events(steps, Started)) == 1
    assert not events(steps, Released)
    assert since(await scene.stands(S.OFF), job.created_at) == ROUND
    assert scene.box.pressed == ["on", "off"]


async def restart_broker(scene: Scene) -> None:
    await scene.street.server.kill()
    await scene.street.server.start()
    await ready(scene.lit.ann)

    async def back() -> bool:
        return scene.lit.bus.link.connected

    await until(back)


async def test_an_edge_that_restarts_while_a_host_wakes_goes_on(scene: Scene) -> None:
    scene.box.plan(boot_s=2.0)
    job = await scene.submit()
    await scene.stands(S.WAKING)
    await scene.ordered("on")
    await scene.street.edge.kill()
    await scene.street.light()
    await ready(scene.lit.ann)
    await scene.done(job)
    assert since(await scene.stands(S.OFF), job.created_at) == ROUND
    assert scene.box.pressed == ["on", "off"]


async def test_its_owner_keeps_it_dark_and_keeps_it_on(scene: Scene) -> None:
    await scene.lit.admin.call(things.power("gpu-1", "off", None))
    job = await scene.submit()
    blocked = await scene.stands(S.BLOCKED)
    assert "owner wants it off" in blocked.why
    await waits_for(scene.lit, job.id, "host_blocked")
    assert scene.box.pressed == []
    await scene.lit.admin.call(things.power("gpu-1", "on", None))
    await scene.done(job)
    await scene.beats(3.0)
    assert (await scene.record()).state is S.ONLINE
    assert scene.box.pressed == ["on"]
    await scene.lit.admin.call(things.power("gpu-1", "auto", None))
    await scene.stands(S.OFF)
