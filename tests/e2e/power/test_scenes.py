"""Power scenarios: a host in another namespace, joined over TLS, that its edge starts and stops by itself.

The tests of this file share one host and run in order; each begins and ends with the host off.
"""

from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from lamplighter import api
from schemas.events import AttemptReleased, Started
from schemas.power import PowerRecord
from schemas.power import PowerState as S
from tests.e2e.power.switched_hosts import TLS_PORT, PowerScenario, run_switched_installation
from tests.support.installation import wait_until_ready
from tests.support.job_checks import events_of, read_history, wait_for_reason, wait_until_running
from tests.support.namespaces import HostNetwork, host_network
from tests.support.wait import wait_for

pytestmark = [pytest.mark.long(13), pytest.mark.timeout(240)]
ROUND = [S.WAKING, S.ONLINE, S.DRAINING, S.STOPPING, S.OFF]


@pytest.fixture(scope="module")
def net() -> Iterator[HostNetwork]:
    with host_network() as made:
        yield made


@pytest.fixture(scope="module")
async def home(
    net: HostNetwork, tmp_path_factory: pytest.TempPathFactory, anyio_backend: object
) -> AsyncIterator[PowerScenario]:
    async with run_switched_installation(tmp_path_factory.mktemp("street"), net, [("gpu-1", {})]) as made:
        yield made


@pytest.fixture
async def scene(home: PowerScenario) -> AsyncIterator[PowerScenario]:
    """Lend the installation to a test: the host is off and no job waits."""
    await home.wait_until_all_off()
    yield home
    print(home.street.tail())  # noqa: T201 - shown by pytest when the test failed


def since(record: PowerRecord, at: datetime) -> list[S]:
    """Return the states that the host has passed through since then."""
    return [change.state for change in record.history if change.at >= at]


async def test_the_first_job_ever_lights_a_host_that_was_never_seen(scene: PowerScenario) -> None:
    assert "gpu-1" not in await scene.running.bus.capabilities.rows()
    job = await scene.submit("first")
    await scene.wait_for_state(S.WAKING)
    await wait_for_reason(scene.running, job.id, "host_waking", "host_booting")
    await scene.wait_until_succeeded(job)
    assert since(await scene.wait_for_state(S.OFF), job.created_at) == ROUND
    assert scene.box.calls == ["on", "off"]


async def test_ten_jobs_while_it_wakes_are_one_start(scene: PowerScenario) -> None:
    scene.box.plan(boot_s=1.0)
    first = await scene.submit("0")
    await scene.wait_for_state(S.WAKING)
    others = [await scene.submit(str(number)) for number in range(1, 10)]
    await scene.wait_until_succeeded(first, *others)
    assert since(await scene.wait_for_state(S.OFF), first.created_at) == ROUND
    assert scene.box.calls == ["on", "off"]


async def test_no_capacity_twice_is_waited_out(scene: PowerScenario) -> None:
    scene.box.plan(no_capacity=2)
    job = await scene.submit()
    blocked = await scene.wait_for_state(S.BLOCKED)
    assert "none in stock" in blocked.why
    await scene.wait_until_succeeded(job)
    assert scene.box.calls[:3] == ["on", "on", "on"]
    assert since(await scene.wait_for_state(S.OFF), job.created_at)[:4] == [S.WAKING, S.BLOCKED, S.WAKING, S.ONLINE]


async def test_a_boot_that_fails_gets_one_power_cycle(scene: PowerScenario) -> None:
    scene.box.plan(boots_that_fail=1)
    job = await scene.submit()
    await scene.wait_until_succeeded(job)
    assert scene.box.calls[:3] == ["on", "off", "on"]
    assert since(await scene.record(), job.created_at)[:5] == [S.WAKING, S.STOPPING, S.OFF, S.WAKING, S.ONLINE]


async def test_a_job_that_comes_while_it_drains_keeps_it_on(scene: PowerScenario) -> None:
    """The runner may take the job before or after it reads the power command; the host is not stopped before."""
    first = await scene.submit("first")
    await scene.wait_until_succeeded(first)
    await scene.wait_for_state(S.DRAINING)
    second = await scene.submit("second", seconds=1.0)
    (done,) = await scene.wait_until_succeeded(second)
    dark = await scene.wait_for_state(S.OFF)
    assert since(dark, first.created_at) in (ROUND, [S.WAKING, S.ONLINE, S.DRAINING, *ROUND[1:]])
    assert scene.box.calls == ["on", "off"]
    assert done.finished_at is not None
    assert scene.box.timed_calls[-1][1] > done.finished_at.timestamp()


async def test_a_job_that_comes_while_it_stops_waits_until_it_is_off(scene: PowerScenario) -> None:
    scene.box.plan(hangs=True)
    first = await scene.submit("first")
    await scene.wait_until_succeeded(first)
    await scene.wait_for_calls("on", "off")
    second = await scene.submit("second")
    assert (await scene.record()).state is S.STOPPING
    await wait_for_reason(scene.running, second.id, "paused", "host_off")  # its runner deletes its heartbeat
    scene.box.plan()
    await scene.wait_until_succeeded(second)
    assert since(await scene.wait_for_state(S.OFF), first.created_at) == ROUND + ROUND
    assert scene.box.calls == ["on", "off"]


async def test_a_host_that_hangs_while_it_stops_is_a_fault_until_its_owner_looks(scene: PowerScenario) -> None:
    scene.box.plan(hangs=True)
    await scene.wait_until_succeeded(await scene.submit())
    fault = await scene.wait_for_state(S.FAULT)
    assert fault.why == "it did not power off in time"
    job = await scene.submit("while it is at fault")
    scene.box.plan()
    await wait_for_reason(scene.running, job.id, "host_fault")
    assert scene.box.calls == []
    await scene.running.admin.call(api.set_power("gpu-1", "auto", None))
    await scene.wait_until_succeeded(job)
    await scene.wait_for_state(S.OFF)


async def test_it_stays_on_over_a_result_that_cannot_be_brought_home(scene: PowerScenario, tmp_path: Path) -> None:
    file = tmp_path / "result.bin"
    file.write_bytes(b"x" * (2 << 20))
    job = await scene.submit(file=file, seconds=1.5)
    await wait_until_running(scene.running, job.id)
    scene.street.net.cut(TLS_PORT)
    try:
        before = await scene.record()

        async def uploading() -> bool:
            return (await scene.presence()).activity.uploading > 0

        await wait_for(uploading, timeout_s=60)
        await scene.wait_for_heartbeats(3.0)
        assert (await scene.record()).history == before.history
        assert scene.box.calls == ["on"]
    finally:
        scene.street.net.heal(TLS_PORT)
    await scene.wait_until_succeeded(job)
    await scene.wait_for_state(S.OFF)
    assert scene.box.calls == ["on", "off"]


async def test_a_broker_that_restarts_means_nothing_for_the_light(scene: PowerScenario) -> None:
    await restart_broker(scene)  # the host is off
    job = await scene.submit(seconds=3)
    await wait_until_running(scene.running, job.id)
    await restart_broker(scene)  # while a job runs
    await scene.wait_until_succeeded(job)
    steps = await read_history(scene.running, job.id)
    assert len(events_of(steps, Started)) == 1
    assert not events_of(steps, AttemptReleased)
    assert since(await scene.wait_for_state(S.OFF), job.created_at) == ROUND
    assert scene.box.calls == ["on", "off"]


async def restart_broker(scene: PowerScenario) -> None:
    await scene.street.server.kill()
    await scene.street.server.start()
    await wait_until_ready(scene.running.ann)

    async def back() -> bool:
        return scene.running.bus.health.is_connected

    await wait_for(back)


async def test_an_edge_that_restarts_while_a_host_wakes_goes_on(scene: PowerScenario) -> None:
    scene.box.plan(boot_s=2.0)
    job = await scene.submit()
    await scene.wait_for_state(S.WAKING)
    await scene.wait_for_calls("on")
    await scene.street.edge.kill()
    await scene.street.start_edge_again()
    await wait_until_ready(scene.running.ann)
    await scene.wait_until_succeeded(job)
    assert since(await scene.wait_for_state(S.OFF), job.created_at) == ROUND
    assert scene.box.calls == ["on", "off"]


async def test_its_owner_keeps_it_dark_and_keeps_it_on(scene: PowerScenario) -> None:
    await scene.running.admin.call(api.set_power("gpu-1", "off", None))
    job = await scene.submit()
    blocked = await scene.wait_for_state(S.BLOCKED)
    assert "owner wants it off" in blocked.why
    await wait_for_reason(scene.running, job.id, "host_blocked")
    assert scene.box.calls == []
    await scene.running.admin.call(api.set_power("gpu-1", "on", None))
    await scene.wait_until_succeeded(job)
    await scene.wait_for_heartbeats(3.0)
    assert (await scene.record()).state is S.ONLINE
    assert scene.box.calls == ["on"]
    await scene.running.admin.call(api.set_power("gpu-1", "auto", None))
    await scene.wait_for_state(S.OFF)
